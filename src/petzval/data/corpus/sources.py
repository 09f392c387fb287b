"""Where pictures come from: folders, WebDataset tars, parquet lists, composed illustrations.

A source names its pictures in a fixed order and reads nothing but names, headers and sidecars; the
import (`importing`) reads the pictures. What cannot be addressed is named with the reason.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from petzval.data.decode import Limits, RefusedPicture, read_bytes
from petzval.data.file_forms import FORM_OF_SUFFIX
from petzval.errors import DataError

SIDECAR_LIMITS = Limits(max_file_bytes=1 << 20)
MAX_SIDECAR_DEPTH = 64
"""Of a sidecar's JSON. Its reader and writer call themselves for each level, and so does whoever
reads the corpus later, from wherever it stands."""
_BLOCK = 512
_MAX_HEADER_BYTES = 1 << 20
_PLAIN_MEMBERS = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_LICENCE_NAMES = ("licence", "license")
_PATH_NAMES = ("path", "file", "filename", "image_path")
_CAPTION_NAMES = ("caption", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture that a source names.

    Attributes:
        path: of the file or tar.
        member: name inside the tar, else "".
        offset, num_bytes: where it lies in `path`; `num_bytes` None means all of it.
        caption, licence: "" where the source has none.
        metadata: what else it says; JSON values.
        step: how far the source is, out of its `num_steps`.
    """

    path: Path
    member: str = ""
    offset: int = 0
    num_bytes: int | None = None
    caption: str = ""
    licence: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Refusal:
    """Something a source holds that was not imported, or not in full."""

    path: str
    member: str
    reason: str


@runtime_checkable
class Source(Protocol):
    """A series of pictures in a fixed order."""

    @property
    def name(self) -> str:
        """Recorded with every picture."""
        ...

    @property
    def num_steps(self) -> int:
        """The largest `step`."""
        ...

    def items(self, corpus_folder: Path) -> Iterator[Item | Refusal]:
        """All pictures; a source that makes its own puts them into the corpus folder."""
        ...


# ── folders ──────────────────────────────────────────────────────────────────────────────────────


