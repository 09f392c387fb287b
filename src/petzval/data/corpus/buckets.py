"""Which size a picture is trained at: the nearest aspect ratio, and no more area than it has.

Three choices, in this order (Lens paper section 3 names the sizes, not the rule):

1. The area is the largest base whose bucket needs no enlarging beyond `max_upscale`; a picture too
   small for all of them takes the smallest base and is marked as enlarged beyond it.
2. Within that base, the nearest bucket by |log(aspect / bucket's aspect)|. A tie, as of a square
   between two neighbours, goes to the bucket that comes first in the list.
3. The picture is scaled until it covers the bucket, and the middle is cut out. What that cuts off
   is the crop loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from petzval.config import check_ranges, setting
from petzval.data.corpus.pictures import PictureReader
from petzval.errors import DataError
from petzval.resolution import PRESETS, Resolution, nearest_in_aspect

CropBox = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the whole picture; fractions of pixels are meant."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A training size, and the base size of its family.

    Its name, such as "512/672x384" (base, then width x height), is what files are called by.
    """

    base: int
    resolution: Resolution

    @property
    def name(self) -> str:
        """ "BASE/WIDTHxHEIGHT"."""
        return f"{self.base}/{self.resolution}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a picture lies in its bucket.

    Attributes:
        scale: bucket pixels per picture pixel; above 1 the picture is enlarged.
        crop_loss: share of the picture's pixels that the crop cuts off, 0 to below 1.
        box: what is left, in pixels of the picture.
    """

    bucket: Bucket
    scale: float
    crop_loss: float
    box: CropBox


def bucket_family(*bases: int) -> tuple[Bucket, ...]:
    """The nine buckets of each base size, smallest base first.

    Raises:
        DataError: a base size has no presets, or there is none.
    """
    unknown = [base for base in bases if base not in PRESETS]
    if unknown or not bases:
        known = ", ".join(str(base) for base in sorted(PRESETS))
        what = f"no buckets for base size {unknown[0]}" if unknown else "no base size is given"
        raise DataError(what, f"base sizes are {known}")
    return tuple(
        Bucket(base, resolution)
        for base in sorted(set(bases))
        for resolution in PRESETS[base].values()
    )


LENS_BUCKETS: tuple[Bucket, ...] = bucket_family(512, 768, 1024)
"""The paper's 27: areas of 512, 768 and 1024 squared in nine aspect ratios."""

MINI_BUCKETS: tuple[Bucket, ...] = bucket_family(128, 256)
"""Eighteen small ones, for training on little machines."""


def nearest_bucket(
    height: int,
    width: int,
    buckets: Sequence[Bucket] = LENS_BUCKETS,
    *,
    max_upscale: float = 1.0,
) -> Fit:
    """The bucket of a picture, and how it lies in it.

    Args:
        height, width: of the picture as it is seen, in pixels, positive.
        buckets: to choose from.
        max_upscale: how far a picture may be enlarged for a larger area; 1 is not at all.

    Raises:
        DataError: the size is not positive, there are no buckets, or `max_upscale` is below 1.
    """
    if height < 1 or width < 1:
        raise DataError(f"a picture of {width}x{height} has no bucket", "sides are positive")
    if not buckets:
        raise DataError("there are no buckets to choose from", "give some, such as LENS_BUCKETS")
    if not max_upscale >= 1:
        raise DataError(f"max_upscale is {max_upscale}", "1 is no enlarging; larger allows some")
    best = [
        Bucket(base, nearest_in_aspect(height, width, family))
        for base, family in sorted(_families(buckets).items(), reverse=True)
    ]
    fits = [fit(height, width, bucket) for bucket in best]
    return next((each for each in fits if each.scale <= max_upscale * (1 + 1e-9)), fits[-1])


def _families(buckets: Sequence[Bucket]) -> dict[int, list[Resolution]]:
    families: dict[int, list[Resolution]] = {}
    for bucket in buckets:
        families.setdefault(bucket.base, []).append(bucket.resolution)
    return families


def fit(height: int, width: int, bucket: Bucket) -> Fit:
    """How a picture of this size lies in `bucket`: scaled until it covers, cut in the middle."""
    size = bucket.resolution
    scale = max(size.height / height, size.width / width)
    kept_height = min(size.height / scale, float(height))
    kept_width = min(size.width / scale, float(width))
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return Fit(
        bucket=bucket,
        scale=scale,
        crop_loss=max(0.0, 1 - kept_height * kept_width / (height * width)),
        box=(left, top, left + kept_width, top + kept_height),
    )


_COLUMNS = pa.schema(
    [
        ("bucket", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("num_tokens", pa.int32()),
        ("scale", pa.float64()),
        ("crop_loss", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSettings:
    """Which buckets there are.

    Attributes:
        bases: base sizes of the families; the default is the paper's 27 buckets.
        max_upscale: how far a picture may be enlarged for a larger area.
    """

    bases: tuple[int, ...] = (512, 768, 1024)
    max_upscale: float = setting(1.0, minimum=1.0, maximum=16.0)

    def __post_init__(self) -> None:
        check_ranges(self)
        bucket_family(*self.bases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The stage that gives every readable picture its bucket.

    Columns: bucket (its name), height, width and num_tokens of the bucket, scale, crop_loss; null
    where the picture cannot be read.
    """

    settings: BucketSettings = field(default_factory=BucketSettings)
    name: str = "buckets"
    needs: tuple[str, ...] = ("pixels",)
    version: int = 1

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """One row a picture."""
        buckets = bucket_family(*self.settings.bases)
        heights, widths = rows["pixels.height"].to_pylist(), rows["pixels.width"].to_pylist()
        found: list[dict[str, object]] = []
        for height, width in zip(heights, widths, strict=True):
            if height is None:
                found.append({})
                continue
            fitted = nearest_bucket(height, width, buckets, max_upscale=self.settings.max_upscale)
            size = fitted.bucket.resolution
            found.append(
                {
                    "bucket": fitted.bucket.name,
                    "height": size.height,
                    "width": size.width,
                    "num_tokens": size.num_tokens,
                    "scale": fitted.scale,
                    "crop_loss": fitted.crop_loss,
                }
            )
        return pa.Table.from_pylist(found, schema=_COLUMNS)
