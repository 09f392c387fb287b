"""The short distillations of the ablation: `mini_turbo` at 128², one thing changed in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from petzval.distill.objective import DistillConfig
from petzval.distill.recipes import TurboRecipe, mini_turbo
from petzval.distill.renoise import RenoiseConfig
from petzval.distill.run import RESULT, distill

NUM_ITERATIONS, BATCH_TOKENS, SIZE = 60, 512, "128x128"

WHOLE = "with all terms"

_MINI = mini_turbo().objective

ARMS: Mapping[str, DistillConfig] = {
    WHOLE: replace(_MINI, adversarial_weight=0.001),
    "without discriminator": _MINI,
    "without alignment": replace(_MINI, alignment=0.0),
    "without matching": replace(_MINI, matching=False),
    "without guidance": replace(_MINI, guidance=1.0),
    "guidance 4": replace(_MINI, guidance=4.0),
    "guidance 6": replace(_MINI, guidance=6.0),
    "levels coupled": replace(_MINI, renoise=RenoiseConfig(guidance="coupled")),
    "first step its own": replace(_MINI, first_step_weight=0.3, first_step_calls=4),
}
"""Arm -> objective. All but the first are without the discriminator, as the shipped student is; the
guidance is 2.5 where the name does not say. All begin with the teacher's weights."""


def recipe_of(arm: str, num_iterations: int = NUM_ITERATIONS) -> TurboRecipe:
    """The recipe of an arm."""
    recipe = mini_turbo()
    return replace(
        recipe,
        name=arm,
        objective=ARMS[arm],
        start_share=0.0,
        data=replace(recipe.data, bases=(128,), base_shares=(1.0,), batch_tokens=BATCH_TOKENS),
        loop=replace(
            recipe.loop,
            num_steps=num_iterations,
            minutes=None,
            optimizer=replace(recipe.loop.optimizer, learning_rate=2e-4),
            log_every=2,
            callback_minutes=60.0,
            ema_decay=0.95,
        ),
    )


def checkpoint_of(folder: Path, arm: str) -> Path:
    """Where an arm's student is or will be."""
    return folder / arm.replace(" ", "-") / RESULT


def train(folder: Path, arm: str, *, latents: Path, threads: int | None) -> Path:
    """Distil an arm, or go on with it; its checkpoint."""
    found = checkpoint_of(folder, arm)
    if not found.is_dir():
        distill(recipe_of(arm), found.parent, latents=latents, threads=threads)
    return found
