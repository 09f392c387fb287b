"""`petzval evaluate`: ask, draw, judge, sum up. Stop it and run it again, and it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petzval.evals.drawing import (
    Drawing,
    Painter,
    PipelinePainter,
    Progress,
    draw_missing,
    drawings,
)
from petzval.evals.examination import Examination, load_examination
from petzval.evals.questions import questions
from petzval.evals.store import PictureStore
from petzval.evals.verdicts import Row, judge_all
from petzval.inference.pipeline import Pipeline
from petzval.inference.variants import DEFAULT_MODEL
from petzval.scoring.bundle import SHIPPED, load_judge
from petzval.scoring.scorer import Picture, Scorer

LANGUAGES: tuple[str, ...] = ("en", "zh", "fr", "ja", "es", "de")
"""English, in which the denoiser was trained, and the languages the paper measures."""

SCORES = "scores.jsonl"
PICTURES = "pictures"
NUM_ON_SHEET = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out.

    Attributes:
        model: name of the model.
        painter: everything the pictures depend on besides prompt and seed.
        rows: one judged picture each, in the order asked.
        examination: the same scorer where the truth is known.
        sheet: the first pictures and their prompts, as they came.
    """

    model: str
    painter: Mapping[str, Any]
    rows: tuple[Row, ...]
    examination: Examination
    sheet: tuple[tuple[str, Picture], ...]


def evaluate(
    model: str | Path = DEFAULT_MODEL,
    *,
    out: Path,
    languages: Sequence[str] = LANGUAGES,
    limit: int | None = None,
    limit_others: int | None = 70,
    num_images: int = 1,
    seed: int = 0,
    size: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "auto",
    scorers: Path = SHIPPED,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on the held-out prompts.

    Args:
        model: a name or a checkpoint folder, see `Pipeline.load`.
        out: folder for pictures and `scores.jsonl`; what is already in it is used again.
        languages: the first one is asked in full, the others up to `limit_others`.
        limit: prompts of the first language, None for all; every prefix is a fair mixture.
        limit_others: prompts of each other language, None for all.
        num_images: pictures per prompt, with seeds `seed`, `seed` + 1, ...
        size: "WIDTHxHEIGHT", or None for the model's own square.
        steps, guidance: None takes the model's own.
        scorers: folder of trained scorers.

    Raises:
        DataError: a language is unknown, a limit is below 1, or a stored picture is damaged.
        RequestError: the model or a setting is unknown, or `out` cannot be written.
        MissingExtraError: the evaluation extra is not installed.
    """
    scorer = load_judge(scorers)
    examination = load_examination(scorers)
    pipeline = Pipeline.load(model, device=device)
    painter = PipelinePainter(pipeline, size=size, steps=steps, guidance=guidance)
    first, *others = list(dict.fromkeys(languages)) or [""]
    limits = {first: limit} | dict.fromkeys(others, limit_others)
    rows, sheet = measure(
        painter,
        scorer,
        out=out,
        languages=languages,
        limits=limits,
        num_images=num_images,
        seed=seed,
        progress=progress,
    )
    return Evaluation(
        model=pipeline.name,
        painter=painter.identity,
        rows=tuple(rows),
        examination=examination,
        sheet=tuple(sheet),
    )


def measure(
    painter: Painter,
    scorer: Scorer,
    *,
    out: Path,
    languages: Sequence[str],
    limits: Mapping[str, int | None],
    num_images: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Row], list[tuple[str, Picture]]]:
    """Draw and judge with any painter and scorer; the rows, and the first pictures."""
    asked = questions(languages, limits)
    wanted = drawings(asked, painter.identity, num_images=num_images, seed=seed)
    store = PictureStore(out / PICTURES)
    draw_missing(wanted, painter, store, progress)
    rows = judge_all(wanted, store.get, scorer, out / SCORES, progress)
    return rows, [(one.question.prompt, store.get(one.key)) for one in first_pictures(wanted, seed)]


def first_pictures(wanted: Sequence[Drawing], seed: int) -> list[Drawing]:
    """The first prompts' first pictures, whatever they look like."""
    return [one for one in wanted if one.seed == seed][:NUM_ON_SHEET]
