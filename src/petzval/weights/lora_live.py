"""LoRAs beside a denoiser's weights and not in them: how strong each is can change at any time.

Merged LoRAs (`checkpoint.add_loras`) cost nothing while a picture is drawn, and another strength
means loading the weights again. Live ones cost two thin products a layer, and another strength
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from petzval.weights.lora import LayerChange, Lora

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]


class LiveLoras:
    """What LoRAs add to the outputs of a denoiser's layers, each times its strength.

    Args:
        denoiser: its layers are watched until `detach`; its weights are left alone.
        loras: read for this architecture.
        strengths: one for each.
    """

    def __init__(
        self, denoiser: nn.Module, loras: Sequence[Lora], strengths: Sequence[int | float]
    ) -> None:
        self.strengths: tuple[int | float, ...] = ()
        self._num = len(loras)
        self.set(strengths)
        self._handles: list[Any] = []
        for layer in sorted({layer for lora in loras for layer in lora.changes}):
            owner = denoiser.get_submodule(layer)
            weight: Tensor = owner.get_parameter("weight")
            changes = [
                (index, lora.changes[layer].to(weight.device, weight.dtype))
                for index, lora in enumerate(loras)
                if layer in lora.changes
            ]
            self._handles.append(owner.register_forward_hook(self._hook(changes)))

    def set(self, strengths: Sequence[int | float]) -> None:
        """Change how strong each LoRA is; 0 leaves a layer's output as it is, to the bit."""
        if len(strengths) != self._num:
            raise ValueError(f"{len(strengths)} strengths for {self._num} LoRAs")
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
