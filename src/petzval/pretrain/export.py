"""Finished runs → a checkpoint in the published folder layout.

out/
    model_index.json  scheduler/  tokenizer/
    transformer/  text_encoder/     bfloat16, in small shards
    vae/                            float32, as published
    petzval.json                    name and default settings
    NOTICE  licences.json           of the pictures it learned from
    training/                       recipe and thinned metrics of every run
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import TrainingError
from petzval.pretrain import results
from petzval.pretrain.card import model_card
from petzval.training.metrics import read_metrics
from petzval.weights.writing import Component, save_checkpoint

MAX_SHARD_BYTES = 8 * 10**6
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_METRIC_ROWS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What a checkpoint is called and how it wants to be used.

    Attributes:
        steps, guidance, base: defaults where a request does not say.
        denoiser, encoder, autoencoder, latents, tokenizer: names of the run folders.
    """

    name: str = "mini"
    steps: int = 20
    guidance: float = 4.0
    base: int = 256
    denoiser: str = "denoiser"
    encoder: str = "language_model"
    autoencoder: str = "vae"
    latents: str = "latents"
    tokenizer: str = "tokenizer"


def export_checkpoint(
    runs_folder: Path,
    out_folder: Path,
    config: ExportConfig,
    *,
    data_folder: Path | None = None,
    extra_files: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the checkpoint that the runs have made; what was at `out_folder` is replaced.

    Args:
        runs_folder: holds one folder for each run.
        out_folder: the checkpoint.
        config: names of the runs, default settings.
        data_folder: its NOTICE and licences.json go along.
        extra_files: further text files by relative name; a README.md replaces the card.
        max_shard_bytes: larger networks are split.

    Raises:
        TrainingError: a run is not finished, or the parts do not fit each other.
        CheckpointError: the folder cannot be written.
    """
    denoiser = results.load_denoiser(runs_folder / config.denoiser)
    encoder = results.load_encoder(
        runs_folder / config.encoder, denoiser.config.selected_layer_index
    )
    autoencoder = results.load_autoencoder(runs_folder / config.autoencoder)
    tokenizer_folder = runs_folder / config.tokenizer
    num_ids = PromptTokenizer(tokenizer_folder).num_ids
    if num_ids != encoder.config.vocab_size:
        raise TrainingError(
            f"{tokenizer_folder} has {num_ids} ids, the text encoder {encoder.config.vocab_size}",
            "train the text encoder again with this tokenizer",
        )
    text_encoder = Component.of(encoder, torch.bfloat16)
    norm = results.load_final_norm(runs_folder / config.encoder)
    text_encoder = Component(
        config=text_encoder.config,
        state={**text_encoder.state, "model.norm.weight": norm.bfloat16()},
    )
    settings = {
        "name": config.name,
        "steps": config.steps,
        "guidance": config.guidance,
        "base": config.base,
    }
    networks = {"denoiser": denoiser, "text encoder": encoder, "autoencoder": autoencoder}
    chain = (config.tokenizer, config.autoencoder, config.encoder, config.latents, config.denoiser)
    card = model_card(settings, networks, [runs_folder / run for run in chain], data_folder)
    files = {"README.md": card, **training_record(runs_folder, config), **(extra_files or {})}
    files["petzval.json"] = json.dumps(settings, indent=2) + "\n"
    for name in ("NOTICE", "licences.json"):
        if data_folder is not None and (data_folder / name).is_file():
            files.setdefault(name, (data_folder / name).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for name in _TOKENIZER_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copy(tokenizer_folder / name, scratch)
        save_checkpoint(
            out_folder,
            [Component.of(denoiser, torch.bfloat16), text_encoder, Component.of(autoencoder)],
            scratch,
            extra_files=files,
            max_shard_bytes=max_shard_bytes,
            overwrite=True,
        )
    return out_folder


def training_record(runs_folder: Path, config: ExportConfig) -> dict[str, str]:
    """Recipes and thinned metrics of all runs, by relative file name."""
    files: dict[str, str] = {}
    for run in (config.autoencoder, config.encoder, config.latents, config.denoiser):
        for path in sorted((runs_folder / run).rglob("recipe.json")):
            name = path.relative_to(runs_folder).as_posix()
            files[f"training/{name}"] = path.read_text(encoding="utf-8")
        for path in sorted((runs_folder / run).rglob("metrics.jsonl")):
            name = path.relative_to(runs_folder).as_posix()
            files[f"training/{name}"] = _thin(path)
    return files


def _thin(path: Path) -> str:
    """At most about `_METRIC_ROWS` rows of the steps, and every held-out row."""
    rows = read_metrics(path)
    steps = [row for row in rows if "loss" in row]
    stride = max(1, len(steps) // _METRIC_ROWS)
    kept = {id(row) for row in steps[::stride]} | {id(row) for row in steps[-1:]}
    chosen = [row for row in rows if id(row) in kept or "loss" not in row]
    return "".join(json.dumps(_rounded(row)) + "\n" for row in chosen)


def _rounded(row: Mapping[str, float | int]) -> dict[str, float | int]:
    return {name: float(f"{value:.5g}") for name, value in row.items()}
