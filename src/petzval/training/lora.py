"""Low-rank adapters to train: chosen linear layers get scale * up @ down beside frozen weights.

LoRA, section 4.1 of arXiv:2106.09685: down is random, up is zero, so that the start is exactly the
base. Departures, numbered:
  1. Dropout of a layer's input acts inside `LoraAdapter.dropout` only and is drawn, row by row of a
     batch, from the seeds given there: a step is a function of its number, a row of its seed and
     not of its company, and pictures are drawn without it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.config import check_ranges, setting
from petzval.errors import ConfigError

DEFAULT_TARGETS = (
    "transformer_blocks.*.attn.img_qkv",
    "transformer_blocks.*.attn.txt_qkv",
    "transformer_blocks.*.attn.to_out.0",
    "transformer_blocks.*.attn.to_add_out",
    "transformer_blocks.*.img_mlp.w[123]",
    "transformer_blocks.*.txt_mlp.w[123]",
)
"""Attention and feed-forward projections of both streams."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Settings of an adapter.

    Attributes:
        rank: rows of down, columns of up.
        alpha: the change is multiplied by alpha / rank.
        dropout: share of a layer's inputs that its adapter, not its base, does without.
        targets: patterns of layers' names, as in a shell: * any text, [123] one of these.
    """

    rank: int = setting(16, minimum=1, maximum=4096)
    alpha: float = setting(16.0, minimum=0, maximum=1e6)
    dropout: float = setting(0.0, minimum=0, maximum=0.99)
    targets: tuple[str, ...] = DEFAULT_TARGETS

    def __post_init__(self) -> None:
        check_ranges(self, where="LoRA")

    @property
    def scale(self) -> float:
        """What up @ down is multiplied by."""
        return self.alpha / self.rank


class LoraPair(nn.Module):
    """The trained halves of one layer's change; names and shapes as PEFT has them."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained change beside it."""

    def __init__(self, base: nn.Linear, pair: LoraPair, scale: float) -> None:
        super().__init__()
        self.base = base
        self.pair = pair
        self.scale = scale
        self.dropped = 0.0
        self.generators: Sequence[torch.Generator] = ()

    @property
    def weight(self) -> Tensor:
        """The base's weight, whose type and device other layers ask for."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if self.generators:
            shape = x.shape[1:]
            drawn = [torch.rand(shape, generator=g, device=x.device) for g in self.generators]
            x = x * (torch.stack(drawn) >= self.dropped) / (1 - self.dropped)
        down, up = self.pair.lora_A.to(x.dtype), self.pair.lora_B.to(x.dtype)
        return out + self.scale * F.linear(F.linear(x, down), up)


class LoraAdapter(nn.Module):
    """All trained halves, apart from the model that they change: what is optimised and saved.

    Args:
        model: its chosen layers are wrapped in place, all of its parameters are frozen.
        config: which layers, and how.
        seed: of the random halves.

    Raises:
        ConfigError: a pattern names no linear layer.
    """

    def __init__(self, model: nn.Module, config: LoraConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        model.requires_grad_(False)
        layers = chosen_layers(model, config.targets)
        generator = torch.Generator().manual_seed(seed)
        self.pairs = nn.ModuleDict()
        self._wrapped: dict[str, LoraLinear] = {}
        for name, layer in layers.items():
            pair = LoraPair(layer.in_features, layer.out_features, config.rank)
            bound = layer.in_features**-0.5
            nn.init.uniform_(pair.lora_A, -bound, bound, generator=generator)
            pair.to(layer.weight.device)
            self.pairs[name.replace(".", "/")] = pair  # a module's name holds no dot
            self._wrapped[name] = LoraLinear(layer, pair, config.scale)
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner).register_module(last, self._wrapped[name])

    @contextmanager
    def dropout(self, seeds: Sequence[int]) -> Generator[None]:
        """Dropout acts inside the block; the same seed drops the same.

        Args:
            seeds: one for each row of the batch.
        """
        if self.config.dropout == 0:
            yield
            return
        device = next(self.parameters()).device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        for layer in self._wrapped.values():
            layer.dropped, layer.generators = self.config.dropout, generators
        try:
            yield
        finally:
            for layer in self._wrapped.values():
                layer.generators = ()

    def halves(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Layer → down [rank, inputs] and up [outputs, rank], detached."""
        return {
            name: (layer.pair.lora_A.detach(), layer.pair.lora_B.detach())
            for name, layer in self._wrapped.items()
        }

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Add the changes to the weights for good and put the plain layers back."""
        for name, layer in self._wrapped.items():
            down, up = layer.pair.lora_A, layer.pair.lora_B
            weight = layer.base.weight.float() + layer.scale * (up @ down)
            layer.base.weight = nn.Parameter(
                weight.to(layer.base.weight.dtype), requires_grad=False
            )
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner).register_module(last, layer.base)


def chosen_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers whose names match one of the patterns, in the model's order.

    Raises:
        ConfigError: a pattern matches none.
    """
    linear = {n: layer for n, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for target in targets:
        if not any(fnmatchcase(name, target) for name in linear):
            raise ConfigError(
                f"no linear layer is called {target!r}",
                f"layers are called {', '.join(list(linear)[:3])} …; * stands for any text",
            )
    if not targets:
        raise ConfigError("a LoRA needs at least one target", "leave it out for the usual ones")
    return {
        name: layer
        for name, layer in linear.items()
        if any(fnmatchcase(name, target) for target in targets)
    }
