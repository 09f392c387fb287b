"""The analytic cleaning steps: measured once, judged apart.

`Measure` decodes a picture, the dear part, and writes what there is to know of its pixels. The
steps read those columns, so that another threshold is a matter of milliseconds. The paper names
the measures and the least area; where it leaves a threshold open, the default is ours and its
reason stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image, ImageChops

from petzval.config import check_ranges, setting
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.verdicts import NOT_JUDGED, Verdict, verdict_table
from petzval.data.decode import RefusedPicture

Grey = UInt8[np.ndarray, "height width"]

MIN_AREA = 384.0 * 384.0
"""Pixels; from the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How pictures are measured.

    Attributes:
        clarity_side: the longer side, in pixels, to which grey is scaled before its Laplacian is
            taken: an edge's sharpness is then a share of the picture, whatever its resolution.
    """

    clarity_side: int = setting(512, minimum=16, maximum=8192)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Scores that are kept: `minimum` to `maximum`, both ends included; None leaves one open."""

    minimum: float | None = None
    maximum: float | None = None

    def judge(self, score: float) -> Verdict:
        """Keep or drop, with the reason in numbers."""
        if self.minimum is not None and score < self.minimum:
            return Verdict(score=score, keep=False, reason=f"below {self.minimum:g}")
        if self.maximum is not None and score > self.maximum:
            return Verdict(score=score, keep=False, reason=f"above {self.maximum:g}")
        return Verdict(score=score, keep=True)


# ── measures ─────────────────────────────────────────────────────────────────────────────────────


def grey_of(image: Image.Image) -> Grey:
    """Luma of ITU-R 601, 0 to 255, of an RGB picture."""
    return np.asarray(image.convert("L"))


def clarity(grey: Grey, side: int) -> float:
    """Variance of the Laplacian of grey (0 to 255) whose longer side is scaled to `side` pixels.

    The Laplacian is the sum of the four neighbours less four times the centre, inside the border.
    """
    height, width = grey.shape
    scale = side / max(height, width)
    size = (max(3, round(width * scale)), max(3, round(height * scale)))
    scaled = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    g = np.asarray(scaled).astype(np.int16)
    neighbours = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:]
    return float(np.var(neighbours - 4 * g[1:-1, 1:-1], dtype=np.float64))


def entropy(grey: Grey) -> float:
    """Shannon entropy of the histogram of 256 grey levels, in bits, 0 to 8."""
    counts = np.array(Image.fromarray(grey).histogram(), np.float64)
    shares = counts[counts > 0] / counts.sum()
    # Minus zero is what the formula gives for one level; the record should say 0.
    return abs(float((shares * np.log2(shares)).sum()))


def luminance(image: Image.Image) -> float:
    """Mean of V, the largest of R, G and B, as a share of 255, of an RGB picture."""
    red, green, blue = image.split()
    value = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    counts = np.array(value.histogram(), np.float64)
    return float(counts @ np.arange(256) / (255 * counts.sum()))


_MEASURED = pa.schema(
    [
        ("readable", pa.bool_()),
        ("refusal", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("area", pa.int64()),
        ("form", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("clarity", pa.float64()),
        ("entropy", pa.float64()),
        ("luminance", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Decodes each picture once. Columns: see `_MEASURED`; null where it could not be read.

    Height and width are pixels of the upright picture.
    """

    settings: MeasureSettings = field(default_factory=MeasureSettings)
    name: str = "pixels"
    needs: tuple[str, ...] = ()
    version: int = 1

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """One row a picture."""
        measured = [self._measure(row, pictures) for row in rows.to_pylist()]
        return pa.Table.from_pylist(measured, schema=_MEASURED)

    def _measure(self, row: dict[str, Any], pictures: PictureReader) -> dict[str, Any]:
        try:
            picture = pictures.load(row)
        except RefusedPicture as error:
            return {"readable": False, "refusal": error.reason}
        image = Image.fromarray(picture.pixels)
        grey = grey_of(image)
        return {
            "readable": True,
            "refusal": "",
            "height": picture.height,
            "width": picture.width,
            "area": picture.height * picture.width,
            "form": picture.form,
            "flags": list(picture.flags),
            "clarity": clarity(grey, self.settings.clarity_side),
            "entropy": entropy(grey),
            "luminance": luminance(image),
        }


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Decodes:
    """Keeps what can be read; the reason is the reader's."""

    settings: Band = field(default_factory=Band)
    name: str = "decodes"
    needs: tuple[str, ...] = ("pixels",)
    version: int = 1

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """Score 1 or 0."""
        readable, refusals = rows["pixels.readable"], rows["pixels.refusal"]
        return verdict_table(
            [
                Verdict(score=float(ok), keep=ok, reason=reason)
                for ok, reason in zip(readable.to_pylist(), refusals.to_pylist(), strict=True)
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BandFilter:
    """Keeps pictures whose measure of this name lies in a band."""

    name: str
    settings: Band
    needs: tuple[str, ...] = ("pixels",)
    version: int = 1

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """Score as measured; a picture that cannot be read is not judged."""
        unread = Verdict(score=None, keep=None, reason=f"{NOT_JUDGED}: unreadable")
        scores = rows[f"pixels.{self.name}"].to_pylist()
        return verdict_table(
            [unread if score is None else self.settings.judge(float(score)) for score in scores]
        )
