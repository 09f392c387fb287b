"""Kept pictures in the formats that callers ask for."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from PIL import Image

from petzval.config import from_mapping
from petzval.inference import image
from petzval.inference.event import PicturePixels
from petzval.inference.recipe import Recipe

Format: TypeAlias = Literal["png", "jpeg", "webp"]

_THUMBNAIL_SIDE = 256


def convert(
    png: bytes, recipe: Mapping[str, Any], format: Format, quality: int | None = None
) -> bytes:
    """A kept picture in another format, its recipe inside; a signature does not come along.

    Args:
        quality: of JPEG and WebP, 0 to 100; None for the best.
    """
    if format == "png":
        return png
    with Image.open(io.BytesIO(png)) as picture:
        known = from_mapping(Recipe, recipe, where="recipe")
        return image.encode(picture, known, format, quality=quality)


def thumbnail(picture: Image.Image) -> bytes:
    """A small WebP for galleries, without a recipe."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def base64_of(pixels: PicturePixels, format: Format, quality: int | None) -> str:
    """A picture-so-far, without a recipe: nothing makes it again."""
    buffer = io.BytesIO()
    options = {} if format == "png" else {"quality": 90 if quality is None else quality}
    Image.fromarray(pixels).save(buffer, format.upper(), **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
