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
from petzval.diffusers.arguments import checked_dtype
from petzval.diffusers.networks import (
    LensAutoencoder,
    LensGptOssEncoder,
    LensTransformer2DModel,
)
from petzval.errors import RequestError
from petzval.inference.variants import Located, locate
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.hub_cache import pulled_folder
from petzval.weights.lora_settings import ADAPTER_CONFIG, ADAPTER_FILE
from petzval.weights.published import SCHEDULER, SCHEDULER_CONFIG
from petzval.weights.pull import fetch, plan_pull
from petzval.weights.registry import checkpoint_of, lora_of


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


LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of a LoRA."""

LORA_LIMIT_BYTES = 4 << 30
"""A LoRA of every layer at the highest rank is smaller."""


def find_lora(
    name: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Path:
    """The file or folder of a LoRA: a path here, or owner/name on the hub.

    Args:
        name: what is here goes before a repository of that name.
        weight_name: the file; of a repository diffusers' own name without one.
        subfolder: of both.
        revision: a branch or a commit of a repository.
        offline: ask nobody.

    Raises:
        RequestError: it means nothing, is no safetensors file, or is too large for a LoRA.
        DownloadError: it is not here, and cannot be fetched.
    """
    text, inner = os.fspath(name), Path(subfolder or "", weight_name or "")
    is_repository = text.count("/") == 1 and not text.endswith(".safetensors")
    if not isinstance(name, str) or os.path.exists(text) or not is_repository:
        return Path(text) / inner
    file = Path(subfolder or "", weight_name or LORA_FILE)
    # PEFT's strength stands in a second file.
    beside = file.with_name(ADAPTER_CONFIG).as_posix() if file.name == ADAPTER_FILE else None
    mirror = lora_of(text, file.as_posix(), revision or "main", beside=beside)
    # What is here was proven when it came, and needs no server; another program may have left
    # PEFT's second file out.
    folder = pulled_folder(mirror)
    if folder is None or not (beside is None or offline or (folder / beside).exists()):
        plan = plan_pull(mirror, offline=offline)
        if sum(each.file.num_bytes for each in plan.files) > LORA_LIMIT_BYTES:
            raise RequestError(f"{file} of {text} is larger than any LoRA of Lens")
        folder = fetch(plan).folder
    return folder / file
