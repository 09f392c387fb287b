"""A world whose scores are known: labelled mixtures of Gaussians in the plane.

Every label has two modes. For x_s = (1 - s) x_0 + s noise and components N(m, d^2 I),

    E[x_0 | x_s, m] = m + (1 - s) d^2 / v (x_s - (1 - s) m),    v = (1 - s)^2 d^2 + s^2,

so the teacher is exact, with a label and without, and what a distillation should arrive at can be
drawn. Fake score and student are small networks; all the rest is what distils Lens.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from petzval.distill import terms
from petzval.distill.conditions import Conditions, Network, Velocity
from petzval.distill.objective import FAKE, DistillationObjective, DistillConfig
from petzval.distill.rollout import follow, student_sigmas
from petzval.flow.path import interpolate, velocity
from petzval.pretrain.denoiser import DenoiserBatch
from petzval.training.ema import Ema, copy_parameters
from petzval.training.optimizer import OptimizerConfig, build_optimizers, set_learning_rate
from petzval.training.state import Part, RunState
from petzval.training.step import training_step

NUM_LABELS, SPREAD = 3, 0.2
GRID = (1, 1)


def means() -> Tensor:
    """[label, mode, 2]: pairs of modes on a circle, each pair a label's."""
    angles = torch.tensor(
        [[2 * math.pi * k / NUM_LABELS + turn for turn in (-0.45, 0.45)] for k in range(NUM_LABELS)]
    )
    return 1.3 * torch.stack([angles.cos(), angles.sin()], dim=-1)


def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Points [B, 1, 2] of these labels [B]."""
    modes = torch.randint(2, labels.shape, generator=generator)
    noise = torch.randn(labels.shape[0], 2, generator=generator)
    return (means()[labels, modes] + SPREAD * noise)[:, None]


def conditions(labels: Tensor) -> Conditions:
    """What tells a network these labels [B]."""
    told = nn.functional.one_hot(labels, NUM_LABELS).float()[:, None]
    return Conditions(features=(told,), mask=None, grid=GRID)


def true_velocity(tokens: Tensor, sigmas: Tensor, told: Conditions) -> Tensor:
    """The exact velocity E[noise - x_0 | x_s], under the label or, without one, of all of them."""
    x, sigma = tokens[:, 0, None], sigmas[:, None, None]
    centres = means().flatten(0, 1)[None]
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    offset = x - (1 - sigma) * centres
    logits = -offset.square().sum(-1) / (2 * variance[..., 0])
    if told.features:
        allowed = told.features[0][:, 0].repeat_interleave(2, dim=1)
        logits = logits.masked_fill(allowed == 0, -torch.inf)
    seen = centres + (1 - sigma) * SPREAD**2 / variance * offset
    data = (logits.softmax(-1)[..., None] * seen).sum(1, keepdim=True)
    return (tokens - data) / sigma


@dataclass(frozen=True, kw_only=True, slots=True)
class PointSource:
    """Labelled points with noise, as the objective draws them; the settings decide all of it."""

    batch_size: int = 256
    seed: int = 0

    def batch(self, step: int) -> DenoiserBatch:
        """A pure function of the step."""
        seed = int(np.random.default_rng((self.seed, step)).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(NUM_LABELS, (self.batch_size,), generator=generator)
        latents = draw(labels, generator)
        return DenoiserBatch(
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            # A picture is decided at high noise; which of two points it is, at all levels alike.
            sigmas=0.02 + 0.96 * torch.rand(self.batch_size, generator=generator),
            grid=GRID,
            ids=torch.zeros(self.batch_size, 1, dtype=torch.long),
            mask=torch.ones(self.batch_size, 1, dtype=torch.bool),
            features=conditions(labels).features,
        )

    def prepare(self, batch: DenoiserBatch) -> DenoiserBatch:
        """There is nothing to add."""
        return batch


class SmallNetwork(nn.Module):
    """(point, noise level, label) → velocity."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 3 + NUM_LABELS, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, tokens: Tensor, sigmas: Tensor, told: Conditions) -> Tensor:
        """Velocity [B, 1, 2]; signature of `conditions.Velocity`."""
        level = sigmas[:, None]
        waves = torch.cat([level, (3 * level).sin(), (3 * level).cos()], dim=1)
        label = told.features[0][:, 0] if told.features else tokens.new_zeros(len(tokens), 3)
        return self.layers(torch.cat([tokens[:, 0], waves, label], dim=1))[:, None]


