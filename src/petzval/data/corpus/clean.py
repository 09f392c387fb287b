"""The cleaning of a corpus: the paper's nine steps, in its order (Lens paper, section 2).

Departures from the paper:

1. Steps drop nothing themselves: each writes a verdict beside the picture, all verdicts stand
   beside one another, and whoever reads the corpus takes what no step dropped. The yields count a
   picture at the first step that drops it, as in a chain.
2. The models of the NSFW, aesthetic and watermark steps are other ones, or a user's (`learned`).
3. The paper leaves open all thresholds but three (area, aesthetics, cosine); the others are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from petzval.data.corpus.dedupe import Duplicates, DuplicateSettings
from petzval.data.corpus.embedding import Embed, EmbeddingSettings
from petzval.data.corpus.filters import (
    MIN_AREA,
    Band,
    BandFilter,
    Decodes,
    Measure,
    MeasureSettings,
)
from petzval.data.corpus.learned import MIN_AESTHETIC, LearnedFilter, OpenNsfw
from petzval.data.corpus.local_scorers import scorer_from
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.stages import Engine, Report, Stage, run_corpus_stage, run_stage
from petzval.data.corpus.yields import Yield, yields
from petzval.errors import DataError

STEPS = (
    "decodes", "area", "nsfw", "aesthetic", "watermark", "clarity", "entropy", "luminance",
    "duplicates",
)  # fmt: skip
"""The nine, in the order of the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningSettings:
    """Thresholds and weights of the nine steps; the defaults are for photographs.

    Attributes:
        measure: how clarity is measured.
        area: pixels; from the paper.
        nsfw: probability of open_nsfw. 0.5 is where its two classes meet; its makers call what is
            above 0.8 likely and below 0.2 unlikely.
        aesthetic: of the predictor whose weights are named; from the paper.
        watermark: probability by the detector whose weights are named.
        clarity: variance of the Laplacian at 512 pixels. Texture and sharp edges over the picture
            give hundreds; after a blur of three pixels at that size less than 20 is left.
        entropy: bits of 8. Two are what four shades of grey in equal parts have: a page, a logo.
        luminance: mean of V. Outside, a picture is all but black, or all but white.
        embedding, duplicates: see `EmbeddingSettings` and `DuplicateSettings`.
        nsfw_weights, aesthetic_weights, watermark_weights: files as `local_scorers` describes.
            Without one, NSFW uses the packaged model, and the other two do not run.
    """

    measure: MeasureSettings = field(default_factory=MeasureSettings)
    area: Band = field(default_factory=lambda: Band(minimum=MIN_AREA))
    nsfw: Band = field(default_factory=lambda: Band(maximum=0.5))
    aesthetic: Band = field(default_factory=lambda: Band(minimum=MIN_AESTHETIC))
    watermark: Band = field(default_factory=lambda: Band(maximum=0.5))
    clarity: Band = field(default_factory=lambda: Band(minimum=20.0))
    entropy: Band = field(default_factory=lambda: Band(minimum=2.0))
    luminance: Band = field(default_factory=lambda: Band(minimum=0.05, maximum=0.98))
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    nsfw_weights: Path | None = None
    aesthetic_weights: Path | None = None
    watermark_weights: Path | None = None


def photographs() -> CleaningSettings:
    """The defaults."""
    return CleaningSettings()


def illustrations() -> CleaningSettings:
    """For drawings on plain grounds, like the packaged scenes.

    A small thing on a plain ground is mostly one shade, and its few edges are a small share of the
    picture: of 250 packaged scenes the least clear has 0.06, the least entropy is 0.28 bits, and
    the brightest has a mean V of 0.991. Only what is blank falls outside.
    """
    return CleaningSettings(
        clarity=Band(minimum=0.02), entropy=Band(minimum=0.1),
        luminance=Band(minimum=0.03, maximum=0.997),
    )  # fmt: skip


PRESETS = {"photographs": photographs, "illustrations": illustrations}


def clean(
    corpus: Corpus,
    settings: CleaningSettings,
    *,
    only: Sequence[str] = (),
    engine: Engine = "local",
    workers: int = 1,
    report: Report | None = None,
) -> list[Yield]:
    """Run the cleaning steps, or go on with them, and count what each leaves.

    Args:
        corpus: its columns are written.
        settings: see `photographs` and `illustrations`.
        only: steps to run, with those that they need; none means all nine.
        engine, workers: see `run_stage`, for the stages that open pictures; the others, and the
            search for near-duplicates, run in this process.
        report: told of progress.

    Raises:
        DataError: a step is unknown, the corpus is empty, or a weights file cannot be used.
    """
    for step in only:
        if step not in STEPS:
            raise DataError(f"unknown step {step!r}", f"steps: {', '.join(STEPS)}")
    if not corpus.parts():
        raise DataError(
            f"{corpus.folder}: the corpus has no pictures",
            f"petzval data import SOURCE --into {corpus.folder}",
        )
    stages = stages_of(settings)
    duplicates = Duplicates(judged_by=STEPS[:-1], settings=settings.duplicates)
    wanted = set(only or STEPS)
    if duplicates.name in wanted:
        wanted |= {*STEPS, "embedding"}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted |= set(stage.needs)
    for stage in stages:
        if stage.name not in wanted:
            continue
        if _opens_pictures(stage):
            run_stage(corpus, stage, engine=engine, workers=workers, report=report)
        else:
            run_stage(corpus, stage, report=report)
    if duplicates.name in wanted:
        run_corpus_stage(corpus, duplicates, report=report)
    return yields(corpus, [step for step in STEPS if step in wanted])


def _opens_pictures(stage: Stage) -> bool:
    """Whether a stage is worth processes of its own; the others read a few columns."""
    if isinstance(stage, LearnedFilter):
        return stage.scorer is not None
    return isinstance(stage, Measure | Embed)


def stages_of(settings: CleaningSettings) -> list[Stage]:
    """All stages but the last, each after those it needs.

    Raises:
        DataError: a weights file is absent or of an unknown form.
    """
    local = {
        "nsfw": settings.nsfw_weights,
        "aesthetic": settings.aesthetic_weights,
        "watermark": settings.watermark_weights,
    }
    scorers = {
        step: scorer_from(path, settings.embedding)
        for step, path in local.items()
        if path is not None
    }
    if "nsfw" not in scorers and OpenNsfw.is_installed():
        scorers["nsfw"] = OpenNsfw()
    return [
        Measure(settings=settings.measure),
        Decodes(),
        BandFilter(name="area", settings=settings.area),
        BandFilter(name="clarity", settings=settings.clarity),
        BandFilter(name="entropy", settings=settings.entropy),
        BandFilter(name="luminance", settings=settings.luminance),
        Embed(settings=settings.embedding),
        LearnedFilter(
            name="nsfw", band=settings.nsfw, scorer=scorers.get("nsfw"),
            missing="pip install 'petzval[data]', or name weights with --nsfw-weights FILE",
        ),
        LearnedFilter(
            name="aesthetic", band=settings.aesthetic, scorer=scorers.get("aesthetic"),
            missing="no weights ship; name some with --aesthetic-weights FILE",
        ),
        LearnedFilter(
            name="watermark", band=settings.watermark, scorer=scorers.get("watermark"),
            missing="no weights ship; name some with --watermark-weights FILE",
        ),
    ]  # fmt: skip
