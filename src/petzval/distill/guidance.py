"""Guidance distillation (arXiv:2210.03142): one call gives what guidance needs two for.

    x_1 = noise,   x_(k+1) = x_k + (s_(k+1) - s_k) v_k,   v_k = guided v_T(x_k, s_k, c)
    L   = sum over k of mean |v_theta(x_k, s_k, c) - v_k|^2

The teacher's own path of few steps, at the levels that inference uses, is all the student learns:
no pictures, prompts and sizes alone. So it can become as good as its teacher is in as many steps,
not better; but it follows prompts as a guided teacher does, which makes it the better start for
matching a distribution (`objective`).

Departures: the scale is one number, where the paper's student is told it; the paper's states are
noised pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from petzval.config import check_ranges, setting
from petzval.distill import terms
from petzval.distill.conditions import Conditions, Network
from petzval.distill.objective import Source
from petzval.distill.rollout import guided, student_sigmas, walk
from petzval.pretrain.denoiser import DenoiserBatch
from petzval.training.objective import Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """Settings of the objective.

    Attributes:
        num_steps: of teacher and student.
        guidance: scale of the teacher, as at inference.
        seed: of the noise.
    """

    num_steps: int = setting(4, minimum=1, maximum=1000)
    guidance: float = setting(5.0, minimum=0, maximum=100)
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, where="guidance distillation")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceBatch:
    """Prompts and a size, of `real`, and the noise [B, S, C] that the path begins with."""

    real: DenoiserBatch
    start: Tensor


class GuidanceObjective:
    """The student's one update, for `training.step.training_step`.

    Args:
        source: prompts, in batches of one bucket; its latents are not looked at.
        student, teacher: see the module; the teacher is frozen.
        rank: number of this process; its noise is its own.
        flops: operations of one forward pass on a batch; None if unknown.
    """

    def __init__(
        self,
        source: Source,
        student: Network,
        teacher: Network,
        config: GuidanceConfig,
        *,
        rank: int = 0,
        flops: Callable[[DenoiserBatch], float] | None = None,
    ) -> None:
        self.source = source
        self.student, self.teacher = student, teacher
        self.config = config
        self._rank = rank
        self._flops = flops

    def batch(self, step: int) -> GuidanceBatch:
        """A pure function of the number."""
        real = self.source.batch(step)
        own = np.random.default_rng((self.config.seed, step, 13, self._rank))
        generator = torch.Generator().manual_seed(int(own.integers(2**62)))
        return GuidanceBatch(real=real, start=torch.randn(real.latents.shape, generator=generator))

    def prepare(self, batch: GuidanceBatch) -> GuidanceBatch:
        """With text features, on the networks' device."""
        real = self.source.prepare(batch.real)
        start = batch.start.to(real.latents.device, non_blocking=True)
        return replace(batch, real=real, start=start)

    def loss(self, batch: GuidanceBatch) -> Loss:
        """The sum over the steps; the log has each step's own as loss_step_1 and on."""
        config, conditions = self.config, Conditions.of(batch.real)
        levels = student_sigmas(batch.real.grid, config.num_steps)
        teacher = guided(self.teacher.frozen, config.guidance)
        with torch.no_grad():
            path = list(walk(teacher, batch.start, conditions, levels))
        losses: list[Tensor] = []
        for step in path:
            predicted = self.student.velocity(step.state, step.sigmas, conditions)
            losses.append(terms.velocity_loss(predicted, step.velocity).mean())
        size, num_tokens = batch.real.latents.shape[:2]
        calls = config.num_steps * (2 + 3)  # both branches; forward and backward
        return Loss(
            value=torch.stack(losses).sum(),
            parts={f"loss_step_{k}": loss.detach() for k, loss in enumerate(losses, start=1)},
            num_items=size,
            num_tokens=size * num_tokens,
            flops=None if self._flops is None else calls * self._flops(batch.real),
        )
