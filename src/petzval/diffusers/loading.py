"""A published folder by path, name or repository, and the parts that a pipeline is made of."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.diffusers.networks import (
    LensAutoencoder,
    LensGptOssEncoder,
    LensTransformer2DModel,
)
from petzval.errors import RequestError
from petzval.inference.device import choose_dtype
from petzval.inference.variants import Located, locate
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.hub_cache import pulled_folder
from petzval.weights.published import SCHEDULER, SCHEDULER_CONFIG
from petzval.weights.pull import fetch, plan_pull
from petzval.weights.registry import checkpoint_of


def find_folder(name: str | os.PathLike[str], *, revision: str, offline: bool) -> Located:
    """The checkpoint that a name means: a folder, a variant, a mirror, or owner/name on the hub.

    Raises:
        RequestError: it means nothing.
        CheckpointError, DownloadError: it is not here, and cannot be fetched.
    """
    text = os.fspath(name)
    if not isinstance(name, str) or Path(text).exists() or text.count("/") != 1:
        return locate(text if isinstance(name, str) else Path(text))
    mirror = checkpoint_of(text, revision)
    # What is here was proven when it came, and needs no server.
    folder = pulled_folder(mirror)
    if folder is None:
        folder = fetch(plan_pull(mirror, offline=offline)).folder
    return locate(folder)


def load_parts(
    folder: Path, dtype: torch.dtype | None, without: Collection[str] = ()
) -> dict[str, Any]:
    """The parts of a checkpoint by their names in a pipeline, except those in `without`.

    Args:
        dtype: float32 or bfloat16; None is float32, as everywhere in diffusers.

    Raises:
        CheckpointError, ConfigError: the files are missing, damaged or of another model.
        RequestError: the dtype cannot hold the model.
    """
    number = checked_dtype(dtype)
    checkpoint = Checkpoint.open(folder)
    loaders = {
        "scheduler": lambda: load_scheduler(folder),
        "tokenizer": lambda: PromptTokenizer(checkpoint.tokenizer_folder),
        "text_encoder": lambda: LensGptOssEncoder(checkpoint.load_encoder(number, all_layers=True)),
        "transformer": lambda: LensTransformer2DModel(checkpoint.load_denoiser(number)),
        "vae": lambda: LensAutoencoder(checkpoint.load_vae(number)),
    }
    return {name: load() for name, load in loaders.items() if name not in without}


def load_scheduler(folder: Path) -> Any:
    """The checkpoint's `FlowMatchEulerDiscreteScheduler`; the published one where it has none."""
    if (folder / SCHEDULER / "scheduler_config.json").is_file():
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder=SCHEDULER)
    return FlowMatchEulerDiscreteScheduler.from_config(dict(SCHEDULER_CONFIG))


def checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """A dtype that these networks can be in; None is float32.

    Raises:
        RequestError: it cannot hold them.
    """
    if dtype is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError(f"dtype must be one of torch's, got {dtype!r}", "use torch.bfloat16")
    if dtype == torch.float16:
        raise RequestError(
            "float16 overflows in these networks unless they are scaled for it",
            "use torch.bfloat16; petzval.load scales them where there is no bfloat16",
        )
    return choose_dtype(str(dtype).removeprefix("torch."), torch.device("cpu"))
