"""Where pictures go: a named file, numbered files, a folder with names from the prompt, stdout."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from petzval.errors import RequestError
from petzval.inference.image import FORMATS, format_of, output_error
from petzval.inference.request import GeneratedImage

STDOUT = "-"
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_STEM_LENGTH = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The decided destination of a call's pictures.

    Attributes:
        folder: made when the first picture is written.
        file: the one file that was named; its stem is numbered where there are several pictures.
        format: "png", "jpeg" or "webp".
        to_stdout: the bytes of the one picture go to stdout.
    """

    folder: Path
    file: Path | None
    format: str
    num_images: int
    to_stdout: bool = False

    def write(self, image: GeneratedImage) -> Path | None:
        """Save one picture and return where; None for stdout."""
        if self.to_stdout:
            sys.stdout.buffer.write(image.encode(self.format))
            sys.stdout.buffer.flush()
            return None
        return image.save(self._path(image), self.format)

    def _path(self, image: GeneratedImage) -> Path:
        if self.file is not None:
            if self.num_images == 1:
                return self.file
            return self.file.with_stem(f"{self.file.stem}-{image.index + 1}")
        stem = f"{_slug(image.recipe.prompt)}-{image.recipe.seed}"
        suffix, number = _SUFFIXES[self.format], 1
        path = self.folder / f"{stem}{suffix}"
        while path.exists():
            number += 1
            path = self.folder / f"{stem}-{number}{suffix}"
        return path


def choose_output(out: str, format: str | None, num_images: int) -> Output:
    """Decide before any work is done, and refuse what cannot be written.

    Args:
        out: a folder, a file with a known suffix, or "-" for stdout.
        format: the one asked for; else the suffix decides, else PNG.

    Raises:
        RequestError: unknown format, several pictures for stdout, or no permission to write.
    """
    if format is not None and format not in _SUFFIXES:
        raise RequestError(f"unknown format {format[:40]!r}", "formats are png, jpeg, webp")
    if out == STDOUT:
        if num_images > 1:
            raise RequestError(f"stdout takes one picture, not {num_images}", "name a folder")
        return Output(
            folder=Path(), file=None, format=format or "png", num_images=1, to_stdout=True
        )
    path = Path(out).expanduser()
    if path.suffix.lower() in FORMATS and not path.is_dir():
        named = format_of(path)
        if format not in (None, named):
            raise RequestError(
                f"{path.name} is named as {named}, but {format} is asked for",
                "leave --format out, or change the name",
            )
        _check_writable(path.parent)
        return Output(folder=path.parent, file=path, format=named, num_images=num_images)
    _check_writable(path)
    return Output(folder=path, file=None, format=format or "png", num_images=num_images)


def _check_writable(folder: Path) -> None:
    """Make the folder and see that it takes files, before minutes are spent on a picture."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(
            f"{folder} is a file, not a folder",
            f"name a new file with a suffix ({', '.join(FORMATS)}), or a folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{folder} is read-only", "choose another place with --out")


def _slug(prompt: str) -> str:
    """A file name's stem from the words of a prompt, in any script."""
    words = re.sub(r"\W+", "-", prompt[: 4 * _STEM_LENGTH].lower()).strip("-_")
    return words[:_STEM_LENGTH].rstrip("-_") or "picture"
