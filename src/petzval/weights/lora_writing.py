"""LoRAs as files, in the form that each program reads."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights.lora import LowRank
from petzval.weights.lora_keys import Family, spell, spell_alpha
from petzval.weights.lora_settings import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    METADATA_KEY,
    network_metadata,
    peft_config,
)
from petzval.weights.writing import write_safetensors


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedLora:
    """A LoRA as training leaves it: one rank and one alpha for all layers.

    Attributes:
        layers: layer → its halves, with scale alpha / rank.
        base: name of the model it was trained on.
        notes: further texts for the file's header.
    """

    layers: Mapping[str, LowRank]
    rank: int
    alpha: float
    dropout: float = 0.0
    base: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def config(self) -> dict[str, object]:
        """PEFT's settings."""
        return peft_config(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            layers=self.layers,
            base=self.base,
        )


def save_peft(folder: Path, lora: TrainedLora, *, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as PEFT writes it; what was there is replaced when the new one is whole.

    Raises:
        CheckpointError: it cannot be written; what was there is unchanged.
    """
    token = uuid.uuid4().hex[:8]
    partial = folder.with_name(f".{folder.name}.{token}.partial")
    old = folder.with_name(f".{folder.name}.{token}.old")
    try:
        partial.mkdir(parents=True)
        save_lora(partial / ADAPTER_FILE, lora, "peft", dtype=dtype)
        text = json.dumps(lora.config, indent=2) + "\n"
        (partial / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise _unwritten(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def save_lora(
    file: Path, lora: TrainedLora, family: Family, *, dtype: torch.dtype = torch.float32
) -> Path:
    """One safetensors file with the keys of a family, whole or not at all.

    The scale is said twice where programs look in different places: as `.alpha` tensors
    (ComfyUI, kohya) and as PEFT's settings in the header (PEFT, diffusers).

    Raises:
        CheckpointError: it cannot be written.
    """
    state: dict[str, Tensor] = {}
    for layer, halves in lora.layers.items():
        state[spell(layer, "down", family)] = halves.down.detach().to(dtype)
        state[spell(layer, "up", family)] = halves.up.detach().to(dtype)
        alpha = spell_alpha(layer, family)
        if alpha is not None:
            state[alpha] = torch.tensor(lora.alpha)
    metadata = dict(lora.notes)
    if family in ("peft", "diffusers"):
        metadata[METADATA_KEY] = json.dumps(network_metadata(lora.config))
    elif family == "kohya":
        metadata["ss_network_module"] = "networks.lora"
        metadata["ss_network_dim"] = str(lora.rank)
        metadata["ss_network_alpha"] = f"{lora.alpha:g}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(file, state, metadata)
    except OSError as error:
        raise _unwritten(file, error) from error
    return file


def _unwritten(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: not written ({error.strerror or error}); what was there is unchanged",
        "make room, or choose a place that can be written to",
    )
