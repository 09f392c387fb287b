"""Runs of seconds that prove the road.

The stages of `mini_*` on coloured squares, and `smoke_corpus` on any corpus of one's own.
"""

from __future__ import annotations

import dataclasses

from petzval.data.bucket_sampler import BucketMode
from petzval.data.packed_sampler import PackedMode
from petzval.data.packing import CostModel
from petzval.data.sampler import SamplerConfig
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import AutoencoderConfig
from petzval.pretrain.cache import CacheConfig
from petzval.pretrain.corpus_batch import CorpusConfig
from petzval.pretrain.denoiser import DenoiserConfig
from petzval.pretrain.export import ExportConfig
from petzval.pretrain.language_model import LanguageModelConfig
from petzval.pretrain.recipe import (
    AutoencoderRecipe,
    CorpusRecipe,
    DenoiserRecipe,
    DenoiserStage,
    ExportRecipe,
    LanguageModelRecipe,
    LatentsRecipe,
)
from petzval.pretrain.vae import AutoencoderObjectiveConfig
from petzval.training.loop import LoopConfig
from petzval.training.optimizer import OptimizerConfig

_SMOKE_OPTIMIZER = OptimizerConfig(learning_rate=2e-3, warmup_steps=5)


def smoke_vae() -> AutoencoderRecipe:
    """Seconds: a tiny autoencoder of coloured squares."""
    return AutoencoderRecipe(
        model=AutoencoderConfig(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
        ),
        objective=AutoencoderObjectiveConfig(
            bases=(128,), crops=(32,), crop_shares=(1.0,), batch_pixels=4096
        ),
        loop=LoopConfig(optimizer=_SMOKE_OPTIMIZER, num_steps=6, log_every=2),
        scenes="coloured_squares",
        num_statistics=9,
    )


def smoke_language_model() -> LanguageModelRecipe:
    """Seconds: a tiny language model about coloured squares."""
    return LanguageModelRecipe(
        model=GptOssConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=32,
            num_local_experts=2,
            num_experts_per_tok=1,
            vocab_size=1,
        ),
        objective=LanguageModelConfig(batch_size=4, steps_per_window=2),
        loop=LoopConfig(optimizer=_SMOKE_OPTIMIZER, num_steps=6, log_every=2),
        scenes="coloured_squares",
    )


def smoke_latents() -> LatentsRecipe:
    """Seconds: a handful of shards."""
    return LatentsRecipe(
        parts=(
            CacheConfig(base=128, num_shards=2, shard_size=8, num_captions=2),
            CacheConfig(base=256, num_shards=1, shard_size=4, num_captions=2, seed=1),
        ),
        scenes="coloured_squares",
        autoencoder="vae",
    )


def smoke_denoiser() -> DenoiserRecipe:
    """Seconds: a tiny denoiser through both stages."""
    low = DenoiserConfig(batch_tokens=256, steps_per_window=2)
    mixed = DenoiserConfig(
        bases=(128, 256),
        base_shares=(0.5, 0.5),
        batch_tokens=256,
        steps_per_window=2,
        visible_share=0.5,
        seed=1,
    )
    loop = LoopConfig(
        optimizer=OptimizerConfig(kind="muon", learning_rate=1e-3, warmup_steps=5),
        num_steps=4,
        log_every=2,
    )
    return DenoiserRecipe(
        model=MMDiTConfig(
            num_layers=2,
            num_attention_heads=1,
            in_channels=16,
            out_channels=4,
            enc_hidden_dim=32,
            selected_layer_index=(0, 1),
        ),
        stages=(
            DenoiserStage(name="low", objective=low, loop=loop, minutes_share=0.5),
            DenoiserStage(
                name="mixed",
                objective=mixed,
                loop=loop,
                minutes_share=0.5,
                plain_factor=3.0,
                caption_draws=2,
            ),
        ),
        rescan_steps=4,
        preview_steps=2,
    )


def smoke_export() -> ExportRecipe:
    """Seconds: the smoke runs as a checkpoint."""
    return ExportRecipe(settings=ExportConfig(name="smoke", steps=2, guidance=3.0, base=128))


def smoke_corpus() -> CorpusRecipe:
    """Seconds: a tiny denoiser on any shards, with the frozen networks of any checkpoint."""
    return CorpusRecipe(
        model=MMDiTConfig(
            num_layers=2,
            num_attention_heads=1,
            in_channels=16,
            out_channels=4,
            enc_hidden_dim=32,
            selected_layer_index=(0,),
        ),
        adapts=True,
        objective=CorpusConfig(
            sampler=SamplerConfig(
                num_virtual_ranks=2,
                bucket=BucketMode(batch_sizes=((64, 4), (256, 2), (1024, 1))),
                packed=PackedMode(token_budget=4608, cost_model=CostModel(linear_tokens=6 * 64)),
            ),
        ),
        loop=LoopConfig(
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
            num_steps=4,
            log_every=2,
        ),
        num_previews=2,
        preview_steps=2,
        preview_guidance=3.0,
    )


def smoke_corpus_packed() -> CorpusRecipe:
    """`smoke_corpus` in packed rows with stratified noise levels."""
    recipe = smoke_corpus()
    sampler = dataclasses.replace(recipe.objective.sampler, mode="packed")
    objective = dataclasses.replace(recipe.objective, sampler=sampler, stratified=True)
    return dataclasses.replace(recipe, objective=objective)
