"""A corpus on disk: base rows in parts, and columns that stages append beside them.

    corpus.json                              format, name, rows of a part
    manifest/part-00000.parquet              one row a picture, see `BASE`
    columns/<stage>/part-00000.parquet       the same rows, same order: id, the stage's columns
    columns/<stage>/part-00000.done.json     what those columns were made from, see `stages`

A row is known by the SHA-256 of its picture's bytes, once in the whole corpus. Nothing is changed
in place: a file is written under a draft name and renamed, so that a program killed at any moment
leaves whole files, and the next run overwrites its drafts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from petzval.config import check_ranges, from_mapping, read_json, setting, to_mapping
from petzval.errors import ConfigError, DataError

FORMAT = 1

BASE = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("caption", pa.string()),
        ("licence", pa.string()),
        ("metadata", pa.string()),
    ]
)
"""id: SHA-256 of the picture's bytes, hexadecimal. source: name given at import. path: of the file
or the tar, absolute, or relative to the corpus where it lies inside. member: name inside the tar,
else "". offset: of the picture's first byte in `path`. caption, licence: "" where there is none.
metadata: what else the source says, a JSON object as text."""

_PART = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSettings:
    """What `corpus.json` holds.

    Attributes:
        format: version of the folder's layout.
        name: of the corpus, for its data card.
        rows_per_part: rows of a full manifest part, the unit of work and of resumption.
    """

    format: int
    name: str
    rows_per_part: int = setting(2048, minimum=1, maximum=1_000_000)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A corpus folder; open one with `Corpus.open`, make one with `Corpus.create`."""

    folder: Path
    settings: CorpusSettings

    @classmethod
    def create(cls, folder: str | Path, name: str, *, rows_per_part: int = 2048) -> Corpus:
        """An empty corpus in `folder`, which may exist.

        Raises:
            DataError: there is a corpus already, or the folder cannot be made.
        """
        folder = Path(folder).absolute()
        if (folder / "corpus.json").exists():
            raise DataError(f"{folder} holds a corpus already", "open it, or name another folder")
        settings = CorpusSettings(format=FORMAT, name=name, rows_per_part=rows_per_part)
        try:
            (folder / "manifest").mkdir(parents=True, exist_ok=True)
            write_whole(folder / "corpus.json", _json_bytes(to_mapping(settings)))
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
        return cls(folder=folder, settings=settings)

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """The corpus in `folder`.

        Raises:
            DataError: there is none, its `corpus.json` is damaged, or of another format.
        """
        folder = Path(folder).absolute()
        path = folder / "corpus.json"
        if not path.is_file():
            raise DataError(
                f"{folder} holds no corpus", f"make one: petzval data import SOURCE --into {folder}"
            )
        try:
            settings = from_mapping(CorpusSettings, read_json(path), where=str(path))
        except ConfigError as error:
            raise DataError(error.message, error.hint) from error
        if settings.format != FORMAT:
            raise DataError(f"{path}: format {settings.format}, this version reads {FORMAT}")
        return cls(folder=folder, settings=settings)

    @property
    def name(self) -> str:
        """The name given at its making."""
        return self.settings.name

    def parts(self) -> tuple[int, ...]:
        """Numbers of the manifest's parts, from 0 without a gap.

        Raises:
            DataError: a part is missing.
        """
        matches = (_PART.fullmatch(path.name) for path in (self.folder / "manifest").iterdir())
        numbers = sorted(int(match.group(1)) for match in matches if match)
        for expected, number in enumerate(numbers):
            if number != expected:
                raise DataError(f"{self.manifest_path(expected)} is missing from the corpus")
        return tuple(numbers)

    def manifest_path(self, part: int) -> Path:
        """The file of a part's base rows."""
        return self.folder / "manifest" / f"part-{part:05d}.parquet"

    def columns_path(self, stage: str, part: int) -> Path:
        """The file of a stage's columns for a part."""
        return self.folder / "columns" / stage / f"part-{part:05d}.parquet"

    def marker_path(self, stage: str, part: int) -> Path:
        """The file that says what a stage's columns for a part were made from."""
        return self.columns_path(stage, part).with_suffix(".done.json")

    def append(self, rows: pa.Table) -> int:
        """Write a new manifest part; ids must be new to the corpus. Returns its number."""
        assert rows.num_rows > 0 and rows.schema.equals(BASE), rows.schema
        part = len(self.parts())
        write_parquet(self.manifest_path(part), rows)
        return part

    def read(self, part: int, stages: Sequence[str] = ()) -> pa.Table:
        """Base rows of a part, joined with columns of stages as `<stage>.<column>`.

        Raises:
            DataError: a file is missing or damaged, or its rows are not those of the manifest.
        """
        table = read_parquet(self.manifest_path(part))
        if not table.schema.equals(BASE):
            raise DataError(f"{self.manifest_path(part)}: not the columns of a manifest")
        for stage in stages:
            path = self.columns_path(stage, part)
            if not path.is_file():
                raise DataError(
                    f"{self.folder}: the stage {stage!r} has not run on part {part}",
                    f"petzval data clean {self.folder}",
                )
            columns = read_parquet(path)
            if "id" not in columns.column_names or not columns["id"].equals(table["id"]):
                raise DataError(
                    f"{path}: its rows are not those of {self.manifest_path(part).name}",
                    "delete this file and run the stage again",
                )
            for name in columns.column_names:
                if name != "id":
                    table = table.append_column(f"{stage}.{name}", columns[name])
        return table

    def stages(self) -> tuple[str, ...]:
        """Names of stages that left columns, sorted; their parts may be incomplete."""
        folder = self.folder / "columns"
        if not folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))

    def write_columns(
        self, stage: str, part: int, table: pa.Table, marker: Mapping[str, Any]
    ) -> None:
        """Write a stage's columns for a part, then the marker that says they are whole.

        Args:
            stage: a file name.
            part: number of the part.
            table: the stage's columns, one row for each of the part's, in order, without `id`.
            marker: what they were made from; the hash of the file is added as `output`.
        """
        ids = read_parquet(self.manifest_path(part), ["id"])["id"]
        assert "id" not in table.column_names and table.num_rows == len(ids), (stage, part)
        path = self.columns_path(stage, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.marker_path(stage, part).unlink(missing_ok=True)
        write_parquet(path, table.add_column(0, pa.field("id", pa.string()), ids))
        output = hash_file(path)
        write_whole(self.marker_path(stage, part), _json_bytes({**marker, "output": output}))

    def marker(self, stage: str, part: int) -> Mapping[str, Any] | None:
        """What a part's columns were made from; None if absent, damaged, or not of this file."""
        try:
            marker: dict[str, Any] = json.loads(self.marker_path(stage, part).read_bytes())
            whole = marker["output"] == hash_file(self.columns_path(stage, part))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return marker if whole else None

    @contextmanager
    def writing(self) -> Generator[None]:
        """Held by whoever writes; the operating system lets go of it when a program is killed.

        Raises:
            DataError: another program is writing.
        """
        import fcntl  # not on every system; reading a corpus is

        with (self.folder / "corpus.json").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{self.folder}: another program is writing to this corpus",
                    "wait until it has ended",
                ) from error
            yield


def base_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Base rows as a table; names must be those of `BASE`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=BASE)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file as a table.

    Raises:
        DataError: it is absent or damaged.
    """
    try:
        return pq.read_table(path, columns=columns, partitioning=None, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = "absent" if not path.exists() else str(error).partition("\n")[0][:200]
        raise DataError(f"{path}: cannot be read ({reason})") from error


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table so that equal rows give equal bytes, whole or not at all."""
    # How a table is cut into chunks, and what a reader noted beside it, would show in the file.
    table = table.combine_chunks().replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    write_whole(path, sink.getvalue().to_pybytes())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a draft name, let it reach the disk, and rename it."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
