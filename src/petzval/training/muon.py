"""Muon: the momentum of a matrix is replaced by the nearest (semi-)orthogonal matrix.

Found by a few Newton-Schulz iterations (Jordan et al. 2024). The update is scaled by
0.2 sqrt(max(rows, columns)), so that its root mean square equals a typical AdamW update and one
learning rate serves both (Liu et al. 2025, "Muon is scalable for LLM training").

Under FSDP2 each rank holds some rows of every matrix, and the iterations need whole ones. The
matrices of one shape are dealt out to the ranks in turn: one all-to-all brings the rows of each to
its owner, the owner iterates on its share only, a second one takes the rows back. Nobody ever holds
all of them, and the work is done once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from petzval.training.parallel import shard_group

Precision = Literal["bfloat16", "float32"]

_TYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}

# Quintic coefficients with a steep slope at zero: small singular values grow fast, large ones end
# between about 0.7 and 1.2, which is orthogonal enough for an update direction.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Tensor, num_iterations: int = 5, *, precision: Precision = "bfloat16"
) -> Tensor:
    """The nearest semi-orthogonal matrix of each, approximately.

    Args:
        matrices: [..., rows, columns], any float type.
        num_iterations: Newton-Schulz iterations.
        precision: type of the products; bfloat16 is enough, float32 is for comparisons.

    Returns:
        Same shape, in the type of the products; singular values near 1 (about 0.7 to 1.2).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7)).to(_TYPES[precision])
    a, b, c = _QUINTIC
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices, stacks of matrices (experts) and convolutions."""

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: Precision = "bfloat16",
    ) -> None:
        matrices = list(params)
        for parameter in matrices:
            assert parameter.ndim >= 2, "Muon updates matrices only"
        self.precision: Precision = precision
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every matrix that has a gradient. Matrices of one shape go through together."""
        value = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in cast("list[Tensor]", group["params"]):
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in by_shape.items():
                self._update(shape, parameters, group)
        return value

    def _update(
        self, shape: tuple[int, ...], parameters: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        directions = [self._direction(p, group["momentum"]) for p in parameters]
        if isinstance(directions[0], DTensor):
            updates = self._orthogonalize_sharded(cast("list[DTensor]", directions))
        else:
            updates = self._orthogonalize(directions)
        rows_and_columns = (shape[0], math.prod(shape[1:])) if len(shape) == 4 else shape[-2:]
        scale = 0.2 * math.sqrt(max(rows_and_columns))
        for parameter, update in zip(parameters, updates, strict=True):
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            own.mul_(1 - group["lr"] * group["weight_decay"])
            own.add_(update.reshape(own.shape).to(own.dtype), alpha=-group["lr"] * scale)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum of the gradient, in float32, sharded as the parameter is."""
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        state = cast("dict[str, Tensor]", self.state[parameter])
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        buffer = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)

    def _orthogonalize(self, directions: Sequence[Tensor]) -> Sequence[Tensor]:
        stacked = torch.stack(list(directions))
        if stacked.ndim == 5:  # a convolution is a matrix of its outputs by all it sees
            stacked = stacked.flatten(2)
        return orthogonalize(stacked, precision=self.precision).unbind(0)

    def _orthogonalize_sharded(self, directions: Sequence[DTensor]) -> Sequence[Tensor]:
        """Local rows of the orthogonalised matrices; what each rank holds goes there and back."""
        first = directions[0]
        assert first.placements[-1] == Shard(0), "Muon expects parameters sharded by rows"
        exchange = _Exchange(first, len(directions))
        whole = exchange.to_owners([direction.to_local() for direction in directions])
        made = self._orthogonalize(whole) if whole else []
        made = [update.reshape(first.shape) for update in made]
        return exchange.to_holders(made, _TYPES[self.precision])


class _Exchange:
    """Matrices of one shape, sharded by rows, to their owners and back. Owner of i is i % size."""

    def __init__(self, example: DTensor, count: int) -> None:
        self.group = shard_group(example.device_mesh)
        self.size = dist.get_world_size(self.group)
        self.rank = dist.get_rank(self.group)
        self.shape = example.shape
        self.device = example.device
        # Rows are dealt in chunks of the same size, so the last ranks may have fewer or none.
        chunk = -(-self.shape[0] // self.size)
        starts = [min(rank * chunk, self.shape[0]) for rank in range(self.size + 1)]
        self.rows = [stop - start for start, stop in zip(starts, starts[1:], strict=False)]
        self.owned = [range(owner, count, self.size) for owner in range(self.size)]
        self.width = math.prod(self.shape[1:])

    def to_owners(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Whole matrices that this rank owns, from everyone's rows of all."""
        own = self.rows[self.rank] * self.width
        pieces = [shards[index].reshape(-1) for numbers in self.owned for index in numbers]
        num_mine = len(self.owned[self.rank])
        received = self._send(
            torch.cat(pieces),
            [own * len(numbers) for numbers in self.owned],
            [rows * self.width * num_mine for rows in self.rows],
        )
        parts = [
            part.reshape(num_mine, rows, *self.shape[1:])
            for part, rows in zip(received, self.rows, strict=True)
        ]
        return list(torch.cat(parts, dim=1).unbind(0))

    def to_holders(self, matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """This rank's rows of all matrices, from the owners' whole ones."""
        own = self.rows[self.rank] * self.width
        num_mine = len(self.owned[self.rank])
        outgoing = torch.zeros(0, dtype=dtype, device=self.device)
        if matrices:
            stacked = torch.stack(list(matrices))
            outgoing = torch.cat([part.reshape(-1) for part in stacked.split(self.rows, dim=1)])
        received = self._send(
            outgoing,
            [rows * self.width * num_mine for rows in self.rows],
            [own * len(numbers) for numbers in self.owned],
        )
        rows: dict[int, Tensor] = {}
        for numbers, part in zip(self.owned, received, strict=True):
            shards = part.reshape(len(numbers), self.rows[self.rank], *self.shape[1:])
            rows.update(zip(numbers, shards.unbind(0), strict=True))
        return [rows[index] for index in sorted(rows)]

    def _send(self, outgoing: Tensor, sent: list[int], expected: list[int]) -> list[Tensor]:
        incoming = outgoing.new_empty(sum(expected))
        dist.all_to_all_single(incoming, outgoing, expected, sent, group=self.group)
        return list(incoming.split(expected))
