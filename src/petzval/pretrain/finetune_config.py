"""Settings of a fine-tuning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from petzval.config import check_ranges, setting
from petzval.errors import ConfigError
from petzval.resolution import PRESETS
from petzval.training.loop import LoopConfig
from petzval.training.lora import LoraConfig
from petzval.training.optimizer import OptimizerConfig
from petzval.training.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Settings of a fine-tuning run.

    Attributes:
        full: change all of the denoiser's weights, in place of training a LoRA.
        lora: rank, alpha, dropout and layers; of no meaning with `full`.
        num_steps: the run ends after this many.
        minutes: … or after this much time in steps; None for no limit.
        batch_size: pictures a step, of all processes together; some more where a bucket's are
            smaller.
        learning_rate: peak; None takes 1e-4 for a LoRA, 1e-5 for all weights.
        text_dropout: share of the samples that lose their caption, for guidance.
        base: family of sizes; None takes the checkpoint's own.
        trigger: caption of pictures that have none; None refuses them.
        ema_decay: of the averages, which are the result.
        preview_steps, preview_guidance: of the grids; None takes the checkpoint's own.
        seed: of everything random.
    """

    full: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_steps: int = setting(1000, minimum=1)
    minutes: float | None = setting(None, minimum=0, maximum=1e6)
    batch_size: int = setting(4, minimum=1, maximum=4096)
    learning_rate: float | None = setting(None, minimum=0, maximum=1)
    text_dropout: float = setting(0.1, minimum=0, maximum=1)
    base: int | None = None
    trigger: str | None = None
    ema_decay: float = setting(0.99, minimum=0, maximum=0.99999)
    preview_steps: int | None = setting(None, minimum=1, maximum=1000)
    preview_guidance: float | None = setting(None, minimum=0, maximum=100)
    seed: int = setting(0, minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        check_ranges(self, where="fine-tuning")
        if self.base is not None and self.base not in PRESETS:
            known = ", ".join(str(base) for base in sorted(PRESETS))
            raise ConfigError(f"unknown base size {self.base}", f"base sizes are {known}")

    def loop(self, autocast: Literal["none", "bfloat16"] = "none") -> LoopConfig:
        """The loop's settings, scaled to the length of the run."""
        usual = 1e-5 if self.full else 1e-4
        return LoopConfig(
            optimizer=OptimizerConfig(
                learning_rate=usual if self.learning_rate is None else self.learning_rate,
                warmup_steps=min(100, self.num_steps // 10),
            ),
            num_steps=self.num_steps,
            minutes=self.minutes,
            # Samples are dealt out one by one, so a picture weighs the same on whichever process.
            parallel=ParallelConfig(weighting="sample"),
            autocast=autocast,
            log_every=max(1, min(20, self.num_steps // 20)),
            ema_decay=self.ema_decay,
        )
