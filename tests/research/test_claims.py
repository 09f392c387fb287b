"""The experiment behind docs/training.md: one arm in seconds, its record, its tables."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from petzval.data.miniature.world import SMALL
from research.claims import plots
from research.claims.__main__ import run_all
from research.claims.arms import ARMS, BASE, PROTOCOL, TRIED_SIZES, Protocol
from research.claims.learning import Split
from research.claims.record import (
    RECORD,
    Estimate,
    Run,
    append,
    difference,
    load,
    of_arm,
    protocol_id,
)
from research.claims.report import (
    CLAIMS,
    arms_table,
    chance_of,
    claims_table,
    protocol_line,
    whole_line,
)
from research.claims.trial import prompts

TINY = dataclasses.replace(
    PROTOCOL,
    num_steps=4,
    batch_tokens=64,
    num_blocks=1,
    max_things=1,
    checkpoints=2,
    num_prompts=3,
    sampling_steps=2,
)
NAMES = [*(f"dense {canvas}" for canvas in TRIED_SIZES), f"brief {SMALL}"]


def test_arms_differ_from_the_base_in_one_thing_each() -> None:
    for arm in ARMS[1:]:
        pairs = zip(dataclasses.astuple(arm), dataclasses.astuple(BASE), strict=True)
        assert sum(own != base for own, base in pairs) == 2, arm.name  # the name and one more
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_scenes_of_prompts_are_never_trained_on() -> None:
    split = Split.of(PROTOCOL)
    for trained, held_out in zip(split.trained, split.held_out, strict=True):
        assert held_out and not set(trained) & set(held_out)
    assert split == Split.of(PROTOCOL)
    assert prompts(split, PROTOCOL, "dense") == prompts(split, PROTOCOL, "dense")


def test_one_arm_from_nothing_to_its_line_and_not_again(tmp_path: Path) -> None:
    """Both ways of reading the text encoder; four times its last layer has as many parameters."""
    record = tmp_path / "record.jsonl"
    arms = [BASE, next(arm for arm in ARMS if arm.name == "last layer")]
    run_all(arms, TINY, (5,), tmp_path / "runs", record)
    runs = load(TINY, record)
    assert [(run.arm, run.seed) for run in runs] == [("base", 5), ("last layer", 5)]
    assert len({run.facts["parameters"] for run in runs}) == 1
    for run in runs:
        assert list(run.scores) == [2, 4]
        assert all(0 <= run.final[name] <= 1 for name in NAMES)
    before = record.read_bytes()
    run_all(arms, TINY, (5,), tmp_path / "elsewhere", record)
    assert record.read_bytes() == before and not (tmp_path / "elsewhere").exists()


def test_runs_of_another_protocol_are_not_seen(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    append(_run("base", 0, 0.5), record)
    assert len(load(PROTOCOL, record)) == 1
    assert load(TINY, record) == load(PROTOCOL, tmp_path / "absent.jsonl") == []
    more_seeds = dataclasses.replace(PROTOCOL, seeds=(0, 1, 2, 3))
    assert protocol_id(more_seeds) == protocol_id(PROTOCOL) != protocol_id(TINY)


# ── statistics and tables ────────────────────────────────────────────────────────────────────────


def _run(arm: str, seed: int, value: float, protocol: Protocol = PROTOCOL) -> Run:
    scores = dict.fromkeys(NAMES, value)
    facts = {"parameters": 1000, "seconds": 60.0, "torch": "2.x", "machine": "a table"}
    return Run(
        arm=arm,
        seed=seed,
        protocol=protocol_id(protocol),
        scores={400: dict.fromkeys(NAMES, 0.1), 1600: scores},
        facts=facts,
    )


def test_a_standard_error_by_hand() -> None:
    found = Estimate.of([0.1, 0.2, 0.6])
    assert found.mean == pytest.approx(0.3)
    assert found.error == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2 / 3))
    assert math.isnan(Estimate.of([0.4]).error)
    with pytest.raises(ValueError, match="no values"):
        Estimate.of([])


def test_a_gain_is_seen_only_above_two_standard_errors() -> None:
    assert Estimate(mean=0.21, error=0.1, num_seeds=3).verdict == "seen"
    assert Estimate(mean=0.19, error=0.1, num_seeds=3).verdict == "not seen"
    assert Estimate(mean=-0.21, error=0.1, num_seeds=3).verdict == "the opposite is seen"
    assert Estimate(mean=0.9, error=0.0, num_seeds=2).verdict == "too few seeds"


def test_differences_are_taken_seed_by_seed() -> None:
    """What differs between seeds and not between arms drops out."""
    runs = [_run("base", seed, 0.2 * seed + 0.1) for seed in (0, 1, 2)]
    runs += [_run("brief", seed, 0.2 * seed) for seed in (0, 2, 7)]
    found = difference(runs, "base", "brief", NAMES[0])
    assert found is not None and found.num_seeds == 2
    assert (found.mean, found.error) == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))
    assert difference(runs, "base", "mixed", NAMES[0]) is None
    early = of_arm(runs, "base", NAMES[0], 400)
    assert early is not None and early.mean == pytest.approx(0.1)


def _complete() -> list[Run]:
    values = {arm.name: 0.9 if arm.name == "base" else 0.5 for arm in ARMS}
    return [
        _run(arm.name, seed, values[arm.name] + 0.01 * seed) for arm in ARMS for seed in (0, 1, 2)
    ]


def test_tables_say_what_is_recorded() -> None:
    lines = arms_table(runs=_complete()).splitlines()
    assert len(lines) == 2 + len(ARMS) + 2
    assert "| 3 | 0.910 ± 0.006 |" in lines[2]
    rows = claims_table(runs=_complete()).splitlines()[2:]
    assert len(rows) == sum(len(claim.scores) for claim in CLAIMS)
    assert all(row.endswith("| 0.400 ± 0.000 | seen |") for row in rows)
    assert "15 runs" in protocol_line(runs=_complete())
    assert "included: none, in any run" in whole_line(runs=_complete())


def test_chance_is_far_from_the_judges_best_and_its_worst() -> None:
    for kind, criteria in (("dense", 5), ("brief", 3)):
        clean, spoilt = (chance_of(kind, PROTOCOL, clean=clean) for clean in (True, False))
        assert clean - spoilt == pytest.approx(1 / criteria)
        assert 0.15 < spoilt < clean < 0.65


def test_tables_of_nothing_say_so() -> None:
    assert "no runs yet" in claims_table(runs=[])
    assert "| 0 | – |" in arms_table(runs=[])
    assert "No run is recorded yet" in protocol_line(runs=[])


def test_what_is_recorded_is_of_known_arms_once_each() -> None:
    runs = load(PROTOCOL, RECORD)
    assert len({(run.arm, run.seed) for run in runs}) == len(runs)
    assert {run.arm for run in runs} <= {arm.name for arm in ARMS}
    assert all(set(NAMES) <= set(run.final) for run in runs)


def test_pictures_are_drawn_from_the_record() -> None:
    figure = plots.claims(_complete())
    assert len(figure.axes) == 4
    legend = figure.axes[0].get_legend()
    assert legend is not None
    labels = {text.get_text() for text in legend.get_texts()}
    assert {"base", "brief captions", "half of each"} <= labels
    assert len(plots.world().axes) == 4 * 5
