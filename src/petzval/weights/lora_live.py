"""LoRAs beside a denoiser's weights and not in them: how strong each is can change at any time.

Merged LoRAs (`checkpoint.add_loras`) cost nothing while a picture is drawn, and another strength
means loading the weights again. Live ones cost two thin products a layer, and another strength
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petzval.weights.lora import LayerChange, Lora

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]


def num_elements(loras: Sequence[Lora]) -> int:
    """Numbers that LoRAs keep beside the weights."""
    return sum(change.num_elements for lora in loras for change in lora.changes.values())


class LiveLoras:
    """What LoRAs add to the outputs of a denoiser's layers, each times its strength.

    Args:
        loras: read for the denoiser's architecture.
        strengths: one for each.
    """

    def __init__(self, loras: Sequence[Lora], strengths: Sequence[int | float]) -> None:
        self.strengths: tuple[int | float, ...] = ()
        self._loras = tuple(loras)
        self.set(strengths)
        self._handles: list[Any] = []
        self._placed: dict[str, list[tuple[int, LayerChange]]] = {}
        self._place: tuple[torch.device, torch.dtype] | None = None

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have what they add where it is used; what is there already stays."""
        if self._place == (device, dtype):
            return
        layers = sorted({layer for lora in self._loras for layer in lora.changes})
        self._placed = {
            layer: [
                (index, lora.changes[layer].to(device, dtype))
                for index, lora in enumerate(self._loras)
                if layer in lora.changes
            ]
            for layer in layers
        }
        self._place = device, dtype

    def attach(self, denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Watch a denoiser's layers, and those of no other any more; its weights are left alone.

        Args:
            denoiser: with its numbers or without.
            device, dtype: of what its layers are given.
        """
        self.place(device, dtype)  # before anything is let go of: memory may run out
        self.detach()
        for layer, changes in self._placed.items():
            hook = self._hook(changes)
            self._handles.append(denoiser.get_submodule(layer).register_forward_hook(hook))

    def set(self, strengths: Sequence[int | float]) -> None:
        """Change how strong each LoRA is; 0 leaves a layer's output as it is, to the bit."""
        if len(strengths) != len(self._loras):
            raise ValueError(f"{len(strengths)} strengths for {len(self._loras)} LoRAs")
        self.strengths = tuple(strengths)

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, changes: Sequence[tuple[int, LayerChange]]) -> Hook:
        def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            active = [(self.strengths[i], change) for i, change in changes if self.strengths[i]]
            if not active:
                return None
            return output + sum(strength * change.apply(inputs[0]) for strength, change in active)

        return add
