"""Read a picture that anybody may have made, whatever it turns out to be.

Nothing about a file is trusted: not its name, its size, its header or its end. What cannot be used
is refused with a reason (`RefusedPicture`); what is used after repair carries flags that say so.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from petzval.data.file_forms import FORM_OF_SUFFIX, has_trailing_data, num_scans, sniff

Pixels = UInt8[np.ndarray, "_height _width 3"]
"""RGB. The underscores let the pictures of one call differ in size."""

TRANSPOSES: Mapping[int, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""

_ORIENTATION = 0x0112


class RefusedPicture(Exception):
    """A picture that cannot be used.

    Args:
        reason: one line for the record; holds nothing that differs between machines or runs.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is more than a picture. The defaults are ours.

    Attributes:
        max_file_bytes: larger files are not read.
        max_pixels: height times width; checked in the header, before memory is spent. 2 to the 27
            is 134 megapixels, 0.4 GB as RGB.
        max_side: pixels; a strip of one million by ten is no picture.
        max_scans: of a progressive JPEG. Each scan costs a pass over the whole picture, ten or so
            are usual, and a small file can hold thousands.
    """

    max_file_bytes: int = 256 << 20
    max_pixels: int = 1 << 27
    max_side: int = 32_768
    max_scans: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A picture as it is meant to be seen.

    Attributes:
        pixels: RGB, upright, alpha laid on white.
        form: JPEG, PNG, WEBP, GIF, BMP or TIFF: what the bytes are, whatever the name says.
        flags: sorted, of: 16-bit, alpha, animated (the first frame is taken), bad-exif, cmyk,
            grey, multi-picture (the first is taken), palette, rotated (as its EXIF asks),
            trailing-data, wrong-extension.
    """

    pixels: Pixels = field(repr=False)
    form: str
    flags: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Pixels."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.pixels.shape[1]


def read_bytes(path: Path, limits: Limits, offset: int = 0, num_bytes: int | None = None) -> bytes:
    """Bytes of a plain file; all of them where `num_bytes` is None.

    Raises:
        RefusedPicture: it is absent, a folder, a device or a pipe, too large, or ends too early.
    """
    try:
        # Without waiting: opening a pipe that nobody writes to would never return.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError)
        raise RefusedPicture("the file is gone" if gone else "the file cannot be opened") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedPicture("not a plain file")
        wanted = found.st_size if num_bytes is None else num_bytes
        if wanted > limits.max_file_bytes:
            raise RefusedPicture(f"more than {limits.max_file_bytes} bytes")
        with os.fdopen(os.dup(handle), "rb") as file:
            file.seek(offset)
            data = file.read(wanted)
    except OSError as error:
        raise RefusedPicture("the file cannot be read") from error
    finally:
        os.close(handle)
    if len(data) != wanted:
        raise RefusedPicture("the file is shorter than when it was imported")
    return data


def decode(data: bytes, name: str = "", limits: Limits = Limits()) -> Decoded:  # noqa: B008
    """Decode a picture of any allowed form, found by its content.

    Args:
        data: the whole file.
        name: of the file; its extension is compared with the content, and nothing else is done
            with it.
        limits: checked before memory is spent.

    Raises:
        RefusedPicture: with the reason.
    """
    form = sniff(data)
    if form is None:
        raise RefusedPicture("not a picture of an allowed form" if data else "0 bytes")
    if form == "JPEG" and num_scans(data) > limits.max_scans:
        raise RefusedPicture(f"more than {limits.max_scans} scans")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow has to say of damaged metadata
            with Image.open(BytesIO(data), formats=[form]) as image:
                _check_size(image, limits)
                image.load()
                flags = _flags_of(image)
                upright, turned = _upright(image)
                pixels = np.asarray(_to_rgb(upright, flags))
    except RefusedPicture:
        raise
    except Image.DecompressionBombError as error:
        raise RefusedPicture(f"more than {limits.max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise RefusedPicture(f"damaged header of {form}") from error
    except MemoryError as error:
        raise RefusedPicture("needs more memory than there is") from error
    except Exception as error:
        # Decoders answer damage with a dozen kinds of exception; a picture must not end a stage.
        raise RefusedPicture(f"damaged {form} ({type(error).__name__})") from error
    suffix = PurePosixPath(name).suffix.lower()
    if suffix and FORM_OF_SUFFIX.get(suffix) != form:
        flags.add("wrong-extension")
    if "multi-picture" not in flags and has_trailing_data(data, form):
        flags.add("trailing-data")
    return Decoded(pixels=pixels, form=form, flags=tuple(sorted(flags | turned)))


def _check_size(image: Image.Image, limits: Limits) -> None:
    if image.width * image.height > limits.max_pixels:
        raise RefusedPicture(f"more than {limits.max_pixels} pixels")
    if max(image.size) > limits.max_side:
        raise RefusedPicture(f"a side of more than {limits.max_side} pixels")


def _flags_of(image: Image.Image) -> set[str]:
    flags: set[str] = set()
    if image.format == "MPO":
        flags.add("multi-picture")
    elif getattr(image, "is_animated", False):
        flags.add("multi-picture" if image.format == "TIFF" else "animated")
    if image.mode == "CMYK":
        flags.add("cmyk")
    elif image.mode in {"P", "PA"}:
        flags.add("palette")
    elif image.mode in {"1", "L", "LA", "La"}:
        flags.add("grey")
    return flags


def _upright(image: Image.Image) -> tuple[Image.Image, set[str]]:
    """The picture turned as its EXIF asks, and flags about that."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:
        return image, {"bad-exif"}
    if not isinstance(orientation, int) or orientation not in TRANSPOSES:
        return image, set()
    return image.transpose(TRANSPOSES[orientation]), {"rotated"}


def _to_rgb(image: Image.Image, flags: set[str]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise RefusedPicture("samples are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        flags |= {"16-bit", "grey"}
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray((wide // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema()[0] == 255:
        return layered.convert("RGB")
    flags.add("alpha")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB")