def pretrained(num_steps: int = 600, *, seed: int = 0) -> SmallNetwork:
    """A network that has learned the world by flow matching: where student and fake score start."""
    torch.manual_seed(seed)
    network, source = SmallNetwork(), PointSource(seed=seed + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / num_steps)
        batch = source.batch(step)
        noisy = interpolate(batch.latents, batch.noise, batch.sigmas)
        predicted = network(noisy, batch.sigmas, Conditions.of(batch))
        error = predicted - velocity(batch.latents, batch.noise)
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return network


def distillation(
    start: SmallNetwork, config: DistillConfig, *, learning_rate: float = 1e-3, seed: int = 0
) -> tuple[DistillationObjective, RunState]:
    """Objective and state of a run that begins with this network."""
    student, fake = copy.deepcopy(start), copy.deepcopy(start)
    optimizer = OptimizerConfig(learning_rate=learning_rate, betas=(0.0, 0.9), weight_decay=0.0)

    def align(weight: float) -> None:
        terms.align(dict(fake.named_parameters()), dict(student.named_parameters()), weight)

    objective = DistillationObjective(
        PointSource(seed=seed + 2),
        Network(velocity=student),
        Network(velocity=fake),
        Network(velocity=true_velocity),
        None,
        config,
        align=align,
    )
    state = RunState(
        model=student, optimizers=build_optimizers(student, optimizer), ema=Ema(student, 0.95)
    )
    state.others[FAKE] = Part(model=fake, optimizers=build_optimizers(fake, optimizer))
    return objective, state


def distilled(
    start: SmallNetwork, config: DistillConfig, num_steps: int, *, seed: int = 0
) -> SmallNetwork:
    """The student's average after so many iterations; the rate falls over the second half."""
    objective, state = distillation(start, replace(config, seed=seed), seed=seed)
    for step in range(num_steps):
        rate = 1e-3 * min(1.0, 2 * (1 - step / num_steps))
        for _, part in state.parts():
            set_learning_rate(part.optimizers, rate)
        training_step(objective, objective.batch(step), state, max_grad_norm=1.0)
    student = copy.deepcopy(start)
    assert state.ema is not None
    copy_parameters(student, state.ema.averages)
    return student


def linear_guidance(of: Velocity, scale: float) -> Velocity:
    """u + w (c - u), the guidance that the gradients use: the norm is not kept."""

    def call(tokens: Tensor, sigmas: Tensor, told: Conditions) -> Tensor:
        conditional = of(tokens, sigmas, told)
        blank = of(tokens, sigmas, told.without_text())
        return blank + scale * (conditional - blank)

    return call


@torch.no_grad()
def pictures(of: Velocity, num_steps: int, *, per_label: int = 800, seed: int = 9) -> Tensor:
    """[label, point, 2] by Euler steps on inference's own levels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_LABELS).repeat_interleave(per_label)
    noise = torch.randn(len(labels), 1, 2, generator=generator)
    points = follow(of, noise, conditions(labels), student_sigmas(GRID, num_steps))
    return points[:, 0].unflatten(0, (NUM_LABELS, per_label))


def sliced_distance(first: Tensor, second: Tensor, num_directions: int = 32) -> float:
    """Wasserstein-1 along directions of the half circle, mean over directions and labels.

    Args:
        first, second: [label, point, 2], of one shape.
    """
    angles = torch.arange(num_directions) * (math.pi / num_directions)
    directions = torch.stack([angles.cos(), angles.sin()])
    projected = [(points @ directions).sort(dim=1).values for points in (first, second)]
    return float((projected[0] - projected[1]).abs().mean())
