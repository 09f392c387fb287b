"""Hand-made safetensors files and copies of the tiny checkpoint, to be damaged."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petzval.models.mmdit import MMDiT
from tests.support import TINY_CHECKPOINT

DENOISER_FILE = "transformer/diffusion_pytorch_model.safetensors"


def write_file(path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"") -> Path:
    """A file with any header, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[Any], start: int, stop: int, dtype: Any = "F32") -> dict[str, Any]:
    """One header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def copy_checkpoint(folder: Path) -> Path:
    """The tiny checkpoint, copied so that it can be changed."""
    copy = folder / "checkpoint"
    shutil.copytree(TINY_CHECKPOINT, copy)
    return copy


def read_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def edit_json(path: Path, **changes: Any) -> None:
    """Set entries of a JSON object; None removes one."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def velocity_of(model: MMDiT, grid: tuple[int, int] = (3, 4), num_text_tokens: int = 5) -> Tensor:
    """One call of a denoiser on numbers that are always the same."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    tokens = torch.randn((1, grid[0] * grid[1], config.in_channels), generator=generator)
    features = [
        torch.randn((1, num_text_tokens, config.enc_hidden_dim), generator=generator)
        for _ in config.selected_layer_index
    ]
    with torch.no_grad():
        return model.velocity(tokens, features, torch.tensor([0.7]), grid)


@contextmanager
def small_files(limit: int) -> Generator[None]:
    """No file of this process may grow beyond `limit` bytes: a write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
