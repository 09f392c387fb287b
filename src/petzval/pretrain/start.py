"""The weights that a denoiser's training begins with, where they are not random."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from petzval.errors import TrainingError
from petzval.models.mmdit import MMDiT
from petzval.weights.checkpoint import Checkpoint


def take_weights(model: MMDiT, start: Path) -> None:
    """Begin with the denoiser of a checkpoint in the published layout, of any float type.

    Raises:
        TrainingError: it has another size.
        CheckpointError, ConfigError: it cannot be read.
    """
    checkpoint = Checkpoint.open(start)
    # `inner_dim` is written for other programs and decides nothing.
    stored, own = (
        dataclasses.replace(config, inner_dim=None)
        for config in (checkpoint.denoiser_config, model.config)
    )
    if stored != own:
        raise TrainingError(
            f"the denoiser of {start} has another size than the recipe's: "
            f"{checkpoint.denoiser_config}",
            "use a recipe for that size",
        )
    model.load_state_dict(checkpoint.load_denoiser(torch.float32).state_dict())