class FolderSource:
    """Pictures in a folder and the folders below it, each with `<stem>.txt` or `<stem>.json`.

    Folders that are links are not entered. A picture file is one with the extension of an allowed
    form.

    Args:
        folder: where to look.
        name: recorded with every picture.

    Raises:
        DataError: it is no folder, or holds no pictures.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder", "name a folder of pictures")
        self.name = name or folder.absolute().name
        self._paths = sorted(_picture_files(folder.absolute()), key=os.fsencode)
        if not self._paths:
            raise DataError(f"{folder} holds no pictures", f"extensions: {_known_suffixes()}")

    @property
    def num_steps(self) -> int:
        """Number of picture files."""
        return len(self._paths)

    def items(self, corpus_folder: Path) -> Iterator[Item | Refusal]:
        """In order of path."""
        for step, path in enumerate(self._paths, 1):
            texts: dict[str, bytes] = {}
            for suffix in (".txt", ".json"):
                beside = path.with_suffix(suffix)
                if not beside.exists():
                    continue
                try:
                    texts[suffix] = read_bytes(beside, SIDECAR_LIMITS)
                except RefusedPicture as error:
                    yield Refusal(path=str(beside), member="", reason=error.reason)
            told, remarks = _read_sidecars(texts)
            yield from (Refusal(path=str(path), member="", reason=remark) for remark in remarks)
            yield Item(path=path, step=step, **told)


def _picture_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if PurePosixPath(name).suffix.lower() in FORM_OF_SUFFIX:
                yield Path(parent) / name


def _known_suffixes() -> str:
    return ", ".join(FORM_OF_SUFFIX)


# ── tars ─────────────────────────────────────────────────────────────────────────────────────────


class TarSource:
    """WebDataset tars, as img2dataset writes them too: members of one key stand together.

    Only headers and sidecars are read. A picture keeps its place in the tar, so that it can be
    opened later without reading what stands before it.

    Args:
        paths: tars, or one folder that holds some.
        name: recorded with every picture.

    Raises:
        DataError: there is no tar, or one is compressed.
    """

    def __init__(self, *paths: Path, name: str = "") -> None:
        found = [
            tar.absolute()
            for path in paths
            for tar in (path.glob("*.tar") if path.is_dir() else [path])
        ]
        self._tars = sorted(found, key=os.fsencode)
        if not self._tars:
            raise DataError("no tar is named", "name tars, or a folder that holds *.tar")
        for tar in self._tars:
            _check_tar(tar)
        first = paths[0].absolute()
        self.name = name or (first if first.is_dir() else first.with_suffix("")).name

    @property
    def num_steps(self) -> int:
        """Number of tars."""
        return len(self._tars)

    def items(self, corpus_folder: Path) -> Iterator[Item | Refusal]:
        """In order of tar, then of member."""
        for step, tar in enumerate(self._tars, 1):
            yield from _items_of_tar(tar, step)


def _check_tar(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: there is no such tar", "name tars, or a folder that holds *.tar")
    with path.open("rb") as file:
        start = file.read(_BLOCK)
    if start[:2] in (b"\x1f\x8b", b"BZ") or start[:4] in (b"\xfd7zX", b"\x28\xb5\x2f\xfd"):
        raise DataError(
            f"{path} is a compressed tar, whose members cannot be opened by their place",
            "unpack it to a plain .tar first; pictures do not get smaller anyway",
        )
    if start.strip(b"\0"):  # an empty tar starts with zeros
        try:
            tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"{path} is not a tar ({error})") from error


def _items_of_tar(path: Path, step: int) -> Iterator[Item | Refusal]:
    from webdataset.tariterators import base_plus_ext

    group: list[tuple[str, tarfile.TarInfo]] = []
    key: str | None = None
    for member in _plain_members(path):
        if isinstance(member, Refusal):
            yield member
            continue
        prefix, extension = base_plus_ext(member.name)
        if not prefix or not extension:
            continue
        if prefix != key:
            yield from _items_of_group(path, group, step)
            key, group = prefix, []
        group.append((f".{extension.lower()}", member))
    yield from _items_of_group(path, group, step)


@dataclass(frozen=True, slots=True)
class _Headers:
    """A tar for a library that reads all of a header at once, whatever size the header claims."""

    file: BinaryIO

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _plain_members(path: Path) -> Iterator[tarfile.TarInfo | Refusal]:
    """Members that are files, in order; the others, and a tar that ends too early, are refused."""
    size = path.stat().st_size
    try:
        # Reading a tar needs no more of a file than what `_Headers` has.
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=cast("BinaryIO", _Headers(file)), mode="r:") as tar,
        ):
            for member in tar:
                # Members that were read are kept by the library, for names that are asked for.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                reason = _what_is_wrong(member, size)
                if reason:
                    name = member.name.encode("utf-8", "backslashreplace").decode()
                    yield Refusal(path=str(path), member=name, reason=reason)
                elif member.type in _PLAIN_MEMBERS:
                    yield member
            # A header that makes no sense ends a tar for the library as its end does.
            if read_bytes(path, Limits(), tar.offset, min(_BLOCK, size - tar.offset)).strip(b"\0"):
                raise tarfile.ReadError("no end")
    except (tarfile.TarError, RefusedPicture, OSError, ValueError, OverflowError):
        yield Refusal(path=str(path), member="", reason="the tar is damaged, and read up to there")


def _what_is_wrong(member: tarfile.TarInfo, size: int) -> str:
    parts = PurePosixPath(member.name).parts
    if member.isdir():
        return ""
    if not member.name.isprintable():
        return "its name is not printable UTF-8"
    if member.name.startswith("/") or ".." in parts:
        return "its name leads out of the tar"
    if member.issym() or member.islnk():
        return "a link"
    if member.type not in _PLAIN_MEMBERS or member.sparse:
        return "not a plain file"
    if member.offset_data + member.size > size:
        return "the tar ends before it does"
    return ""


def _items_of_group(
    path: Path, group: list[tuple[str, tarfile.TarInfo]], step: int
) -> Iterator[Item | Refusal]:
    pictures = [member for suffix, member in group if suffix in FORM_OF_SUFFIX]
    if not pictures:
        return
    texts: dict[str, bytes] = {}
    for suffix, member in group:
        if suffix in {".txt", ".json"}:
            try:
                texts[suffix] = read_bytes(path, SIDECAR_LIMITS, member.offset_data, member.size)
            except RefusedPicture as error:
                yield Refusal(path=str(path), member=member.name, reason=error.reason)
    told, remarks = _read_sidecars(texts)
    for member in pictures:
        yield from (
            Refusal(path=str(path), member=member.name, reason=remark) for remark in remarks
        )
        place = {"offset": member.offset_data, "num_bytes": member.size}
        yield Item(path=path, member=member.name, step=step, **place, **told)


# ── parquet ──────────────────────────────────────────────────────────────────────────────────────


class ParquetSource:
    """A table of local paths, with captions and licences if it has them.

    Columns: the path is the first of `path`, `file`, `filename`, `image_path`; the caption of
    `caption`, `text`; the licence of `licence`, `license`. The others become metadata. Relative
    paths start at the table's folder.

    Raises:
        DataError: the table cannot be read, or has no column of paths.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.name = name or path.stem
        self._path = path.absolute()
        try:
            with pq.ParquetFile(path) as file:
                self.num_steps: int = file.metadata.num_rows
                names: list[str] = list(file.schema_arrow.names)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a parquet file that can be read") from error
        self._column = next((name for name in _PATH_NAMES if name in names), "")
        if not self._column:
            raise DataError(
                f"{path}: no column of paths among {', '.join(names)[:200]}",
                f"call it one of {', '.join(_PATH_NAMES)}",
            )

    def items(self, corpus_folder: Path) -> Iterator[Item | Refusal]:
        """In order of row."""
        step = 0
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    step += 1
                    path = row.pop(self._column)
                    if not isinstance(path, str) or not path or not path.isprintable():
                        reason = f"row {step}: {self._column} is not a path"
                        yield Refusal(path=str(self._path), member="", reason=reason)
                        continue
                    yield Item(path=self._path.parent / path, step=step, **_told(row))


