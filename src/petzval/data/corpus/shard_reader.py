"""Read samples out of shards, in any order, one seek each."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from petzval.data.corpus.manifest import read_parquet
from petzval.data.corpus.shards import INDEX
from petzval.data.decode import Limits, Pixels, RefusedPicture, decode, read_bytes
from petzval.errors import DataError

_LIMITS = Limits()
_PICTURES = (".jpg", ".png", ".webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is trained on.

    Attributes:
        pixels: RGB, at the bucket's size.
        caption: to train on.
        row: of the index.
        record: what else the shard says: source, licence, crop, metadata.
    """

    pixels: Pixels = field(repr=False)
    caption: str
    row: dict[str, Any]
    record: dict[str, Any] = field(repr=False)


class ShardReader:
    """The samples of a folder of shards by their place in its index. Can be pickled.

    Args:
        folder: written by `petzval.data.corpus.shards.write_shards`.

    Raises:
        DataError: there is no index, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "index.parquet"
        if not path.is_file():
            raise DataError(
                f"{self.folder} has no shards",
                "name a folder that petzval data shard has finished",
            )
        self.index: pa.Table = read_parquet(path)
        if not self.index.schema.equals(INDEX):
            raise DataError(f"{path}: not the columns of an index of shards")

    def __len__(self) -> int:
        return self.index.num_rows

    def __getitem__(self, place: int) -> Sample:
        """The sample at a place of the index, 0 to `len() - 1`.

        Raises:
            DataError: its shard is missing or damaged.
        """
        row = self._row(place)
        path = self.folder / row["shard"]
        with _explained(path, row):
            files = self._files(path, row)
            suffix = next(each for each in _PICTURES if each in files)
            picture = decode(files[suffix], suffix, _LIMITS)
            record: Any = json.loads(files[".json"])
            caption = files[".txt"].decode()
        if (picture.height, picture.width) != (row["height"], row["width"]):
            raise DataError(
                f"{path}: picture {row['id'][:12]} is {picture.width}x{picture.height}, its index"
                f" says {row['width']}x{row['height']}"
            )
        return Sample(pixels=picture.pixels, caption=caption, row=row, record=record)

    def caption(self, place: int) -> str:
        """The caption alone: the picture is not decoded.

        Raises:
            DataError: its shard is missing or damaged.
        """
        row = self._row(place)
        path = self.folder / row["shard"]
        with _explained(path, row):
            return self._files(path, row)[".txt"].decode()

    def _row(self, place: int) -> dict[str, Any]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.index.slice(place, 1).to_pylist()[0]

    def _files(self, path: Path, row: Mapping[str, Any]) -> dict[str, bytes]:
        return _members(read_bytes(path, _LIMITS, row["offset"], row["num_bytes"]), row["id"])


@contextmanager
def _explained(path: Path, row: Mapping[str, Any]) -> Generator[None]:
    """What goes wrong with a sample's bytes, as the user's one line."""
    try:
        yield
    except (RefusedPicture, tarfile.TarError, KeyError, StopIteration, ValueError) as error:
        reason = error.reason if isinstance(error, RefusedPicture) else type(error).__name__
        raise DataError(
            f"{path}: no sample {row['id'][:12]} at byte {row['offset']} ({reason})",
            "make the shards again: delete this file and run petzval data shard",
        ) from error


def _members(data: bytes, name: str) -> dict[str, bytes]:
    """Extension -> contents of the members called `name`."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            stem, dot, extension = member.name.partition(".")
            contents = tar.extractfile(member)
            if stem == name and contents is not None:
                found[dot + extension] = contents.read()
    return found
