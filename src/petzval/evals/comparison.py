"""`petzval compare`: the same prompts and seeds from several models or step counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petzval.errors import RequestError
from petzval.evals.drawing import Painter, PipelinePainter, Progress, draw_missing, drawings
from petzval.evals.likeness import (
    Components,
    Estimate,
    Vectors,
    features,
    frechet_distance,
    kernel_distance,
    over_prompts,
    sharpness,
    variety,
)
from petzval.evals.questions import Question, questions
from petzval.evals.store import PictureStore
from petzval.evals.verdicts import Row, judge_all
from petzval.inference.pipeline import Pipeline
from petzval.inference.recipe import MAX_GUIDANCE, MAX_STEPS
from petzval.resolution import Resolution, resolve
from petzval.scoring.backbone import PictureFeatures
from petzval.scoring.scorer import Picture, Scorer

PICTURES, SCORES = "pictures", "scores"

RealPicture = Callable[[Question, int, Resolution], Picture]
"""A picture that shows what a question asks: (question, number, size) -> picture."""


_Measure = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model as it is to be run.

    Attributes:
        model: name or folder.
        steps, guidance: None takes the model's own.
    """

    model: str
    steps: int | None = None
    guidance: float | None = None

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Of "MODEL", "MODEL@STEPS" or "MODEL@STEPS@GUIDANCE".

        Raises:
            RequestError: the text has another form, or a number is out of range.
        """
        model, *numbers = text.split("@")
        wrong = RequestError(
            f"{text[:200]!r} is no candidate", "write MODEL, MODEL@STEPS or MODEL@STEPS@GUIDANCE"
        )
        try:
            steps = int(numbers[0]) if numbers else None
            guidance = float(numbers[1]) if len(numbers) > 1 else None
        except ValueError:
            raise wrong from None
        if not model or len(numbers) > 2:
            raise wrong
        if steps is not None and not 1 <= steps <= MAX_STEPS:
            raise RequestError(f"{text[:200]!r}: steps must be 1 to {MAX_STEPS}")
        if guidance is not None and not 0 <= guidance <= MAX_GUIDANCE:
            raise RequestError(f"{text[:200]!r}: guidance must be 0 to {MAX_GUIDANCE:g}")
        return cls(model=model, steps=steps, guidance=guidance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All pictures of one candidate in one size.

    Attributes:
        label: "mini, 20 steps", as tables show it.
        painter: everything its pictures depend on besides prompt and seed.
        rows: its judged pictures, in the order asked.
        vectors: their features.
        sharpness: of each picture.
        shown: the first prompts' first pictures.
    """

    label: str
    resolution: Resolution
    painter: Mapping[str, Any]
    rows: tuple[Row, ...]
    vectors: Vectors
    sharpness: NDArray[np.float64]
    shown: tuple[Picture, ...]

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [row.prompt_id for row in self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a sample amounts to; one line of a comparison.

    Attributes:
        checkpoint: its identity.
        measures: values with their standard errors over prompts. `right`: share of pictures on
            which everything asked is right; `fulfilled`: share of the things asked that are right,
            averaged over pictures; `frechet`, `kernel`: distance from right pictures, where there
            were some; `variety`: mean distance between two pictures of a prompt, where it has two;
            `sharpness`.
        ratios: the same as multiples of the reference's, which is the first candidate's in the
            same size; none of `kernel`, which may be zero.
    """

    label: str
    checkpoint: str
    steps: int
    guidance: float
    height: int
    width: int
    num_prompts: int
    num_pictures: int
    measures: Mapping[str, Estimate]
    ratios: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Entries and the samples that they sum up, in the same order."""

    entries: tuple[Entry, ...]
    samples: tuple[Sample, ...]


def compare(
    candidates: Sequence[Candidate],
    *,
    out: Path,
    scorer: Scorer,
    network: PictureFeatures,
    real: RealPicture | None = None,
    sizes: Sequence[str | None] = (None,),
    limit: int | None = None,
    num_images: int = 3,
    seed: int = 0,
    device: str = "auto",
    num_shown: int = 8,
    progress: Progress | None = None,
) -> Comparison:
    """Draw, judge and measure; what is in `out` already is used again.

    Args:
        candidates: the first is the reference of all ratios.
        out: folder of pictures and verdicts.
        real: makes the pictures that distances are measured from; None leaves distances out.
        sizes: "WIDTHxHEIGHT"; None is a model's own square.
        limit: prompts; every prefix of the list is a fair mixture.
        num_images: pictures per prompt, with seeds counting up from `seed`.
        num_shown: first pictures of each sample that are kept for a grid.

    Raises:
        RequestError: fewer than one candidate, or one that cannot be loaded.
        DataError: a stored picture is damaged.
    """
    if not candidates:
        raise RequestError("nothing to compare", "name a candidate, such as mini@20")
    asked = questions(["en"], {"en": limit})
    entries: list[Entry] = []
    drawn: list[Sample] = []
    for group in _painters(candidates, sizes, device):
        samples = [
            sample(
                painter,
                asked,
                out=out,
                scorer=scorer,
                network=network,
                num_images=num_images,
                seed=seed,
                num_shown=num_shown,
                progress=progress,
            )
            for painter in group
        ]
        truth = None
        if real is not None:
            truth = _truth(real, asked, samples[0].resolution, network, num_images, progress)
        entries.extend(measured(samples, truth))
        drawn.extend(samples)
    return Comparison(entries=tuple(entries), samples=tuple(drawn))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPainter:
    """A painter as tables call it."""

    label: str
    resolution: Resolution
    painter: Painter


def _painters(
    candidates: Sequence[Candidate], sizes: Sequence[str | None], device: str
) -> list[list[NamedPainter]]:
    """The painters of each size; a model is loaded once."""
    loaded = {
        model: Pipeline.load(model, device=device)
        for model in dict.fromkeys(one.model for one in candidates)
    }
    return [[_painter(loaded[one.model], one, size) for one in candidates] for size in sizes]


def _painter(pipeline: Pipeline, candidate: Candidate, size: str | None) -> NamedPainter:
    painter = PipelinePainter(
        pipeline, size=size, steps=candidate.steps, guidance=candidate.guidance
    )
    identity = painter.identity
    guidance = float(identity["guidance"])
    label = f"{pipeline.name}, {identity['steps']} steps"
    return NamedPainter(
        label=label if guidance == 1 else f"{label}, guidance {guidance:g}",
        resolution=resolve(size=size, base=pipeline.defaults.base),
        painter=painter,
    )


def sample(
    named: NamedPainter,
    asked: Sequence[Question],
    *,
    out: Path,
    scorer: Scorer,
    network: PictureFeatures,
    num_images: int = 3,
    seed: int = 0,
    num_shown: int = 8,
    progress: Progress | None = None,
) -> Sample:
    """Draw and judge with any painter, scorer and features."""
    painter = named.painter
    told = _told(progress, f"{named.label}, {named.resolution}")
    wanted = drawings(asked, painter.identity, num_images=num_images, seed=seed)
    store = PictureStore(out / PICTURES)
    draw_missing(wanted, painter, store, told)
    rows = judge_all(wanted, store.get, scorer, out / SCORES / f"{wanted[0].key[:16]}.jsonl", told)
    pictures = [store.get(one.key) for one in wanted]
    first = [p for one, p in zip(wanted, pictures, strict=True) if one.seed == seed]
    return Sample(
        label=named.label,
        resolution=named.resolution,
        painter=painter.identity,
        rows=tuple(rows),
        vectors=features(pictures, network),
        sharpness=np.array([sharpness(picture) for picture in pictures]),
        shown=tuple(first[:num_shown]),
    )


def _told(progress: Progress | None, label: str) -> Progress | None:
    if progress is None:
        return None

    def tell(stage: str, done: int, total: int) -> None:
        progress(f"{label}: {stage}", done, total)

    return tell


def _truth(
    real: RealPicture,
    asked: Sequence[Question],
    resolution: Resolution,
    network: PictureFeatures,
    num_images: int,
    progress: Progress | None,
) -> tuple[Vectors, list[str]]:
    """Features of right pictures, as many a prompt as there are drawn ones, and their prompts."""
    pictures: list[Picture] = []
    prompts: list[str] = []
    for number, question in enumerate(asked):
        if progress is not None:
            progress(f"right pictures, {resolution}", number, len(asked))
        for turn in range(num_images):
            pictures.append(real(question, number + turn * len(asked), resolution))
            prompts.append(question.prompt_id)
    return features(pictures, network), prompts


def measured(samples: Sequence[Sample], truth: tuple[Vectors, list[str]] | None) -> list[Entry]:
    """Entries of samples of the same prompts; the first is the reference of the ratios."""
    functions = [_functions(sample, truth) for sample in samples]
    return [
        _entry(sample, own, functions[0]) for sample, own in zip(samples, functions, strict=True)
    ]


def _entry(sample: Sample, own: Mapping[str, _Measure], reference: Mapping[str, _Measure]) -> Entry:
    prompts = sample.prompts
    return Entry(
        label=sample.label,
        checkpoint=str(sample.painter.get("checkpoint", "")),
        steps=int(sample.painter.get("steps", 0)),
        guidance=float(sample.painter.get("guidance", 1)),
        height=sample.resolution.height,
        width=sample.resolution.width,
        num_prompts=len(set(prompts)),
        num_pictures=len(prompts),
        measures={name: over_prompts(measure, prompts) for name, measure in own.items()},
        ratios={
            name: over_prompts(_ratio(measure, reference[name]), prompts)
            for name, measure in own.items()
            if name != "kernel"
        },
    )


def _ratio(top: _Measure, bottom: _Measure) -> _Measure:
    def ratio(chosen: NDArray[np.int64]) -> float:
        below = bottom(chosen)
        return top(chosen) / below if below else math.nan

    return ratio


def _functions(sample: Sample, truth: tuple[Vectors, list[str]] | None) -> dict[str, _Measure]:
    """Name -> measure of chosen pictures."""
    right = np.array([float(row.passed) for row in sample.rows])
    fulfilled = np.array([np.mean(list(row.checks.values())) for row in sample.rows])
    prompts = np.array(sample.prompts)
    found: dict[str, _Measure] = {
        "right": lambda chosen: float(right[chosen].mean()),
        "fulfilled": lambda chosen: float(fulfilled[chosen].mean()),
        "sharpness": lambda chosen: float(sample.sharpness[chosen].mean()),
    }
    if len(set(prompts)) < len(prompts):
        each = variety(sample.vectors, sample.prompts)
        values = np.array([each[prompt] for prompt in sample.prompts])
        found["variety"] = lambda chosen: float(values[chosen].mean())
    if truth is not None:
        vectors, real_prompts = truth
        names = np.array(real_prompts)
        components = Components.of(vectors)
        projected, centred = components(sample.vectors), components(vectors)

        def beside(chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
            """The right pictures of the same prompts."""
            return np.isin(names, prompts[chosen])

        found["frechet"] = lambda chosen: frechet_distance(
            projected[chosen], centred[beside(chosen)]
        )
        found["kernel"] = lambda chosen: kernel_distance(
            sample.vectors[chosen], vectors[beside(chosen)]
        )
    return found
