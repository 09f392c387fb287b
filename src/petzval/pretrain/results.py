"""What a finished run leaves for the next one: a network's weights in float32 and its sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from petzval.config import from_mapping, read_json, to_mapping
from petzval.errors import TrainingError
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.vae import Autoencoder, AutoencoderConfig
from petzval.training.parallel import full_state_dict
from petzval.training.ranks import Ranks

ConfigT = TypeVar("ConfigT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)

RESULT = "result"


def save_result(
    run_folder: Path, module: nn.Module, config: Any, ranks: Ranks | None = None
) -> Path:
    """Write `result/model.safetensors` and `result/config.json`, each at one stroke.

    Of a module that is sharded over ranks all must call it; the first one writes.
    """
    folder = run_folder / RESULT
    ranks = ranks or Ranks()
    tensors = full_state_dict(module, ranks)
    if not ranks.is_first:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".model.safetensors"
    save_file(tensors, draft)
    draft.rename(folder / "model.safetensors")
    draft = folder / ".config.json"
    draft.write_text(json.dumps(to_mapping(config), indent=1), encoding="utf-8")
    draft.rename(folder / "config.json")
    return folder


def load_autoencoder(run_folder: Path) -> Autoencoder:
    """The autoencoder of a finished run, frozen."""
    return _load(run_folder, Autoencoder(_config(run_folder, AutoencoderConfig)))


def load_encoder(run_folder: Path, selected_layers: Sequence[int]) -> GptOssEncoder:
    """The text encoder of a finished language-model run, frozen."""
    config = _config(run_folder, GptOssConfig)
    return _load(run_folder, GptOssEncoder(config, selected_layers))


def save_final_norm(run_folder: Path, weight: Tensor) -> None:
    """The language model's last norm, which the encoder leaves out and a published one carries."""
    save_file({"weight": weight.detach().cpu()}, run_folder / RESULT / "norm.safetensors")


def load_final_norm(run_folder: Path) -> Tensor:
    """The weight that `save_final_norm` kept."""
    return _read(run_folder / RESULT / "norm.safetensors")["weight"]


def load_denoiser(run_folder: Path) -> MMDiT:
    """The denoiser of a finished run, frozen."""
    return _load(run_folder, MMDiT(_config(run_folder, MMDiTConfig)))


def fingerprint(run_folder: Path) -> str:
    """Hash of the weights, to tell whether a cache was made with them."""
    digest = hashlib.sha256((run_folder / RESULT / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def fingerprint_of(module: nn.Module) -> str:
    """As `fingerprint`, of a network at hand: what its run's would be."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()[:16]


def has_result(run_folder: Path) -> bool:
    """Whether the run has left its network."""
    return (run_folder / RESULT / "config.json").is_file()


def _config(run_folder: Path, kind: type[ConfigT]) -> ConfigT:
    path = run_folder / RESULT / "config.json"
    if not path.is_file():
        raise TrainingError(
            f"{run_folder} holds no finished network ({path} is absent)",
            "train it first: petzval pretrain",
        )
    return from_mapping(kind, read_json(path), where=str(path))


def _load(run_folder: Path, module: ModuleT) -> ModuleT:
    path = run_folder / RESULT / "model.safetensors"
    stored = _read(path)
    own = module.state_dict()
    wrong = [k for k in own if k not in stored or stored[k].shape != own[k].shape]
    if wrong:
        raise TrainingError(f"{path} lacks {wrong[0]} or has it in another shape", "train it again")
    module.load_state_dict({name: stored[name] for name in own})
    return module.requires_grad_(False).eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {path}: {error}", "train it again") from error
