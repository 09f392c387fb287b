"""A checkpoint → finished runs, so that a part can be trained on where its other runs are gone.

The inverse of `export`. Weights come back as they were shipped: a network stored in bfloat16 has
lost its last bits for good.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from petzval.models.gpt_oss import GptOssEncoder
from petzval.pretrain import results
from petzval.pretrain.export import ExportConfig
from petzval.weights.checkpoint import Checkpoint

STARTED_FROM = "started_from"
_FINAL_NORM = "model.norm.weight"


def unpack_checkpoint(
    folder: Path, runs_folder: Path, names: ExportConfig | None = None
) -> list[Path]:
    """Write tokenizer, autoencoder, text encoder and the denoiser's earlier logs as runs.

    A run that already holds a result is left alone. The denoiser's weights stay where they are: a
    denoiser recipe takes them with `start`.

    Args:
        folder: a checkpoint in the published layout.
        runs_folder: gets one folder for each run.
        names: of the run folders; the export's own if None.

    Returns:
        The run folders that were written.

    Raises:
        CheckpointError, ConfigError: the checkpoint is not whole.
    """
    names = names or ExportConfig()
    checkpoint = Checkpoint.open(folder)
    written: list[Path] = []
    tokenizer = runs_folder / names.tokenizer
    if not (tokenizer / "tokenizer.json").is_file():
        shutil.copytree(checkpoint.tokenizer_folder, tokenizer, dirs_exist_ok=True)
        written.append(tokenizer)
    autoencoder = runs_folder / names.autoencoder
    if not results.has_result(autoencoder):
        module = checkpoint.load_vae(torch.float32)
        results.save_result(autoencoder, module, checkpoint.vae_config)
        written.append(autoencoder)
    encoder = runs_folder / names.encoder
    if not results.has_result(encoder):
        _unpack_encoder(checkpoint, encoder)
        written.append(encoder)
    denoiser = runs_folder / names.denoiser / STARTED_FROM
    if not denoiser.exists():
        written.append(runs_folder / names.denoiser)
    for source, target in (
        (names.autoencoder, autoencoder),
        (names.encoder, encoder),
        (names.denoiser, denoiser),
    ):
        logs = folder / "training" / source
        if logs.is_dir() and target in (*written, denoiser):
            shutil.copytree(logs, target, dirs_exist_ok=True)
    return written


def _unpack_encoder(checkpoint: Checkpoint, run_folder: Path) -> None:
    """Every layer, and the final norm where the file has one (features never pass it)."""
    encoder: GptOssEncoder = checkpoint.load_encoder(torch.float32, all_layers=True)
    results.save_result(run_folder, encoder, checkpoint.encoder_config)
    source = checkpoint.encoder_source
    if _FINAL_NORM in source:
        results.save_final_norm(run_folder, source.read(_FINAL_NORM, torch.float32, "cpu"))
        source.close()
