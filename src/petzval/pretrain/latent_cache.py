"""Latents of a corpus, kept on request: every picture is encoded once.

    latents/
        latents.json              whose latents these are: autoencoder and shards
        ab/abcdef….safetensors    one small file a picture, named by its id

They are float32, half a megabyte for 512 x 512, so that a run with a cache is the run without one.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from petzval.config import read_json
from petzval.errors import DataError
from petzval.pretrain.latent_tokens import read_tokens, write_tokens

CARD = "latents.json"
FORMAT = 1

_DIFFERENCES = {
    "format": "in another form",
    "autoencoder": "of another autoencoder",
    "shards": "of other shards, or cropped in another way",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentCache:
    """A folder of latents; any number of processes may read and write it.

    Build one with `open`.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path, *, autoencoder: str, shards: str) -> LatentCache:
        """Take a new or empty folder, or one that holds latents of the same autoencoder and shards.

        Args:
            folder: made where needed.
            autoencoder: names its weights.
            shards: names the pictures and how they were cropped.

        Raises:
            DataError: it holds something else, or cannot be written.
        """
        card = {"format": FORMAT, "autoencoder": autoencoder, "shards": shards}
        path = folder / CARD
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_empty = not any(not each.name.startswith(".") for each in folder.iterdir())
            if is_empty:
                draft = folder / f".{CARD}.{uuid.uuid4().hex[:8]}"
                draft.write_text(json.dumps(card, indent=1), encoding="utf-8")
                os.replace(draft, path)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error.strerror})", "name another folder"
            ) from error
        if not path.is_file():
            raise DataError(
                f"{folder} holds something else than latents", "name a folder that is new or empty"
            )
        found = read_json(path)
        for part, what in _DIFFERENCES.items():
            if not isinstance(found, dict) or found.get(part) != card[part]:
                raise DataError(
                    f"{folder} holds latents {what}",
                    "name another folder, or delete this one and encode again",
                )
        return cls(folder=folder)

    def read(self, name: str, num_tokens: int) -> Tensor | None:
        """Tokens [S, C] of a picture; None where it is not encoded yet, or its file is damaged."""
        return read_tokens(self._file(name), num_tokens)

    def write(self, name: str, tokens: Tensor) -> None:
        """Keep tokens [S, C] of a picture."""
        file = self._file(name)
        try:
            file.parent.mkdir(exist_ok=True)
            write_tokens(file, tokens)
        except OSError as error:
            raise DataError(
                f"{file}: cannot be written ({error.strerror})", "make room, then go on"
            ) from error

    def _file(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"