# ── sidecars ─────────────────────────────────────────────────────────────────────────────────────


def _read_sidecars(texts: Mapping[str, bytes]) -> tuple[dict[str, Any], list[str]]:
    """Caption, licence and metadata, and remarks on what could not be read."""
    remarks: list[str] = []
    values: dict[str, Any] = {}
    if ".json" in texts:
        try:
            # Not a number is no JSON, but what other programs write where a score is missing.
            parsed = json.loads(texts[".json"], parse_constant=lambda _: None)
            if not isinstance(parsed, dict):
                raise ValueError
            if _is_deeper(parsed, MAX_SIDECAR_DEPTH):
                raise RecursionError
            values = parsed
        except ValueError:
            remarks.append("its .json is not a JSON object")
        except RecursionError:
            remarks.append(f"its .json has more than {MAX_SIDECAR_DEPTH} levels")
    told = _told(values)
    if ".txt" in texts and not told["caption"]:
        try:
            told["caption"] = texts[".txt"].decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            remarks.append("its .txt is not UTF-8")
    return told, remarks


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether an object or list holds others on more levels than these, itself counted."""
    held: list[Any] = [value]
    for _ in range(levels):
        parts = [each.values() if isinstance(each, dict) else each for each in held]
        held = [part for each in parts for part in each if isinstance(part, dict | list)]
    return bool(held)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    """Caption and licence taken out of a mapping; the rest is metadata."""
    rest = dict(values)
    found = {"caption": "", "licence": ""}
    for wanted, names in (("caption", _CAPTION_NAMES), ("licence", _LICENCE_NAMES)):
        for name in names:
            value = rest.get(name)
            if isinstance(value, str) and not found[wanted]:
                # A lone half of a surrogate pair can be written in JSON, and in no file of text.
                found[wanted] = rest.pop(name).encode("utf-8", "replace").decode().strip()
    return {**found, "metadata": rest}
