"""One iteration of Lens-Turbo's distillation (Lens paper, section 2.4), update by update.

    4 times   fake score      velocity matching on the student's noised pictures
              heads           real against the student's, approximate R1
    once      student         lambda_d (L_DM + L_CA) + lambda_g L_G
              fake score      phi <- 0.97 phi + 0.03 theta

Departures, numbered:
  1. The step k of the path is drawn once for a batch, and is the same on all ranks: sharded
     networks are gathered call by call, so all ranks must make the same calls.
  2. Fake score and heads learn from one simulated batch, each with its own clipping.
  3. On request the first step follows the teacher's own path (DP-DMD), and the other steps alone
     are matched in distribution: for diversity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from petzval.config import check_ranges, setting
from petzval.distill import terms
from petzval.distill.conditions import Conditions, Features, Network
from petzval.distill.renoise import RenoiseConfig, renoise_levels
from petzval.distill.rollout import between, follow, guided, simulate, student_sigmas
from petzval.flow.path import interpolate, predict_data
from petzval.pretrain.denoiser import DenoiserBatch
from petzval.training.objective import Loss, Phase
from petzval.training.parallel import Shell
from petzval.training.state import within

FAKE, HEADS = "fake", "heads"
"""Names of the run's further parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """Settings of the objective. The defaults are the Lens paper's, as far as it gives them.

    Attributes:
        num_steps: of the student.
        critic_updates: of fake score and heads for one of the student's.
        guidance: w of guidance augmentation; 1 leaves it out.
        matching: False leaves distribution matching out, for ablations.
        score_weight: lambda_d.
        adversarial_weight: lambda_g; 0 runs without a discriminator.
        alignment: mu of implicit distribution alignment; 0 leaves it out.
        floor: of the normaliser.
        r1_gamma, r1_alpha: of the approximate R1.
        first_step_weight: of the first step's own loss; 0 treats it like the others.
        first_step_calls: Euler steps of the teacher within the student's first.
        first_step_guidance: scale of the teacher there, as at inference.
        seed: of all noise; the same on all ranks.
    """

    num_steps: int = setting(4, minimum=1, maximum=1000)
    critic_updates: int = setting(4, minimum=1, maximum=100)
    guidance: float = setting(5.0, minimum=0, maximum=100)
    matching: bool = True
    score_weight: float = setting(0.1, minimum=0)
    adversarial_weight: float = setting(0.001, minimum=0)
    alignment: float = setting(0.03, minimum=0, maximum=1)
    floor: float = setting(0.1, minimum=0)
    r1_gamma: float = setting(1.0, minimum=0)
    r1_alpha: float = setting(0.1, minimum=0)
    first_step_weight: float = setting(0.0, minimum=0)
    first_step_calls: int = setting(4, minimum=1, maximum=1000)
    first_step_guidance: float = setting(5.0, minimum=0, maximum=100)
    renoise: RenoiseConfig = field(default_factory=RenoiseConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, where="distillation")

    @property
    def first_matched(self) -> int:
        """Index of the first step that is matched in distribution."""
        return 1 if self.first_step_weight > 0 and self.num_steps > 1 else 0


@runtime_checkable
class Source(Protocol):
    """Real latents with their prompts, a bucket at a time (`pretrain.denoiser.DenoiserObjective`).

    Its noise and noise levels are those of the critics' re-noising.
    """

    def batch(self, step: int) -> DenoiserBatch:
        """A pure function of the number."""
        ...

    def prepare(self, batch: DenoiserBatch) -> DenoiserBatch:
        """With text features, on the networks' device."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What one update works with.

    Attributes:
        real: latents, conditions, and the noise and levels [B] at which the critics look.
        last: index of the student's last call.
        start: [B, S, C] noise that the student begins with.
        other_noise: [B, S, C] for guidance augmentation, and for the R1's perturbation.
        matching, guidance: [B] levels of the two gradients.
    """

    real: DenoiserBatch
    last: int
    start: Tensor
    other_noise: Tensor
    matching: Tensor
    guidance: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillBatch:
    """The draws of one iteration."""

    critics: tuple[Draw, ...]
    student: Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Teacher's features and the heads on them; `root` is that of the heads' shards."""

    features: Features
    heads: nn.Module
    root: Shell | None = None


