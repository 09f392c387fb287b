"""A picture as it is trained on: its middle, at its bucket's size, in sRGB, as a file."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from PIL import Image, ImageCms

from petzval.config import check_ranges, setting
from petzval.data.corpus.buckets import Fit
from petzval.data.decode import Decoded

Form: TypeAlias = Literal["jpeg", "png", "webp"]

SUFFIXES: dict[Form, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """How pictures are stored.

    Attributes:
        form: "jpeg" or "webp" with loss, "png" without.
        quality: of the forms with loss. JPEG keeps colour at full resolution.
    """

    form: Form = "jpeg"
    quality: int = setting(95, minimum=1, maximum=100)

    def __post_init__(self) -> None:
        check_ranges(self)


def crop(decoded: Decoded, fit: Fit, profile: bytes = b"") -> Image.Image:
    """What of a picture is trained on.

    Scaling is Lanczos over exact fractions of pixels, with as wide a filter as shrinking needs, so
    that nothing aliases.

    Args:
        decoded: the upright picture.
        fit: its place in its bucket.
        profile: the file's ICC profile; colours are brought to sRGB if it is one of RGB.
    """
    size = fit.bucket.resolution
    image = Image.fromarray(decoded.pixels)
    scaled = image.resize((size.width, size.height), Image.Resampling.LANCZOS, box=fit.box)
    return _in_srgb(scaled, profile) if profile else scaled


def encode(image: Image.Image, settings: FileSettings) -> bytes:
    """The bytes of a file, the same for the same picture and version of Pillow."""
    buffer = io.BytesIO()
    if settings.form == "png":
        image.save(buffer, "PNG", compress_level=6)
    elif settings.form == "webp":
        image.save(buffer, "WEBP", quality=settings.quality, method=4)
    else:
        image.save(buffer, "JPEG", quality=settings.quality, subsampling=0)
    return buffer.getvalue()


def profile_of(data: bytes, form: str) -> bytes:
    """The ICC profile of a file that was decoded before, as this form; empty where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures, damaged metadata: they were let in
        with Image.open(io.BytesIO(data), formats=[form]) as image:
            profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        core: Any = source.profile
        # Profiles of grey and CMYK pictures speak of values that are no longer there.
        if core.xcolor_space.strip() != "RGB":
            return image
        changed = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a damaged profile: the numbers are taken as sRGB, as viewers do
    return image if changed is None else changed
