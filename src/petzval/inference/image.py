"""Pictures as files: PNG, JPEG and WebP with the recipe inside, written whole or not at all.

PNG carries the recipe in an iTXt chunk named `petzval`, JPEG and WebP in EXIF's user comment.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from petzval.errors import RequestError
from petzval.inference.paths import mode
from petzval.inference.recipe import RECIPE_LIMIT_BYTES, Recipe, recipe_from_json

ReadableFile: TypeAlias = io.BufferedReader | io.BytesIO

PNG_KEYWORD = "petzval"
FORMATS: Mapping[str, str] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
"""Suffix -> format."""

QUALITY = 95
"""Of JPEG; WebP is written without loss."""

FILE_LIMIT_BYTES = 256 << 20
"""Far above the largest picture that can be asked for, 4096 x 4096; more is not read."""

CHUNK_LIMIT_BYTES = 4 << 20
"""Of what a PNG says beside its pixels; the decoder would hold several copies of it."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HINT = "only pictures made by petzval do, and only until another program rewrites them"
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_ASCII_COMMENT = b"ASCII\0\0\0"
_JPEG_LIMIT_BYTES = 65_000


def format_of(path: Path) -> str:
    """The format that a file's suffix names.

    Raises:
        RequestError: for an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise RequestError(
            f"cannot tell the format of {path.name!r}", f"end it in {', '.join(FORMATS)}"
        )
    return FORMATS[suffix]


def encode(
    picture: Image.Image, recipe: Recipe, format: str, *, quality: int | None = None
) -> bytes:
    """The bytes of a file; the same picture and recipe give the same bytes.

    Args:
        format: "png", "jpeg" or "webp".
        quality: 0 to 100, of JPEG and WebP; left out, JPEG takes 95 and WebP loses nothing.

    Raises:
        RequestError: unknown format, or the recipe does not fit into this one.
    """
    buffer = io.BytesIO()
    if format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(PNG_KEYWORD, recipe.to_json(), zip=True)
        picture.save(buffer, "PNG", pnginfo=chunks)
    elif format in ("jpeg", "webp"):
        exif = _exif(recipe)
        if format == "webp":
            loss = {"lossless": True} if quality is None else {"quality": quality}
            picture.save(buffer, "WEBP", exif=exif, **loss)
        elif len(exif) > _JPEG_LIMIT_BYTES:
            raise RequestError("the recipe is too long for a JPEG", "write PNG or WebP")
        else:
            quality = QUALITY if quality is None else quality
            picture.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif)
    else:
        known = ", ".join(sorted(set(FORMATS.values())))
        raise RequestError(f"unknown format {format!r}", f"formats are {known}")
    return buffer.getvalue()


def read_recipe(path: str | Path) -> Recipe:
    """The recipe inside a picture's file; its pixels are not decoded.

    Raises:
        RequestError: no file that can be read; or as `recipe_in`.
        ConfigError: the recipe is damaged or forged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return recipe_in(file, str(path))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder", "name one picture in it") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error


def recipe_in(file: ReadableFile, name: str) -> Recipe:
    """The recipe inside an open picture that anybody may have made; its pixels are not decoded.

    Args:
        file: at its start, and it can be sought in.
        name: what messages call it.

    Raises:
        RequestError: not a picture that can be read, larger than any of ours, or without a recipe.
        ConfigError: the recipe is damaged or forged.
    """
    try:
        with warnings.catch_warnings():
            _refuse_large(name, file)
            warnings.simplefilter("ignore")  # only the header is read, however large it says
            with Image.open(file) as picture:
                text = _recipe_text(picture)
    except RequestError:
        raise
    except UnidentifiedImageError:
        raise RequestError(
            f"{name} is not a picture", "recipes are in PNG, JPEG and WebP files"
        ) from None
    except Image.DecompressionBombError:
        raise RequestError(
            f"{name} holds no recipe: it is larger than any picture that petzval makes", _HINT
        ) from None
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a hostile file can make a decoder raise nearly anything
        raise RequestError(f"{name} is damaged: {str(error)[:200]}") from error
    if text is None:
        raise RequestError(f"{name} holds no recipe", _HINT)
    return recipe_from_json(text, where=name)


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file whole: a temporary one beside it is renamed, and removed on any failure.

    Folders on the way are made.

    Args:
        durable: return only when the file would survive a power failure.

    Raises:
        RequestError: the folder or the file cannot be written; nothing is left behind.
    """
    if "\0" in str(path):
        raise RequestError(f"the path {str(path)[:200]!r} holds a zero byte", "no file is named so")
    temporary = path.parent / f".petzval-{secrets.token_hex(8)}.part"
    try:
        if stat.S_ISDIR(mode(path) or 0):
            raise RequestError(f"{path} is a folder", "name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise output_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; systems that cannot open one do so by themselves."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def output_error(path: Path, error: OSError) -> RequestError:
    """What an operating system's refusal to write means, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RequestError(
            f"no space left to write {path}", "free some, or write to another disk with --out"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RequestError(
            f"{path} may not be written: {error.strerror}", "choose another place with --out"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return RequestError(
            f"{path} cannot be made: a part of the path is a file, not a folder",
            "choose another place with --out",
        )
    if error.errno == errno.ENAMETOOLONG:
        return RequestError(
            f"{str(path)[:80]}… cannot be written: the name has {len(path.name):,} characters",
            "choose a shorter one",
        )
    return RequestError(f"{path} cannot be written: {error.strerror or error}")


def _exif(recipe: Recipe) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII_COMMENT + recipe.to_json(
        ascii_only=True
    ).encode("ascii")
    return exif.tobytes()


def _refuse_large(name: str, file: ReadableFile) -> None:
    """Refuse what no picture of ours has, before a decoder reads it; then go back to the start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > FILE_LIMIT_BYTES:
        raise RequestError(
            f"{name} has {size:,} bytes; at most {FILE_LIMIT_BYTES:,} are read for a recipe", _HINT
        )
    if file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE:
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"IDAT":
                break
            if length > CHUNK_LIMIT_BYTES:
                raise RequestError(
                    f"{name}: a part before the pixels has {length:,} bytes; at most "
                    f"{CHUNK_LIMIT_BYTES:,} are read",
                    _HINT,
                )
            file.seek(length + 4, os.SEEK_CUR)
    file.seek(0)


def _recipe_text(picture: Image.Image) -> str | None:
    """The recipe's JSON, or None where the picture has none."""
    info = cast("dict[object, Any]", picture.info)
    text = info.get(PNG_KEYWORD)
    if isinstance(text, str):
        return str(text)
    if picture.format not in ("JPEG", "WEBP"):
        return None
    comment: Any = picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(_ASCII_COMMENT + b"{"):
        return None
    if b'"petzval"' not in comment:  # another program's JSON
        return None
    return comment[len(_ASCII_COMMENT) : RECIPE_LIMIT_BYTES * 2].decode("ascii", "replace")
