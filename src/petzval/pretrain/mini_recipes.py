"""The runs that make the checkpoint that ships inside.

mini_vae → mini_latents ─────────────────┐
mini_tokenizer → mini_language_model ────┴→ mini_denoiser → mini_export → mini_unpack
"""

from __future__ import annotations

from dataclasses import replace

from petzval.models.sizes import MINI_GPT_OSS, MINI_MMDIT, MINI_VAE
from petzval.pretrain.cache import CacheConfig
from petzval.pretrain.denoiser import DenoiserConfig
from petzval.pretrain.language_model import LanguageModelConfig
from petzval.pretrain.recipe import (
    AutoencoderRecipe,
    DenoiserRecipe,
    DenoiserStage,
    ExportRecipe,
    LanguageModelRecipe,
    LatentsRecipe,
    TokenizerRecipe,
    UnpackRecipe,
)
from petzval.pretrain.vae import AutoencoderObjectiveConfig
from petzval.training.loop import LoopConfig
from petzval.training.optimizer import OptimizerConfig


def mini_tokenizer() -> TokenizerRecipe:
    """8192 ids: 8171 byte pairs and the 21 markers."""
    return TokenizerRecipe()


def mini_export() -> ExportRecipe:
    """The folder that ships inside."""
    return ExportRecipe()


def mini_unpack() -> UnpackRecipe:
    """Tokenizer, autoencoder and text encoder of the mini that ships inside, as finished runs."""
    return UnpackRecipe()


def mini_vae() -> AutoencoderRecipe:
    """The small autoencoder of the FLUX.2 form: 16 latent channels, 1.8 M parameters."""
    return AutoencoderRecipe(
        model=MINI_VAE,
        objective=AutoencoderObjectiveConfig(),
        loop=LoopConfig(
            optimizer=OptimizerConfig(
                kind="muon",
                learning_rate=2e-3,
                betas=(0.9, 0.99),
                weight_decay=0.0,
                warmup_steps=50,
                decay="cooldown",
                cooldown=0.5,
                final_fraction=0.02,
            ),
            num_steps=40_000,
            minutes=11.0,
            autocast="bfloat16",
            ema_decay=0.995,
        ),
    )


def mini_language_model() -> LanguageModelRecipe:
    """The small text encoder of the GPT-OSS form, in twelve languages."""
    return LanguageModelRecipe(
        model=MINI_GPT_OSS,
        objective=LanguageModelConfig(),
        loop=LoopConfig(
            optimizer=OptimizerConfig(
                kind="muon",
                learning_rate=2e-3,
                betas=(0.9, 0.98),
                weight_decay=0.05,
                warmup_steps=40,
                decay="cooldown",
                cooldown=0.5,
                final_fraction=0.02,
            ),
            num_steps=40_000,
            minutes=18.0,
            ema_decay=0.995,
        ),
    )


def mini_latents() -> LatentsRecipe:
    """28,672 scenes at 128² area, then 12,288 at 256² area, four captions each."""
    return LatentsRecipe(
        parts=(
            CacheConfig(base=128, num_shards=56, shard_size=512),
            CacheConfig(base=256, num_shards=48, shard_size=256, seed=1),
        )
    )


def mini_latents_gpu() -> LatentsRecipe:
    """147,456 scenes at 128² area, then 65,536 at 256² area: what a GPU trains on."""
    return LatentsRecipe(
        parts=(
            CacheConfig(base=128, num_shards=288, shard_size=512),
            CacheConfig(base=256, num_shards=256, shard_size=256, seed=1),
        )
    )


def mini_denoiser() -> DenoiserRecipe:
    """The small illustrator: 128² area first, then mostly 256².

    Time on two cores; more of both stages makes it better (`--minutes`).

    The shipped weights are those of three runs in turn, each from the weights of the one before.
    The first had no metric and no plain scenes, the second took them up on the way
    (research/LOG.md).
    """
    optimizer = OptimizerConfig(
        kind="muon",
        learning_rate=2e-3,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        warmup_steps=100,
    )
    return DenoiserRecipe(
        model=MINI_MMDIT,
        stages=(
            DenoiserStage(
                name="low",
                objective=DenoiserConfig(
                    bases=(128,),
                    base_shares=(1.0,),
                    batch_tokens=3072,
                    visible_share=0.75,
                ),
                loop=LoopConfig(
                    optimizer=optimizer,
                    num_steps=100_000,
                    minutes=60.0,
                    autocast="bfloat16",
                    ema_decay=0.998,
                ),
                minutes_share=0.52,
                plain_factor=5.0,
                caption_draws=2,
            ),
            DenoiserStage(
                name="mixed",
                objective=DenoiserConfig(
                    bases=(128, 256),
                    base_shares=(0.25, 0.75),
                    batch_tokens=3072,
                    visible_share=0.75,
                    seed=1,
                ),
                loop=LoopConfig(
                    optimizer=OptimizerConfig(
                        kind="muon",
                        learning_rate=1.2e-3,
                        betas=(0.9, 0.98),
                        weight_decay=0.02,
                        warmup_steps=50,
                        decay="cooldown",
                        cooldown=0.6,
                        final_fraction=0.05,
                    ),
                    num_steps=100_000,
                    minutes=55.0,
                    autocast="bfloat16",
                    ema_decay=0.998,
                ),
                minutes_share=0.48,
                plain_factor=5.0,
                caption_draws=2,
            ),
        ),
    )


def mini_denoiser_gpu() -> DenoiserRecipe:
    """The small illustrator on one GPU, over the scenes of `mini_latents_gpu`.

    Twenty times the batch of `mini_denoiser`, since a GPU that is handed 3,072 tokens waits for
    its next ones. Its rates are a guess: no GPU has run it yet, and the shipped weights are not
    its.
    """
    low, mixed = mini_denoiser().stages
    return DenoiserRecipe(
        model=MINI_MMDIT,
        stages=(
            _on_a_gpu(low, minutes=1.5, learning_rate=3e-3),
            _on_a_gpu(mixed, minutes=2.0, learning_rate=2e-3),
        ),
        latents="latents_gpu",
    )


def _on_a_gpu(stage: DenoiserStage, *, minutes: float, learning_rate: float) -> DenoiserStage:
    optimizer = replace(stage.loop.optimizer, learning_rate=learning_rate)
    return replace(
        stage,
        objective=replace(stage.objective, batch_tokens=65_536),
        loop=replace(
            stage.loop, optimizer=optimizer, minutes=minutes, num_workers=8, callback_minutes=60.0
        ),
        plain_factor=3.0,
    )
