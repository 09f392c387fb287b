from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from petzval.errors import DataError, RequestError
from petzval.evals.drawing import draw_missing, drawings
from petzval.evals.questions import questions
from petzval.evals.run import PICTURES, SCORES, first_pictures, measure
from petzval.evals.store import PictureStore, key_of, png_bytes
from petzval.evals.verdicts import Row, judge_all, read_rows
from tests.evals.world import Killed, NoisePainter, ParityScorer

LIMITS: dict[str, int | None] = {"en": 9, "de": 4}


def run(out: Path, painter: NoisePainter, scorer: ParityScorer) -> list[Row]:
    rows, _ = measure(painter, scorer, out=out, languages=("en", "de"), limits=LIMITS, num_images=2)
    return rows


def test_every_question_gets_its_rows_in_order(tmp_path: Path) -> None:
    rows = run(tmp_path, NoisePainter(), ParityScorer())
    assert len(rows) == 26
    assert [row.language for row in rows] == ["en"] * 18 + ["de"] * 8
    assert [row.seed for row in rows[:4]] == [0, 1, 0, 1]
    assert read_rows(tmp_path / SCORES) == rows


def test_a_second_run_paints_and_judges_nothing(tmp_path: Path) -> None:
    run(tmp_path, NoisePainter(), ParityScorer())
    before = (tmp_path / SCORES).read_bytes()
    painter, scorer = NoisePainter(), ParityScorer()
    run(tmp_path, painter, scorer)
    assert (len(painter.painted), scorer.judged) == (0, 0)
    assert (tmp_path / SCORES).read_bytes() == before


@pytest.mark.parametrize("painted", [0, 5, 25])
@pytest.mark.parametrize("judged", [0, 1, 17])
def test_killed_and_run_again_gives_the_same_file(
    tmp_path: Path, painted: int, judged: int
) -> None:
    run(tmp_path / "whole", NoisePainter(), ParityScorer())
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        run(out, NoisePainter(survives=painted), ParityScorer())
    with pytest.raises(Killed):
        run(out, NoisePainter(), ParityScorer(survives=judged))
    painter, scorer = NoisePainter(), ParityScorer()
    run(out, painter, scorer)
    assert scorer.judged == 26 - judged
    assert (out / SCORES).read_bytes() == (tmp_path / "whole" / SCORES).read_bytes()


def test_a_line_cut_short_is_judged_again(tmp_path: Path) -> None:
    rows = run(tmp_path, NoisePainter(), ParityScorer())
    scores = tmp_path / SCORES
    whole = scores.read_bytes()
    scores.write_bytes(whole[: len(whole) // 2])
    assert run(tmp_path, NoisePainter(), ParityScorer()) == rows
    assert scores.read_bytes() == whole


def test_another_scorer_judges_everything_again_on_the_same_pictures(tmp_path: Path) -> None:
    run(tmp_path, NoisePainter(), ParityScorer())
    painter, scorer = NoisePainter(), ParityScorer("another")
    rows = run(tmp_path, painter, scorer)
    assert (len(painter.painted), scorer.judged) == (0, 26)
    assert len({row.scorer for row in rows}) == 1
    assert len(read_rows(tmp_path / SCORES)) == 26


def test_pictures_lie_under_the_hash_of_what_they_depend_on(tmp_path: Path) -> None:
    asked = questions(("en",), {"en": 3})
    one = drawings(asked, {"steps": 20})
    assert [d.key for d in one] == [d.key for d in drawings(asked, {"steps": 20})]
    others = [*drawings(asked, {"steps": 21}), *drawings(asked, {"steps": 20}, seed=1)]
    assert not {d.key for d in one} & {d.key for d in others}
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


def test_a_prompt_asked_twice_is_painted_once(tmp_path: Path) -> None:
    asked = questions(("en",), {"en": 2})
    wanted = drawings([*asked, *asked], NoisePainter().identity)
    painter = NoisePainter()
    assert draw_missing(wanted, painter, PictureStore(tmp_path)) == 2
    assert len(painter.painted) == 2


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    picture = np.zeros((4, 4, 3), np.uint8)
    store.put("ab12", png_bytes(picture))
    np.testing.assert_array_equal(store.get("ab12"), picture)
    store.path("ab12").write_bytes(b"no picture")
    with pytest.raises(DataError, match="ab12"):
        store.get("ab12")


def test_a_read_only_folder_is_answered(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RequestError):
        PictureStore(blocked).put("ab", png_bytes(np.zeros((2, 2, 3), np.uint8)))


def test_damaged_scores_are_refused_when_read_as_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_rows(tmp_path / "absent.jsonl")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt_id": "x"}) + "\n")
    with pytest.raises(DataError, match="line 1"):
        read_rows(tmp_path / "bad.jsonl")


def test_the_sheet_shows_the_first_prompts_as_they_came(tmp_path: Path) -> None:
    _, sheet = measure(
        NoisePainter(), ParityScorer(), out=tmp_path, languages=("en",), limits={"en": 15},
        num_images=2, seed=3,
    )  # fmt: skip
    asked = questions(("en",), {"en": 12})
    assert [prompt for prompt, _ in sheet] == [one.prompt for one in asked]
    wanted = drawings(asked, NoisePainter().identity, seed=3)
    assert [one.seed for one in first_pictures(wanted, 3)] == [3] * 12
    store = PictureStore(tmp_path / PICTURES)
    np.testing.assert_array_equal(sheet[0][1], store.get(wanted[0].key))


def test_at_least_one_picture_a_prompt() -> None:
    with pytest.raises(RequestError):
        drawings(questions(("en",), {"en": 1}), {}, num_images=0)


def test_judging_reports_progress_and_needs_its_pictures(tmp_path: Path) -> None:
    wanted = drawings(questions(("en",), {"en": 3}), {})
    told: list[tuple[str, int, int]] = []
    rows = judge_all(
        wanted,
        lambda key: np.zeros((2, 2, 3), np.uint8),
        ParityScorer(),
        tmp_path / SCORES,
        lambda *what: told.append(what),
    )
    assert all(row.passed for row in rows)
    assert told == [("judge", 0, 3), ("judge", 1, 3), ("judge", 2, 3)]
    with pytest.raises(DataError):
        judge_all(wanted, PictureStore(tmp_path).get, ParityScorer("b"), tmp_path / SCORES)
