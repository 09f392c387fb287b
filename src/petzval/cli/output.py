"""Where pictures go: a named file, numbered files, a folder with names from the prompt, stdout."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from petzval.cli.console import results
from petzval.errors import RequestError
from petzval.inference.image import FORMATS, format_of, output_error
from petzval.inference.paths import mode, user_path
from petzval.inference.request import GeneratedImage

STDOUT = "-"
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_STEM_LENGTH = 48
_OTHER_SUFFIXES = frozenset(
    {".avif", ".bmp", ".exr", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pdf", ".ppm"}
    | {".psd", ".svg", ".tga", ".tif", ".tiff"}
)
"""Of pictures that cannot be written here: surely no folders."""


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

    def prepare(self) -> None:
        """Make the folder, so that what the system refuses is known before pictures are drawn.

        Raises:
            RequestError: it cannot be made, or takes no files.
        """
        if self.to_stdout:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.folder, error) from error
        check_folder(self.folder)

    def write(self, image: GeneratedImage) -> Path | None:
        """Save one picture and return where; None for stdout."""
        if self.to_stdout:
            with results():
                sys.stdout.buffer.write(image.encode(self.format))
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
    """Decide before any work is done, and refuse what cannot be written; nothing is made yet.

    Args:
        out: a folder, a file with a known suffix, or "-" for stdout.
        format: the one asked for; else the suffix decides, else PNG.

    Raises:
        RequestError: unknown format, a suffix of another kind of picture, several pictures for
            stdout, no stdout at all, or no permission to write.
    """
    if format is not None and format not in _SUFFIXES:
        raise RequestError(f"unknown format {format[:40]!r}", "formats are png, jpeg, webp")
    if out == STDOUT:
        if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise RequestError("stdout is closed, so no picture can go there", "name a file")
        if num_images > 1:
            raise RequestError(f"stdout takes one picture, not {num_images}", "name a folder")
        return Output(
            folder=Path(), file=None, format=format or "png", num_images=1, to_stdout=True
        )
    path = user_path(out)
    suffix, is_folder = path.suffix.lower(), stat.S_ISDIR(_mode(path))
    if suffix in FORMATS and not is_folder:
        named = format_of(path)
        if format not in (None, named):
            raise RequestError(
                f"{path.name} is named as {named}, but {format} is asked for",
                "leave --format out, or change the name",
            )
        check_folder(path.parent)
        return Output(folder=path.parent, file=path, format=named, num_images=num_images)
    if suffix in _OTHER_SUFFIXES and not is_folder:
        raise RequestError(
            f"no {suffix} files are written, as {path.name[:40]!r} asks for",
            f"end it in {', '.join(FORMATS)}; for a folder of this name, make it first",
        )
    check_folder(path)
    return Output(folder=path, file=None, format=format or "png", num_images=num_images)


def check_folder(folder: Path) -> None:
    """See that a folder can be made here and takes files, without making it.

    Raises:
        RequestError: it or a part of its path is a file, is read-only, or is no legal name.
    """
    for place in (folder, *folder.parents):
        if stat.S_ISDIR(_mode(place)):
            if os.access(place, os.W_OK | os.X_OK):
                return
            raise RequestError(f"{place} is read-only", "choose another place with --out")
        if _mode(place):
            raise RequestError(
                f"{place} is a file, not a folder", "choose another place with --out"
            )


def _mode(path: Path) -> int:
    """What is there, 0 for nothing; a path that cannot even be looked at is refused."""
    try:
        return mode(path) or 0
    except OSError as error:
        raise output_error(path, error) from error


def _slug(prompt: str) -> str:
    """A file name's stem from the words of a prompt, in any script."""
    words = re.sub(r"\W+", "-", prompt[: 4 * _STEM_LENGTH].lower()).strip("-_")
    return words[:_STEM_LENGTH].rstrip("-_") or "picture"
