from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petzval.errors import DataError, RequestError
from petzval.evals.comparison import (
    Candidate,
    Comparison,
    Entry,
    NamedPainter,
    Sample,
    compare,
    measured,
    sample,
)
from petzval.evals.comparison_report import (
    comparison_table,
    picture_grid,
    points,
    read_entries,
    write_entries,
)
from petzval.evals.likeness import Estimate
from petzval.evals.questions import Question, questions
from petzval.resolution import Resolution
from petzval.scoring.scorer import Picture
from tests.evals.test_likeness import MeanColour
from tests.evals.world import NoisePainter, ParityScorer

SIZE = Resolution(height=16, width=16)


class TintedPainter(NoisePainter):
    """Noise with a share of one grey: the larger the share, the less varied."""

    def __init__(self, grey: float, name: str) -> None:
        super().__init__()
        self.grey, self.name = grey, name

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"painter": self.name, "checkpoint": self.name, "steps": 4, "guidance": 1.0}

    def paint(self, prompt: str, seed: int) -> bytes:
        noisy = np.asarray(Image.open(io.BytesIO(super().paint(prompt, seed)))).astype(float)
        tinted = (self.grey * 200 + (1 - self.grey) * noisy).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(tinted).save(buffer, "PNG")
        return buffer.getvalue()


def sampled(out: Path, grey: float, *, limit: int = 12, num_images: int = 2) -> Sample:
    name = f"grey {grey}"
    return sample(
        NamedPainter(label=name, resolution=SIZE, painter=TintedPainter(grey, name)),
        questions(["en"], {"en": limit}),
        out=out,
        scorer=ParityScorer(),
        network=MeanColour(),
        num_images=num_images,
        num_shown=3,
    )


def real(question: Question, number: int, size: Resolution) -> Picture:
    rng = np.random.default_rng((len(question.prompt), number))
    return rng.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("comparison")
    samples = [sampled(out, grey) for grey in (0.0, 0.5, 0.9)]
    asked = questions(["en"], {"en": 12})
    pictures = [real(question, number, SIZE) for number, question in enumerate(asked)] * 2
    from petzval.evals.likeness import features

    truth = features(pictures, MeanColour()), [question.prompt_id for question in asked] * 2
    return Comparison(entries=tuple(measured(samples, truth)), samples=tuple(samples))


def test_the_reference_is_one_of_itself(comparison: Comparison) -> None:
    for name, ratio in comparison.entries[0].ratios.items():
        assert ratio.value == pytest.approx(1), name
        assert ratio.error == pytest.approx(0, abs=1e-9), name


def test_a_tint_costs_variety_and_sharpness_and_distance(comparison: Comparison) -> None:
    plain, half, most = comparison.entries
    assert plain.measures["variety"].value > half.measures["variety"].value
    assert most.ratios["variety"].value == pytest.approx(0.1, abs=0.03)
    assert most.ratios["sharpness"].value < half.ratios["sharpness"].value < 0.7
    assert most.measures["frechet"].value > half.measures["frechet"].value
    assert most.measures["kernel"].value > plain.measures["kernel"].value
    assert plain.num_prompts == 12 and plain.num_pictures == 24


def test_following_is_judged(comparison: Comparison) -> None:
    rows = comparison.samples[0].rows
    entry = comparison.entries[0]
    assert entry.measures["right"].value == pytest.approx(np.mean([row.passed for row in rows]))
    each = [np.mean(list(row.checks.values())) for row in rows]
    assert entry.measures["fulfilled"].value == pytest.approx(np.mean(each))


def test_one_picture_a_prompt_has_no_variety_and_no_truth_no_distance(tmp_path: Path) -> None:
    entry = measured([sampled(tmp_path, 0.0, num_images=1)], None)[0]
    assert set(entry.measures) == {"right", "fulfilled", "sharpness"}
    assert "variety" not in comparison_table([entry])


def test_drawn_pictures_are_used_again(tmp_path: Path) -> None:
    first = sampled(tmp_path, 0.0, limit=5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    again = sampled(tmp_path, 0.0, limit=5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert again.rows == first.rows and len(before) == 10


def test_entries_survive_their_file(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    write_entries(path, comparison.entries)
    assert read_entries(path) == list(comparison.entries)


@pytest.mark.parametrize(
    "text", ["", "not json\n", "[]\n", '{"label": "x"}\n', '{"measures": 3}\n', "\x00\n"]
)
def test_a_damaged_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(text)
    if text:
        with pytest.raises(DataError, match="cannot read"):
            read_entries(path)
    else:
        assert read_entries(path) == []
    with pytest.raises(DataError, match="cannot read"):
        read_entries(tmp_path / "absent.jsonl")


def test_a_table_says_size_only_where_there_are_several(comparison: Comparison) -> None:
    entries = list(comparison.entries)
    assert "size" not in comparison_table(entries)
    wide = replace(entries[0], width=32)
    lines = comparison_table([*entries, wide]).splitlines()
    assert lines[0].startswith("| model | size | right |")
    assert "| 32 × 16 |" in lines[-1]
    assert " ± " in lines[-1] and " %" in lines[-1]
    assert "%" not in comparison_table(entries, relative=True)


def test_unknown_errors_are_shown_as_such(comparison: Comparison) -> None:
    entry = comparison.entries[0]
    unsure: Entry = replace(
        entry, measures={"right": Estimate(value=0.5, error=float("nan"))}, ratios={}
    )
    assert "50.0 ± ? %" in comparison_table([unsure])


def test_pictures_are_drawn_of_it(comparison: Comparison) -> None:
    grid = picture_grid(comparison.samples, side=32)
    assert grid.shape == (3 * (32 + 22 + 6) + 6, 3 * (32 + 6) + 6, 3)
    plot = Image.open(io.BytesIO(points(comparison.entries, ("right", "variety"))))
    assert plot.format == "PNG" and plot.width > 400


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mini", Candidate(model="mini")),
        ("mini@50", Candidate(model="mini", steps=50)),
        ("a/b@4@1", Candidate(model="a/b", steps=4, guidance=1.0)),
        ("mini@4@2.5", Candidate(model="mini", steps=4, guidance=2.5)),
    ],
)
def test_candidates_are_read(text: str, wanted: Candidate) -> None:
    assert Candidate.parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "@4", "mini@", "mini@x", "mini@4@1@2", "mini@0", "mini@1001", "mini@4@-1", "mini@4@nan",
     "mini@4@1e9"],
)  # fmt: skip
def test_what_is_no_candidate_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Candidate.parse(text)


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to compare"):
        compare([], out=tmp_path, scorer=ParityScorer(), network=MeanColour())
