"""Every run as a value: `mini_*` make the checkpoint that ships inside, `smoke_*` prove the road.

    mini_vae → mini_latents ─────────────────┐
    mini_tokenizer → mini_language_model ────┴→ mini_denoiser → mini_export → mini_unpack

A recipe is a function returning a frozen value; nothing in it is read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from petzval.errors import ConfigError
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.sizes import MINI_GPT_OSS, MINI_MMDIT, MINI_VAE
from petzval.models.vae import AutoencoderConfig
from petzval.pretrain.cache import CacheConfig
from petzval.pretrain.denoiser import DenoiserConfig
from petzval.pretrain.export import ExportConfig
from petzval.pretrain.language_model import LanguageModelConfig
from petzval.pretrain.scenes import Scenes
from petzval.pretrain.tokenizer import MINI_NUM_IDS
from petzval.pretrain.vae import AutoencoderObjectiveConfig
from petzval.training.loop import LoopConfig
from petzval.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRecipe:
    """An autoencoder run.

    Attributes:
        num_statistics: scenes whose tokens give the batch-norm statistics.
    """

    model: AutoencoderConfig
    objective: AutoencoderObjectiveConfig
    loop: LoopConfig
    scenes: Scenes = "sprites"
    num_statistics: int = 1000
    seed: int = 1
    kind: Literal["autoencoder"] = "autoencoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelRecipe:
    """A text-encoder run; `vocab_size` of the model is replaced by the tokenizer's."""

    model: GptOssConfig
    objective: LanguageModelConfig
    loop: LoopConfig
    scenes: Scenes = "sprites"
    seed: int = 2
    kind: Literal["language_model"] = "language_model"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsRecipe:
    """A cache of encoded scenes: its parts are made in turn, shard by shard."""

    parts: tuple[CacheConfig, ...]
    scenes: Scenes = "sprites"
    seed: int = 3
    autoencoder: str = "vae"
    kind: Literal["latents"] = "latents"


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserStage:
    """One stage of a denoiser run; it starts from the weights of the one before.

    Attributes:
        minutes_share: of the minutes that are given to the whole run.
        plain_factor: how much oftener a plain scene is drawn than another: one large thing of the
            core vocabulary in the style that an unstyled prompt means, or painted in one colour.
        caption_draws: the shortest of so many captions of a scene is used.
    """

    name: str
    objective: DenoiserConfig
    loop: LoopConfig
    minutes_share: float = 1.0
    plain_factor: float = 1.0
    caption_draws: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserRecipe:
    """A denoiser run.

    Attributes:
        autoencoder, encoder, latents: names of the run folders beside this one.
        preview_bases: families whose square a grid of pictures is drawn at, one a stage.
    """

    model: MMDiTConfig
    stages: tuple[DenoiserStage, ...]
    autoencoder: str = "vae"
    encoder: str = "language_model"
    latents: str = "latents"
    rescan_steps: int = 64
    preview_steps: int = 12
    preview_guidance: float = 3.0
    seed: int = 4
    kind: Literal["denoiser"] = "denoiser"

    def __post_init__(self) -> None:
        for stage in self.stages:
            if self.rescan_steps % stage.objective.steps_per_window:
                raise ConfigError(
                    f"rescan_steps {self.rescan_steps} is not a multiple of steps_per_window "
                    f"{stage.objective.steps_per_window} of stage {stage.name!r}"
                )
        if abs(sum(stage.minutes_share for stage in self.stages) - 1) > 1e-6:
            raise ConfigError("the stages' minutes_share must sum to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecipe:
    """A small vocabulary, cut from the full one to what the corpus uses."""

    num_ids: int = MINI_NUM_IDS
    kind: Literal["tokenizer"] = "tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRecipe:
    """A checkpoint in the published layout, from the runs beside its folder."""

    settings: ExportConfig = field(default_factory=ExportConfig)
    kind: Literal["export"] = "export"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpackRecipe:
    """The way back: a checkpoint's parts as finished runs, to train on from.

    Attributes:
        model: a name that `petzval models` lists, where no folder is given.
    """

    model: str = "mini"
    settings: ExportConfig = field(default_factory=ExportConfig)
    kind: Literal["unpack"] = "unpack"


Recipe = (
    TokenizerRecipe
    | AutoencoderRecipe
    | LanguageModelRecipe
    | LatentsRecipe
    | DenoiserRecipe
    | ExportRecipe
    | UnpackRecipe
)


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


def mini_denoiser() -> DenoiserRecipe:
    """The small illustrator: 128² area first, then mostly 256².

    Time on two cores; more of both stages makes it better (`--minutes`).

    The shipped weights began with those of an earlier mini and took the recipe up on the way: the
    error's metric at step 584, plain scenes and short captions at step 1227.
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


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        mini_tokenizer,
        mini_vae,
        mini_language_model,
        mini_latents,
        mini_denoiser,
        mini_export,
        mini_unpack,
        smoke_vae,
        smoke_language_model,
        smoke_latents,
        smoke_denoiser,
        smoke_export,
    )
}


def recipe_by_name(name: str) -> Recipe:
    """The recipe's value.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}", f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
