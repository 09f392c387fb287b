"""The picture of a manifest row: its bytes, checked against its id, and what they decode to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petzval.data.decode import Decoded, Limits, RefusedPicture, decode, read_bytes


@dataclass(frozen=True, slots=True)
class PictureReader:
    """Opens the pictures of manifest rows.

    Args:
        root: the corpus folder, which relative paths start from.
        limits: see `Limits`.
    """

    root: Path
    limits: Limits = Limits()

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of a row's picture; they are the ones that were imported.

        Args:
            row: a manifest row; `path`, `offset`, `num_bytes` and `id` are used.

        Raises:
            RefusedPicture: the file is gone, is no plain file, is too large, or has changed.
        """
        data = read_bytes(self.root / row["path"], self.limits, row["offset"], row["num_bytes"])
        if hashlib.sha256(data).hexdigest() != row["id"]:
            raise RefusedPicture("changed since it was imported")
        return data

    def decode(self, data: bytes, name: str = "") -> Decoded:
        """`decode` within this reader's limits."""
        return decode(data, name, self.limits)

    def load(self, row: Mapping[str, Any]) -> Decoded:
        """Read and decode a row's picture.

        Raises:
            RefusedPicture: it cannot be used.
        """
        return self.decode(self.read(row), row["member"] or row["path"])
