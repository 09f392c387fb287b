from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petzval.evals.examination import Examination, load_examination, save_examination
from petzval.evals.pictures import contact_sheet, skill_bars
from petzval.evals.report import markdown, write_report
from petzval.evals.run import Evaluation, measure
from petzval.evals.statistics import Share, cluster_bootstrap
from petzval.evals.summary import Line, by_check, by_skill
from petzval.evals.tables import percent, percent_with_interval, table
from tests.evals.world import NoisePainter, ParityScorer


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    out = tmp_path_factory.mktemp("evaluation")
    rows, sheet = measure(
        NoisePainter(), ParityScorer(), out=out, languages=("en", "de"), limits={"en": 56, "de": 14}
    )
    skills, checks = tuple(by_skill(rows)), tuple(by_check(rows))
    return Evaluation(
        model="mini",
        painter={"checkpoint": "ab" * 32, "height": 8, "width": 8, "steps": 2, "guidance": 4.0},
        rows=tuple(rows),
        examination=Examination(
            real=skills, known=skills, blurred=skills, shuffled=skills, real_checks=checks,
            known_checks=checks, shuffled_checks=checks, abilities=checks,
        ),
        sheet=tuple(sheet),
    )  # fmt: skip


def test_the_page_tells_skills_sides_and_languages_apart(evaluation: Evaluation) -> None:
    page = markdown(evaluation, "mini")
    for skill in ("single", "background", "colour", "two", "count", "style", "position", "all"):
        assert f"\n| {skill} |" in page
    assert "| English |" in page and "| German |" in page
    assert "The same 14 prompts in every language" in page
    assert "trained concepts" in page and "held-out concepts" in page
    assert "## What it cannot do" in page
    assert "`abababababababab`" in page
    assert "nan" not in page


def test_a_coin_is_never_called_better_than_chance(evaluation: Evaluation) -> None:
    """The scorer of this test is a coin, and its chance is stated as one half a check."""
    page = markdown(evaluation, "mini")
    assert "not measurably above chance in" in page


def test_the_report_is_the_same_every_time(evaluation: Evaluation, tmp_path: Path) -> None:
    names = ("mini.md", "pictures/mini-skills.png", "pictures/mini-contact-sheet.png")
    for folder in ("a", "b"):
        write_report(evaluation, tmp_path / folder / "mini.md")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_table_has_as_many_cells_in_each_row(evaluation: Evaluation) -> None:
    width = 0
    for line in markdown(evaluation, "mini").splitlines():
        if line.startswith("|"):
            width = width or line.count("|")
            assert line.count("|") == width, line
        else:
            width = 0


def test_the_contact_sheet_holds_every_picture_with_its_prompt() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 32 + 8 * i, 3), dtype=np.uint8) for i in range(5)]
    captions = [f"a thing number {i} that has a rather long description" for i in range(5)]
    sheet = contact_sheet(pictures, captions, columns=4, side=96)
    assert sheet.shape == (2 * (96 + 44 + 12) + 12, 4 * (96 + 12) + 12, 3)
    blank = contact_sheet(pictures, [""] * 5, columns=4, side=96)
    assert (sheet != blank).any()


def test_bars_are_a_picture(tmp_path: Path) -> None:
    line = Line(name="single", share=cluster_bootstrap([0.0, 1.0, 1.0], range(3)), chance=0.02)
    path = tmp_path / "bars.png"
    path.write_bytes(skill_bars([line], [], [line], title="t"))
    with Image.open(path) as image:
        assert image.width > image.height > 100


def test_numbers_are_written_with_the_digits_they_deserve() -> None:
    share = Share(mean=0.417, low=0.354, high=0.493, num_values=9, num_clusters=9)
    assert percent_with_interval(share) == "42 % (35–49)"
    assert [percent(v) for v in (0.0, 0.0167, 0.5, 1.0)] == ["0 %", "1.7 %", "50 %", "100 %"]
    assert table(("a", "b"), [("x", "1")]) == "| a | b |\n|---|--:|\n| x | 1 |\n"


def test_an_examination_survives_its_file(evaluation: Evaluation, tmp_path: Path) -> None:
    save_examination(evaluation.examination, tmp_path)
    assert load_examination(tmp_path) == evaluation.examination
