"""What a run can be: each recipe is a frozen value, and nothing in it is read from a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from petzval.errors import ConfigError
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import AutoencoderConfig
from petzval.pretrain.cache import CacheConfig
from petzval.pretrain.corpus_batch import CorpusConfig
from petzval.pretrain.denoiser import DenoiserConfig
from petzval.pretrain.export import ExportConfig
from petzval.pretrain.language_model import LanguageModelConfig
from petzval.pretrain.scenes import Scenes
from petzval.pretrain.tokenizer import MINI_NUM_IDS
from petzval.pretrain.vae import AutoencoderObjectiveConfig
from petzval.training.loop import LoopConfig


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
class CorpusRecipe:
    """A denoiser run over the shards of a corpus, with the frozen networks of a checkpoint.

    Attributes:
        model: sizes of the denoiser.
        adapts: whether its channels and the features it reads follow the checkpoint's networks;
            otherwise a checkpoint with others is refused.
        num_previews: captions of the corpus that a grid of pictures is drawn from.
    """

    model: MMDiTConfig
    objective: CorpusConfig
    loop: LoopConfig
    adapts: bool = False
    num_previews: int = 6
    preview_steps: int = 20
    preview_guidance: float = 5.0
    seed: int = 5
    kind: Literal["corpus"] = "corpus"


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
    | CorpusRecipe
    | ExportRecipe
    | UnpackRecipe
)
