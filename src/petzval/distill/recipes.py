"""Every distillation as a value: `lens_turbo` the paper's, `mini_*` ours, `smoke_*` tests.

A recipe is a function returning a frozen value; nothing in it is read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from petzval.distill.discriminator import HeadsConfig
from petzval.distill.guidance import GuidanceConfig
from petzval.distill.objective import DistillConfig
from petzval.errors import ConfigError
from petzval.pretrain.denoiser import DenoiserConfig
from petzval.pretrain.folder_pool import batch_tokens
from petzval.training.loop import LoopConfig
from petzval.training.lora import LoraConfig
from petzval.training.optimizer import OptimizerConfig
from petzval.training.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRecipe:
    """What every distillation run is given.

    Attributes:
        name: of the checkpoint that it leaves.
        teacher: name of a model, where none is given; None asks for one.
        data: buckets and batch sizes; nothing else of pre-training's objective is used.
        plain_factor: how much oftener a plain scene is drawn than another, as in pre-training.
        caption_draws: the shortest of so many captions of a scene is used.
        frozen: type of the teacher's and the text encoder's weights.
        rescan_steps: batches between looks at the cache of latents.
        preview_base: family whose square a grid of pictures is drawn at; None takes the teacher's.
    """

    name: str
    teacher: str | None
    data: DenoiserConfig
    loop: LoopConfig
    plain_factor: float = 1.0
    caption_draws: int = 1
    frozen: Literal["float32", "bfloat16"] = "float32"
    rescan_steps: int = 320
    preview_base: int | None = None
    seed: int = 5

    def __post_init__(self) -> None:
        if self.data.text_dropout > 0:
            raise ConfigError("distillation drops no text; set text_dropout to 0")
        if self.rescan_steps % self.data.steps_per_window:
            raise ConfigError(
                f"rescan_steps {self.rescan_steps} is not a multiple of steps_per_window "
                f"{self.data.steps_per_window}"
            )
        if self.loop.optimizer.kind != "adamw":
            raise ConfigError("distillation updates with AdamW; set kind to adamw")


@dataclass(frozen=True, kw_only=True, slots=True)
class TurboRecipe(DistillRecipe):
    """Few steps by matching the teacher's distribution.

    Attributes:
        heads: of the discriminator.
        fake_lora: trains the fake score as a LoRA, to save memory; None trains all of it.
        start_share: of what the student began with in the weights that are exported, the rest is
            the student's average; in [0, 1) (WiSE-FT, arXiv:2109.01903).
    """

    objective: DistillConfig
    heads: HeadsConfig
    fake_lora: LoraConfig | None = None
    start_share: float = 0.0

    def __post_init__(self) -> None:
        DistillRecipe.__post_init__(self)
        if not 0 <= self.start_share < 1:
            raise ConfigError(f"start_share must be in [0, 1), got {self.start_share:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceRecipe(DistillRecipe):
    """Guidance within the network, at the teacher's own few steps: a start for the former."""

    objective: GuidanceConfig


def _mini_data() -> DenoiserConfig:
    """Eight pictures of 256² or 32 of 128² an update."""
    return DenoiserConfig(
        bases=(128, 256),
        base_shares=(0.25, 0.75),
        batch_tokens=2048,
        steps_per_window=5,
        text_dropout=0.0,
    )


def lens_turbo() -> TurboRecipe:
    """Lens → Lens-Turbo on 8 GPUs of 80 GB: the paper's figures (section 2.4, appendix D.2).

    Ours, where the paper is silent: the heads' blocks and width, the average of the weights, no
    weight decay, the nine ratios at 1024² as buckets, recomputed blocks.
    """
    return TurboRecipe(
        name="lens-turbo",
        teacher="lens",
        objective=DistillConfig(),
        data=DenoiserConfig(
            bases=(1024,),
            batch_tokens=batch_tokens(4, 1024),
            steps_per_window=5,
            text_dropout=0.0,
            max_tokens=415,
        ),
        loop=LoopConfig(
            optimizer=OptimizerConfig(
                learning_rate=5e-7, betas=(0.0, 0.9), weight_decay=0.0, warmup_steps=0
            ),
            parallel=ParallelConfig(parameters="bfloat16", recompute="blocks"),
            num_steps=1000,
            autocast="bfloat16",
            log_every=5,
            save_minutes=20.0,
            callback_minutes=30.0,
            milestone_steps=100,
            ema_decay=0.99,
        ),
        heads=HeadsConfig(blocks=(11, 23, 35, 47)),
        frozen="bfloat16",
    )


