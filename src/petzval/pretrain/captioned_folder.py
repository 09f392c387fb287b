"""A person's folder of pictures with captions beside them: `cat.png` and `cat.txt`.

Anything may lie in such a folder, so every file is looked at before training begins, and the first
one that cannot be used is named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from petzval.data.decode import Decoded, Limits, RefusedPicture, decode, read_bytes
from petzval.errors import DataError
from petzval.resolution import PRESETS, Resolution, nearest_in_aspect

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What counts as a picture of the folder; how it is read, its content decides."""

MAX_PICTURES = 100_000
LIMITS = Limits()
MAX_CAPTION_BYTES = 1 << 16

_HINT = "take it out of the folder, or save it again as a PNG of at most 134 megapixels"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedPicture:
    """A picture that has been looked at, but not kept.

    Attributes:
        file: where it lies.
        caption: of its sidecar, or the trigger word.
        height, width: as it is meant to be seen (EXIF rotation applied), in pixels.
        sha256: of the file.
        has_sidecar: False where the trigger word stands for a caption.
    """

    file: Path
    caption: str
    height: int
    width: int
    sha256: str
    has_sidecar: bool = True


def read_folder(folder: Path, *, trigger: str | None = None) -> list[CaptionedPicture]:
    """All pictures of a folder, by name; subfolders and hidden files are passed over.

    Args:
        folder: holds PNG, JPEG or WebP files, each with its caption in a `.txt` of the same stem.
        trigger: the caption of pictures that have no such file; None refuses them.

    Raises:
        DataError: no such folder, no picture in it, a picture that cannot be read, a caption that
            is absent, blank or not UTF-8; naming the file.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder}: {kind}", "name a folder with pictures and captions")
    if trigger is not None and not trigger.strip():
        raise DataError("the trigger word is blank", "give a word that the captions do not use")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    chosen = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not chosen:
        raise DataError(
            f"{folder}: holds no picture ({len(names)} other files)",
            f"pictures end in {', '.join(SUFFIXES)}",
        )
    if len(chosen) > MAX_PICTURES:
        raise DataError(
            f"{folder}: holds {len(chosen):,} pictures, at most {MAX_PICTURES:,} are read",
            "that many are a corpus: petzval data, petzval pretrain",
        )
    return [_look_at(folder / name, trigger) for name in chosen]


def nearest_preset(height: int, width: int, base: int) -> Resolution:
    """The preset of this family whose aspect ratio is nearest, by its logarithm."""
    return nearest_in_aspect(height, width, PRESETS[base].values())


def crop_loss(picture: CaptionedPicture, resolution: Resolution) -> float:
    """Share of the picture that a crop to this aspect ratio loses."""
    ratio = (picture.width / picture.height) / resolution.aspect
    return 1 - min(ratio, 1 / ratio)


def load_pixels(picture: CaptionedPicture, resolution: Resolution) -> NDArray[np.uint8]:
    """RGB [height, width, 3]: scaled to cover the resolution, what stands out is cut off evenly.

    Transparency is laid on white; of an animation the first frame is taken.

    Raises:
        DataError: it cannot be decoded.
    """
    return cover(_decode(picture.file)[1].pixels, resolution)


def cover(pixels: NDArray[np.uint8], resolution: Resolution) -> NDArray[np.uint8]:
    """RGB [H, W, 3] scaled to cover the resolution, and its middle [height, width, 3]."""
    size = (resolution.width, resolution.height)
    fitted = ImageOps.fit(Image.fromarray(pixels), size, method=Image.Resampling.LANCZOS)
    return np.array(fitted, dtype=np.uint8)


def describe(pictures: Sequence[CaptionedPicture], base: int) -> str:
    """One line: how many pictures, in which buckets, and what the crop costs."""
    fits = [(p, nearest_preset(p.height, p.width, base)) for p in pictures]
    counts = Counter(size for _, size in fits)
    buckets = ", ".join(f"{size} ({count})" for size, count in counts.items())
    worst = max(crop_loss(picture, size) for picture, size in fits)
    small = sum(picture.height * picture.width < s.height * s.width for picture, s in fits)
    without = sum(not picture.has_sidecar for picture in pictures)
    line = f"{len(pictures)} pictures: {buckets}; the crop takes at most {worst:.0%}"
    line += f"; {small} are smaller than that and enlarged" if small else ""
    return line + (f"; {without} captioned by the trigger word" if without else "")


def _look_at(file: Path, trigger: str | None) -> CaptionedPicture:
    sha256, picture = _decode(file)
    caption = _caption(file)
    if caption is None and trigger is None:
        raise DataError(
            f"{file}: has no caption ({file.with_suffix('.txt').name} is absent)",
            "write one beside every picture, or give a trigger word for those without (--trigger)",
        )
    return CaptionedPicture(
        file=file,
        caption=caption or (trigger or "").strip(),
        height=picture.height,
        width=picture.width,
        sha256=sha256,
        has_sidecar=caption is not None,
    )


def _decode(file: Path) -> tuple[str, Decoded]:
    """SHA-256 of the file, and the picture."""
    try:
        content = read_bytes(file, LIMITS)
        return hashlib.sha256(content).hexdigest(), decode(content, file.name, LIMITS)
    except RefusedPicture as error:
        raise DataError(f"{file}: cannot be used: {error.reason}", _HINT) from error


def _caption(picture: Path) -> str | None:
    """The text of the sidecar on one line; None where there is none."""
    file = picture.with_suffix(".txt")
    if not file.exists():
        return None
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_CAPTION_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text", "save it as UTF-8") from error
    if len(content) > MAX_CAPTION_BYTES:
        raise DataError(f"{file}: longer than {MAX_CAPTION_BYTES:,} bytes", "shorten the caption")
    caption = " ".join(text.split())
    if not caption:
        raise DataError(
            f"{file}: the caption is blank", "write one, or delete the file and give --trigger"
        )
    return caption