class DistillationObjective:
    """The updates of an iteration, for `training.step.training_step`.

    Args:
        source: real latents and prompts.
        student, fake, teacher: see the module; the teacher is frozen.
        judge: needed where `adversarial_weight` is not 0.
        align: moves the fake score's weights towards the student's by a weight.
        rank: number of this process; its noise is its own.
        flops: operations of one forward pass on a batch; None if unknown.
    """

    def __init__(
        self,
        source: Source,
        student: Network,
        fake: Network,
        teacher: Network,
        judge: Judge | None,
        config: DistillConfig,
        *,
        align: Callable[[float], None] = lambda weight: None,
        rank: int = 0,
        flops: Callable[[DenoiserBatch], float] | None = None,
    ) -> None:
        if config.adversarial_weight > 0 and judge is None:
            raise ValueError("adversarial_weight needs a discriminator")
        self.source = source
        self.student, self.fake, self.teacher = student, fake, teacher
        self.judge = judge if config.adversarial_weight > 0 else None
        self.config = config
        self._align = align
        self._rank = rank
        self._flops = flops

    def batch(self, step: int) -> DistillBatch:
        """Draws of `critic_updates` + 1 batches."""
        per_step = self.config.critic_updates + 1
        *critics, student = (self._draw(step * per_step + i) for i in range(per_step))
        return DistillBatch(critics=tuple(critics), student=student)

    def _draw(self, number: int) -> Draw:
        config = self.config
        real = self.source.batch(number)
        shared = np.random.default_rng((config.seed, number, 11))
        last = int(shared.integers(config.first_matched, config.num_steps))
        own = np.random.default_rng((config.seed, number, 12, self._rank))
        generator = torch.Generator().manual_seed(int(own.integers(2**62)))
        sigma = student_sigmas(real.grid, config.num_steps)[last]
        levels = renoise_levels(sigma, real.latents.shape[0], generator, config.renoise)
        start = torch.randn(real.latents.shape, generator=generator)
        other = torch.randn(real.latents.shape, generator=generator)
        # Coupled guidance looks at the very picture that distribution matching looks at.
        coupled = config.renoise.guidance == "coupled"
        return Draw(
            real=real,
            last=last,
            start=start,
            other_noise=real.noise if coupled else other,
            matching=levels.matching,
            guidance=levels.guidance,
        )

    def prepare(self, batch: DistillBatch) -> DistillBatch:
        """With text features, on the networks' device."""
        return DistillBatch(
            critics=tuple(self._prepared(draw) for draw in batch.critics),
            student=self._prepared(batch.student),
        )

    def _prepared(self, draw: Draw) -> Draw:
        real = self.source.prepare(draw.real)
        device = real.latents.device
        return Draw(
            real=replace(real, sigmas=real.sigmas.to(device)),
            last=draw.last,
            start=draw.start.to(device, non_blocking=True),
            other_noise=draw.other_noise.to(device, non_blocking=True),
            matching=draw.matching.to(device),
            guidance=draw.guidance.to(device),
        )

    def phases(self, batch: DistillBatch) -> Iterator[Phase]:
        """All updates of an iteration, and the alignment behind them."""
        for draw in batch.critics:
            yield from self._critic_phases(draw)
        yield Phase(part="", loss=lambda: self.loss(batch))
        if self.config.alignment > 0:
            self._align(self.config.alignment)

    def _critic_phases(self, draw: Draw) -> Iterator[Phase]:
        @functools.cache
        def samples() -> Tensor:
            with torch.no_grad():
                return self._simulated(draw, own=False)

        yield Phase(part=FAKE, loss=lambda: self.fake_loss(draw, samples()))
        judge = self.judge
        if judge is not None:
            yield Phase(part=HEADS, loss=lambda: self.heads_loss(judge, draw, samples()))

    def _simulated(self, draw: Draw, *, own: bool) -> Tensor:
        velocity = self.student.velocity if own else self.student.frozen
        levels = student_sigmas(draw.real.grid, self.config.num_steps)
        return simulate(velocity, draw.start, Conditions.of(draw.real), levels, draw.last)

    def fake_loss(self, draw: Draw, samples: Tensor) -> Loss:
        """The fake score's, on pictures of the student."""
        real = draw.real
        noisy = interpolate(samples, real.noise, real.sigmas)
        predicted = self.fake.velocity(noisy, real.sigmas, Conditions.of(real))
        value = terms.fake_score_loss(predicted, samples, real.noise).mean()
        # The path's calls, then forward and backward.
        return self._loss(draw, value, {"loss_fake": value}, draw.last + 1 + 3)

    def heads_loss(self, judge: Judge, draw: Draw, samples: Tensor) -> Loss:
        """The discriminator's, on real and simulated pictures at the same levels."""
        real, config = draw.real, self.config
        noisy_real = interpolate(real.latents, real.noise, real.sigmas)
        perturbed = noisy_real + config.r1_alpha * draw.other_noise
        noisy_fake = interpolate(samples, real.noise, real.sigmas)
        with torch.no_grad():
            seen = [self._seen(judge, draw, x) for x in (noisy_real, noisy_fake, perturbed)]
        on_real, on_fake, on_perturbed = (judge.heads(states) for states in seen)
        logistic = terms.discriminator_loss(on_real, on_fake).mean()
        penalty = terms.approximate_r1(on_real, on_perturbed, config.r1_gamma).mean()
        parts = {
            "loss_heads": logistic,
            "r1": penalty,
            "logit_real": on_real.mean(),
            "logit_fake": on_fake.mean(),
        }
        return self._loss(draw, logistic + penalty, parts, 3)

    def _seen(self, judge: Judge, draw: Draw, noisy: Tensor) -> list[Tensor]:
        conditions = Conditions.of(draw.real)
        return self.teacher.passed(lambda: judge.features(noisy, draw.real.sigmas, conditions))

    def loss(self, batch: DistillBatch) -> Loss:
        """The student's: the two gradients of its picture, and the discriminator's opinion."""
        draw, config = batch.student, self.config
        samples = self._simulated(draw, own=True)
        matching = self.matching_gradient(draw, samples.detach())
        guidance = self.guidance_gradient(draw, samples.detach())
        value = config.score_weight * terms.pull(samples, matching + guidance).mean()
        step_sigma = student_sigmas(draw.real.grid, config.num_steps)[draw.last]
        parts = _diagnostics(draw, step_sigma, samples.detach(), matching, guidance)
        calls = draw.last + 3 + 2 + 2
        judge = self.judge
        if judge is not None:
            noisy = interpolate(samples, draw.real.noise, draw.real.sigmas)
            states = self._seen(judge, draw, noisy)
            logits = within(judge.root, lambda: judge.heads(states))
            adversarial = terms.generator_loss(logits).mean()
            value = value + config.adversarial_weight * adversarial
            parts["loss_adversarial"] = adversarial
            calls += 2
        if config.first_matched:
            first = self.first_step(draw)
            value = value + config.first_step_weight * first
            parts["loss_first_step"] = first
            calls += 3 + 2 * config.first_step_calls
        return self._loss(draw, value, parts, calls)

    @torch.no_grad()
    def matching_gradient(self, draw: Draw, samples: Tensor) -> Tensor:
        """g_DM of pictures [B, S, C]; zeros if it is left out."""
        if not self.config.matching:
            return torch.zeros_like(samples)
        conditions, sigmas = Conditions.of(draw.real), draw.matching
        noisy = interpolate(samples, draw.real.noise, sigmas)
        seen = [
            predict_data(noisy, network.frozen(noisy, sigmas, conditions), sigmas)
            for network in (self.fake, self.teacher)
        ]
        return terms.distribution_matching(samples, *seen, floor=self.config.floor)

    @torch.no_grad()
    def guidance_gradient(self, draw: Draw, samples: Tensor) -> Tensor:
        """g_CA of pictures [B, S, C]; zeros at guidance 1."""
        config = self.config
        if config.guidance == 1:
            return torch.zeros_like(samples)
        conditions, sigmas = Conditions.of(draw.real), draw.guidance
        noisy = interpolate(samples, draw.other_noise, sigmas)
        seen = [
            predict_data(noisy, self.teacher.frozen(noisy, sigmas, told), sigmas)
            for told in (conditions, conditions.without_text())
        ]
        return terms.guidance_augmentation(
            samples, *seen, guidance=config.guidance, floor=config.floor
        )

    def first_step(self, draw: Draw) -> Tensor:
        """The first step's own loss, a scalar."""
        config = self.config
        first, second = student_sigmas(draw.real.grid, config.num_steps)[:2]
        conditions = Conditions.of(draw.real)
        teacher = guided(self.teacher.frozen, config.first_step_guidance)
        with torch.no_grad():
            fine = between(first, second, config.first_step_calls)
            reached = follow(teacher, draw.start, conditions, fine)
        sigmas = torch.full((draw.start.shape[0],), first, device=draw.start.device)
        predicted = self.student.velocity(draw.start, sigmas, conditions)
        return terms.first_step_loss(predicted, draw.start, reached, first - second).mean()

    def _loss(self, draw: Draw, value: Tensor, parts: Mapping[str, Tensor], calls: int) -> Loss:
        """With the batch's size; `calls` counts forward passes, a backward pass as two."""
        size, num_tokens = draw.real.latents.shape[:2]
        return Loss(
            value=value,
            parts={name: part.detach() for name, part in parts.items()},
            num_items=size,
            num_tokens=size * num_tokens,
            flops=None if self._flops is None else calls * self._flops(draw.real),
        )


def _diagnostics(
    draw: Draw, step_sigma: float, samples: Tensor, matching: Tensor, guidance: Tensor
) -> dict[str, Tensor]:
    """Numbers that tell a healthy run.

    `sigma_below`, the mean of sigma_CA - sigma_k, must be negative. `std_ratio` of the student's
    pictures to real ones stays between 0.9 and 1.1; guidance augmentation alone inflates it.
    """
    flat_matching, flat_guidance = matching.flatten(1), guidance.flatten(1)
    norms = flat_matching.norm(dim=1).mean(), flat_guidance.norm(dim=1).mean()
    cosine = torch.nn.functional.cosine_similarity(flat_matching, flat_guidance, dim=1)
    return {
        "norm_matching": norms[0],
        "norm_guidance": norms[1],
        "cosine": cosine.mean(),
        "sigma_below": (draw.guidance - step_sigma).mean(),
        "std_ratio": samples.std() / draw.real.latents.float().std(),
    }