def mini_guided() -> GuidanceRecipe:
    """The small illustrator with its guidance inside, at its own four steps: where Turbo begins."""
    return GuidanceRecipe(
        name="mini-guided",
        teacher="mini",
        objective=GuidanceConfig(guidance=4.0),
        data=_mini_data(),
        loop=LoopConfig(
            optimizer=OptimizerConfig(
                learning_rate=4e-4,
                betas=(0.9, 0.99),
                weight_decay=0.0,
                warmup_steps=50,
                decay="cooldown",
                cooldown=0.5,
                final_fraction=0.1,
            ),
            num_steps=2000,
            minutes=12.0,
            autocast="bfloat16",
            log_every=10,
            callback_minutes=10.0,
            ema_decay=0.98,
        ),
        plain_factor=5.0,
        caption_draws=2,
    )


def mini_turbo() -> TurboRecipe:
    """The small illustrator in four steps, from the one that ships inside.

    Eight pictures of 256² or 32 of 128² an update. Two hundred times the paper's rate, for a
    network of a five-hundredth of Lens' weights and a few hundred iterations; without the
    discriminator, which would take a third of the time. Less guidance than the teacher is used
    with: 4, which is its own, drew busier and busier pictures. Begins with `mini_guided`'s student
    and ends half way between it and what matching makes of it: nearly the one's following of
    prompts, all of the other's distribution (research/LOG.md).
    """
    return TurboRecipe(
        name="mini-turbo",
        teacher="mini",
        objective=DistillConfig(guidance=2.5, adversarial_weight=0.0, first_step_guidance=4.0),
        data=_mini_data(),
        loop=LoopConfig(
            optimizer=OptimizerConfig(
                learning_rate=1e-4,
                betas=(0.0, 0.9),
                weight_decay=0.0,
                warmup_steps=10,
                decay="cooldown",
                cooldown=0.5,
                final_fraction=0.1,
            ),
            num_steps=2000,
            minutes=28.0,
            autocast="bfloat16",
            log_every=5,
            callback_minutes=10.0,
            ema_decay=0.98,
        ),
        heads=HeadsConfig(blocks=(1, 3, 5), hidden=64),
        start_share=0.5,
        plain_factor=5.0,
        caption_draws=2,
    )


def smoke_turbo() -> TurboRecipe:
    """Seconds: two iterations of a tiny teacher, with every term in use."""
    return TurboRecipe(
        name="smoke-turbo",
        teacher=None,
        objective=DistillConfig(first_step_weight=0.1, first_step_calls=2),
        data=DenoiserConfig(
            bases=(128, 256),
            base_shares=(0.5, 0.5),
            batch_tokens=256,
            steps_per_window=5,
            text_dropout=0.0,
        ),
        loop=LoopConfig(
            optimizer=OptimizerConfig(learning_rate=1e-4, betas=(0.0, 0.9), weight_decay=0.0),
            num_steps=2,
            log_every=1,
            ema_decay=0.9,
        ),
        heads=HeadsConfig(blocks=(0, 1), hidden=8),
        preview_base=128,
    )


def smoke_guided() -> GuidanceRecipe:
    """Seconds: two updates of a tiny teacher's student."""
    turbo = smoke_turbo()
    return GuidanceRecipe(
        name="smoke-guided",
        teacher=None,
        objective=GuidanceConfig(),
        data=turbo.data,
        loop=turbo.loop,
        preview_base=turbo.preview_base,
    )


RECIPES: Mapping[str, Callable[[], TurboRecipe | GuidanceRecipe]] = {
    recipe.__name__: recipe
    for recipe in (lens_turbo, mini_guided, mini_turbo, smoke_guided, smoke_turbo)
}


def recipe_by_name(name: str) -> TurboRecipe | GuidanceRecipe:
    """The recipe's value.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name[:40]!r}", f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
