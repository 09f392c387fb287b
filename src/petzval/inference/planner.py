"""The fastest placement that fits, out of all strategies of the three networks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import torch

from petzval.errors import PlacementError
from petzval.inference.dry_networks import Work
from petzval.inference.footprint import Footprints
from petzval.inference.placement import (
    NETWORKS,
    Placement,
    Residence,
    Storage,
    Strategy,
    parse_bytes,
    spell_bytes,
)
from petzval.inference.residency import has_codes
from petzval.inference.speeds import Speeds
from petzval.kernels import backends
from petzval.resolution import PIXELS_PER_TOKEN
from petzval.weights.checkpoint import Checkpoint

Amount: TypeAlias = int | str | None
"""Memory in bytes, or in words (`placement.parse_bytes`); None is no limit."""

STRIP_ROWS = 64
_COMPILED_BYTES = 100_000_000
"""oneDNN compiles and keeps a product for every shape that it meets in bfloat16; as measured."""

_STEP_DOWN = 0.9
"""After memory ran out, the next plan is predicted to need at most this share of the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What may be used, in bytes; None is no limit.

    Attributes:
        memory: of the device that draws; on a CPU the process's RAM.
        ram: of this process, where another device draws.
    """

    memory: int | None = None
    ram: int | None = None

    @classmethod
    def of(cls, memory: Amount, ram: Amount) -> Budget:
        """From what a person wrote.

        Raises:
            RequestError: no such amount.
        """
        return cls(memory=_bytes(memory), ram=_bytes(ram))

    def __bool__(self) -> bool:
        return self.memory is not None or self.ram is not None

    def holds(self, placement: Placement) -> bool:
        """Whether a placement's predicted peaks stay within."""
        return (self.memory is None or placement.peak_bytes <= self.memory) and (
            self.ram is None or placement.ram_bytes <= self.ram
        )


def _bytes(amount: Amount) -> int | None:
    return amount if amount is None or isinstance(amount, int) else parse_bytes(amount)


class Planner:
    """All placements of a checkpoint for one kind of picture on one machine.

    Args:
        checkpoint: open, not loaded.
        device: that draws.
        dtype: of the networks.
        work: what a picture asks.
        speeds: of the machine.
        storage: of the denoiser's blocks; only "exact" leaves the picture as it is.
        beside: numbers that LoRAs keep beside the denoiser's weights.
        changed: layers of it that LoRAs are merged into.
        baseline: RAM of the process before a network is there; None takes what it holds.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        work: Work,
        speeds: Speeds,
        *,
        storage: Storage = "exact",
        beside: int = 0,
        changed: Collection[str] = (),
        baseline: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self._dtype = dtype
        self._work = work
        self._storage: Storage = storage
        self._footprints = Footprints(
            checkpoint, dtype, work, speeds, beside=beside, changed=changed
        )
        may_stay = storage == "exact" and dtype != torch.float16
        self._codes = (False, True) if may_stay and has_codes(checkpoint, changed) else (False,)
        self._baseline = baseline
        self._placements: list[Placement] = []

    @property
    def placements(self) -> list[Placement]:
        """All of them, the fastest first."""
        if not self._placements:
            self._placements = sorted(self._all(), key=_order)
        return self._placements

    def choose(self, budget: Budget) -> Placement:
        """The fastest placement within a budget.

        Raises:
            PlacementError: none is; the hint names the smallest, or what would make one fit.
        """
        for placement in self.placements:
            if budget.holds(placement):
                return placement
        raise self._nothing_fits(budget)

    def smaller(self, than: Placement) -> Placement:
        """The fastest that needs clearly less than one that turned out too large.

        Raises:
            PlacementError: none does.
        """
        limit = int(_STEP_DOWN * than.peak_bytes)
        for placement in self.placements:
            if placement.peak_bytes <= limit:
                return placement
        raise PlacementError(
            f"memory ran out, and no plan for {than.width}x{than.height} needs clearly less than "
            f"{spell_bytes(than.peak_bytes)} ({than})",
            "draw a smaller --size, or free some memory"
            + ("" if self._storage == "int4" else ", or --quantise int4"),
        )

    def _all(self) -> Iterator[Placement]:
        device = str(self.device)
        encoders = [Strategy(residence="resident", device=device)]
        encoders += [Strategy(residence="staged", device=device)]
        encoders += [Strategy(residence="streamed", device=device)]
        if self.device.type != "cpu":
            encoders += [Strategy(residence="resident", device="cpu")]
            encoders += [Strategy(residence="streamed", device="cpu")]
        forms: tuple[tuple[Residence, bool], ...] = (
            ("resident", False),
            ("resident", True),
            ("staged", False),
            ("staged", True),
            ("streamed", True),
        )
        denoisers = [
            Strategy(
                residence=residence,
                device=device,
                folded=folded,
                storage=self._storage,
                coded=coded,
            )
            for residence, folded in forms
            for coded in self._codes
        ]
        stays: tuple[Residence, ...] = ("resident", "staged")
        decoders = [
            Strategy(residence=residence, device=device, strip_rows=rows)
            for residence in stays
            for rows in (0, STRIP_ROWS)
        ]
        height, width = (PIXELS_PER_TOKEN * side for side in self._work.grid)
        choices = [
            [self._footprints.of(network, strategy) for strategy in strategies]
            for network, strategies in zip(NETWORKS, (encoders, denoisers, decoders), strict=True)
        ]
        if self._baseline is None:  # free pages of the heap would be counted again when used
            backends.trim_heap()
        baseline = backends.resident_bytes() if self._baseline is None else self._baseline
        if self.device.type == "cpu" and self._dtype == torch.bfloat16:
            baseline += _COMPILED_BYTES
        for networks in product(*choices):
            yield Placement(
                device=device,
                dtype=str(self._dtype).removeprefix("torch."),
                height=height,
                width=width,
                steps=self._work.calls,
                text_tokens=self._work.text_tokens,
                networks=networks,
                baseline_bytes=baseline,
            )

    def _nothing_fits(self, budget: Budget) -> PlacementError:
        least = min(self.placements, key=lambda each: each.peak_bytes)
        size = f"{least.width}x{least.height}"
        if budget.memory is not None and least.peak_bytes > budget.memory:
            return PlacementError(
                f"no plan for {size} fits in {spell_bytes(budget.memory)} of memory: the smallest "
                f"({least}) needs {spell_bytes(least.peak_bytes)}",
                f"give --memory {_rounded_up(least.peak_bytes)}, or draw a smaller --size"
                + ("" if self._storage == "int4" else ", or --quantise int4"),
            )
        modest = min(self.placements, key=lambda each: each.ram_bytes)
        return PlacementError(
            f"no plan for {size} fits in {spell_bytes(budget.ram or 0)} of RAM: the smallest "
            f"({modest}) needs {spell_bytes(modest.ram_bytes)}",
            f"give --ram {_rounded_up(modest.ram_bytes)}",
        )


def _rounded_up(count: int) -> str:
    """In whole hundreds of megabytes, as the options read it."""
    return f"{-(-count // 100_000_000) * 100}MB"


def _order(placement: Placement) -> tuple[float, int, int, float]:
    """Faster for further pictures, then fewer networks that move, then the plainer, then faster."""
    networks = placement.networks
    moving = sum(each.strategy.residence != "resident" for each in networks)
    extras = sum(each.strategy.folded + bool(each.strategy.strip_rows) for each in networks)
    return (float(f"{placement.further_seconds:.2g}"), moving, extras, placement.seconds)
