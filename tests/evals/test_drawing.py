from __future__ import annotations

from pathlib import Path

import pytest

from petzval.errors import RequestError
from petzval.evals import run
from petzval.evals.drawing import Painter, PipelinePainter
from petzval.evals.examination import Examination
from petzval.evals.report import write_report
from petzval.evals.statistics import cluster_bootstrap
from petzval.evals.summary import Line
from petzval.inference.image import read_recipe
from petzval.inference.pipeline import Pipeline
from tests.evals.world import ParityScorer


@pytest.fixture(scope="module")
def pipeline(golden_checkpoint: Path) -> Pipeline:
    return Pipeline.load(golden_checkpoint, device="cpu")


def test_a_painter_draws_what_its_identity_says(pipeline: Pipeline, tmp_path: Path) -> None:
    painter = PipelinePainter(pipeline, size="64x32", steps=2, guidance=3.0)
    assert isinstance(painter, Painter)
    identity = painter.identity
    assert (identity["height"], identity["width"]) == (32, 64)
    assert (identity["steps"], identity["guidance"]) == (2, 3.0)
    assert identity["checkpoint"] == pipeline.identity
    path = tmp_path / "one.png"
    path.write_bytes(painter.paint("a red fox", 5))
    recipe = read_recipe(path)
    assert (recipe.prompt, recipe.seed, recipe.steps) == ("a red fox", 5, 2)
    assert (recipe.height, recipe.width) == (32, 64)


def test_the_same_prompt_and_seed_give_the_same_bytes(pipeline: Pipeline) -> None:
    painter = PipelinePainter(pipeline, size="32x32", steps=2)
    first = painter.paint("a cat", 0)
    assert painter.paint("a dog", 0) != first
    assert painter.paint("a cat", 1) != first
    assert painter.paint("a cat", 0) == first


def test_a_wrong_setting_is_answered_before_anything_is_drawn(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError):
        PipelinePainter(pipeline, size="33x32")


def test_evaluate_goes_from_a_checkpoint_to_a_page(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a coin in place of the scorer; what the real one does is in its own room's tests."""
    line = Line(name="all", share=cluster_bootstrap([1.0], [0]), chance=0.1)
    known = Examination(
        real=(line,), known=(line,), blurred=(line,), shuffled=(line,), real_checks=(),
        known_checks=(), shuffled_checks=(), abilities=(),
    )  # fmt: skip
    monkeypatch.setattr(run, "load_judge", lambda folder: ParityScorer())
    monkeypatch.setattr(run, "load_examination", lambda folder: known)
    evaluation = run.evaluate(
        golden_checkpoint, out=tmp_path / "out", languages=("en", "de"), limit=3, limit_others=1,
        size="32x32", steps=1, guidance=1.0, device="cpu",
    )  # fmt: skip
    assert [row.language for row in evaluation.rows] == ["en"] * 3 + ["de"]
    assert len(list((tmp_path / "out" / run.PICTURES).rglob("*.png"))) == 4
    page = write_report(evaluation, tmp_path / "docs" / "tiny.md")
    assert "# " in page.read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "pictures" / "tiny-contact-sheet.png").is_file()
