"""The real denoiser, tiny, on random tokens: for what depends on its shape and its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.pretrain.layout import denoiser_layout
from petzval.training.ema import Ema
from petzval.training.objective import Loss
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.parallel import ParallelConfig, Shell, full_state_dict, parallelize
from petzval.training.ranks import Ranks
from petzval.training.state import RunState
from petzval.training.step import training_step

CONFIG = MMDiTConfig(
    num_layers=2,
    num_attention_heads=1,
    in_channels=16,
    out_channels=4,
    enc_hidden_dim=8,
    selected_layer_index=(0, 1),
)
GRID = (3, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """Tokens [B, S, 16] at levels [B], targets of the same shape, text features [B, T, 8]."""

    tokens: Tensor
    targets: Tensor
    sigmas: Tensor
    features: tuple[Tensor, ...]


class DenoisingObjective:
    """Two samples a rank; the last rank's have no text at all."""

    def __init__(self, model: MMDiT, rank: int, size: int) -> None:
        self.model, self.rank, self.size = model, rank, size

    def batch(self, step: int) -> Noised:
        return noised(step, self.rank, text=self.rank < self.size - 1)

    def loss(self, batch: Noised) -> Loss:
        return Loss(value=squared_error(self.model, batch), num_items=2, num_tokens=24)


class AllRanks:
    """The same in one process: the mean over what the ranks would have."""

    def __init__(self, model: MMDiT, size: int) -> None:
        self.parts = [DenoisingObjective(model, rank, size) for rank in range(size)]

    def batch(self, step: int) -> list[Noised]:
        return [part.batch(step) for part in self.parts]

    def loss(self, batch: list[Noised]) -> Loss:
        values = [part.loss(own).value for part, own in zip(self.parts, batch, strict=True)]
        return Loss(value=torch.stack(values).mean(), num_items=4, num_tokens=48)


def noised(step: int, rank: int, *, text: bool) -> Noised:
    generator = torch.Generator().manual_seed(100 * step + rank)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens, targets = draw(2, 12, 16), draw(2, 12, 16)
    features = (draw(2, 5, 8), draw(2, 5, 8)) if text else ()
    return Noised(
        tokens=tokens, targets=targets, sigmas=torch.rand(2, generator=generator), features=features
    )


def squared_error(model: MMDiT, batch: Noised) -> Tensor:
    predicted = model.velocity(batch.tokens, batch.features, batch.sigmas, GRID)
    return (predicted.float() - batch.targets).square().mean()


def denoiser() -> MMDiT:
    """Random everywhere, so that every parameter has a gradient."""
    torch.manual_seed(0)
    model = MMDiT(CONFIG)
    model.initialise()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def state_of(model: MMDiT, ranks: Ranks, root: Shell | None) -> RunState:
    config = OptimizerConfig(
        kind="muon", learning_rate=1e-3, warmup_steps=0, newton_schulz="float32"
    )
    return RunState(
        model=model,
        optimizers=build_optimizers(model, config),
        ema=Ema(model, 0.5),
        ranks=ranks,
        root=root,
    )


def sharded_denoiser_run(
    ranks: Ranks, config: ParallelConfig
) -> tuple[list[float], Mapping[str, Tensor]]:
    """Three steps on these ranks: losses, and the weights whole."""
    torch.manual_seed(0)
    model = denoiser()
    state = state_of(model, ranks, parallelize(model, config, ranks, denoiser_layout(CONFIG)))
    objective = DenoisingObjective(model, ranks.rank, ranks.size)
    return denoiser_steps(state, objective), full_state_dict(model, ranks)


def denoiser_steps(state: RunState, objective: DenoisingObjective | AllRanks) -> list[float]:
    return [
        training_step(objective, objective.batch(step), state, max_grad_norm=1.0).loss  # type: ignore[arg-type]
        for step in range(3)
    ]


def look(state: RunState) -> Tensor:
    """What the averaged weights say about a fixed batch."""
    batch = noised(50, 0, text=True)
    fixed = Noised(
        tokens=batch.tokens,
        targets=batch.targets,
        sigmas=torch.tensor([0.2, 0.8]),
        features=batch.features,
    )
    assert state.ema is not None
    model = state.model
    assert isinstance(model, MMDiT)
    with state.ema.applied_to(model):
        return state.evaluate(
            lambda: model.velocity(fixed.tokens, fixed.features, fixed.sigmas, GRID)
        )
