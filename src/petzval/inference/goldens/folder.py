"""A golden folder as it lies on disk, and the networks that are put to the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from petzval.conditioning.encoder import PromptEncoder
from petzval.conditioning.template import DEFAULT_DATE
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import MEBIBYTE, read_json
from petzval.errors import DataError
from petzval.inference.goldens.case import CaseResult, unchecked
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.tensors import TensorSource

_LIMIT_BYTES = 64 * MEBIBYTE


class GoldenFile:
    """The tensors of one golden file; it remembers which were looked at."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._seen: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._source:
            raise DataError(f"{self._source.files[0]}: key {key!r} is missing")
        self._seen.add(key)
        return self._source.read(key)

    def __contains__(self, key: object) -> bool:
        return key in self._source

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in the file's order."""
        return tuple(self._source)

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys that nothing was compared with."""
        return tuple(key for key in self._source if key not in self._seen)

    def cases(self, suffix: str) -> list[str]:
        """What stands before `.suffix` in the keys that end so."""
        ending = f".{suffix}"
        return sorted(key.removesuffix(ending) for key in self._source if key.endswith(ending))

    def numbered(self, prefix: str) -> list[Tensor]:
        """`prefix.0`, `prefix.1`, … as far as they go."""
        found: list[Tensor] = []
        while f"{prefix}.{len(found)}" in self:
            found.append(self[f"{prefix}.{len(found)}"])
        return found


def nothing_unread(name: str, stored: GoldenFile) -> Iterator[CaseResult]:
    """One result more if something in a file was compared with nothing."""
    if stored.unread:
        listed = ", ".join(stored.unread[:5])
        yield unchecked(f"{name}/unread", f"{len(stored.unread)} tensors, no check: {listed}")


class GoldenFolder:
    """A folder with an `index.json` and the files that it names.

    Raises:
        DataError: there is no such folder, or no index in it.
        ConfigError: the index is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise DataError(
                f"{self.folder}: no index.json, so this is not a golden folder",
                "it should hold index.json and the safetensors files that it names",
            )
        index: Any = read_json(self.folder / "index.json", limit_bytes=_LIMIT_BYTES)
        if not isinstance(index, dict) or not isinstance(cast("Any", index).get("files"), dict):
            raise DataError(f"{self.folder / 'index.json'}: names no files")
        self.index = cast("dict[str, Any]", index)
        self.files: Mapping[str, Any] = self.index["files"]
        self.config: Mapping[str, Any] = self.index.get("config") or {}

    def has(self, name: str) -> bool:
        """Whether a file or sub-folder is there."""
        return (self.folder / name).exists()

    def tensors(self, name: str) -> GoldenFile:
        """One safetensors file."""
        return GoldenFile(TensorSource.open(self.folder / name))

    def json(self, name: str) -> Any:
        """One JSON document."""
        return read_json(self.folder / name, limit_bytes=_LIMIT_BYTES)

    @property
    def date(self) -> str:
        """The template date that applies where a case names none."""
        for name in ("tokenizer_cases.json", "pipeline_cases.json"):
            if self.has(name):
                content = self.json(name)
                holders = [content, *content.values()] if isinstance(content, dict) else []
                for holder in cast("list[Any]", holders):
                    if isinstance(holder, dict) and isinstance(holder.get("date"), str):
                        return str(holder["date"])
        return str(self.index.get("date", DEFAULT_DATE))


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is put to the test: a checkpoint's networks in float32 on the CPU."""

    checkpoint: Checkpoint
    denoiser: MMDiT
    encoder: GptOssEncoder
    autoencoder: Autoencoder
    tokenizer: PromptTokenizer
    text: PromptEncoder

    @classmethod
    def load(cls, checkpoint_folder: str | Path) -> Subject:
        """Load a checkpoint whole, all layers of its text encoder included."""
        checkpoint = Checkpoint.open(checkpoint_folder)
        encoder = checkpoint.load_encoder(torch.float32, all_layers=True)
        tokenizer = PromptTokenizer(checkpoint.tokenizer_folder)
        return cls(
            checkpoint=checkpoint,
            denoiser=checkpoint.load_denoiser(torch.float32),
            encoder=encoder,
            autoencoder=checkpoint.load_vae(torch.float32),
            tokenizer=tokenizer,
            text=PromptEncoder(
                encoder,
                tokenizer,
                checkpoint_id=checkpoint.identity,
                truncate="reference",
                markers="reference",
            ),
        )
