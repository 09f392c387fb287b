"""Noise levels folded into what they do to every block: evaluated once per schedule, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from petzval.errors import RequestError
from petzval.flow.sampler import network_sigmas
from petzval.flow.schedule import sigmas
from petzval.inference import numerics
from petzval.inference.plan import GenerationPlan
from petzval.models.mmdit import MMDiT, StepModulation

_KEPT_SCHEDULES = 4


class FoldedSchedules:
    """The modulations of the schedules that were asked for last.

    Args:
        dtype, device: of the denoiser.

    Attributes:
        dropped: whether the weights they are made with are gone.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dropped = False
        self._dtype = dtype
        self._device = device
        self._folded: OrderedDict[tuple[float, ...], list[StepModulation]] = OrderedDict()

    def clear(self) -> None:
        """Forget them, unless the weights that they were made with are gone."""
        if not self.dropped:
            self._folded.clear()

    @torch.no_grad()
    def of(
        self, plan: GenerationPlan, denoiser: Callable[[], MMDiT]
    ) -> tuple[Tensor, list[StepModulation]]:
        """A plan's noise levels, and the modulation of each call of the network.

        Args:
            denoiser: brings it, where its weights are needed.

        Raises:
            RequestError: the weights are gone, and this schedule was not folded before.
        """
        levels = sigmas(plan.steps, plan.mu)
        calls = network_sigmas(levels, plan.solver)
        seen = numerics.levels_seen(calls, plan.parity, self._dtype)
        key = tuple(seen.tolist())
        if key not in self._folded:
            if self.dropped:
                raise RequestError(
                    "this pipeline was folded for another schedule",
                    "ask for the same size, steps, mu, solver and parity, or load the model again",
                )
            self._folded[key] = denoiser().modulations(seen.to(self._device))
            if len(self._folded) > _KEPT_SCHEDULES:
                self._folded.popitem(last=False)
        self._folded.move_to_end(key)
        return levels, self._folded[key]
