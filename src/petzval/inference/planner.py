"""The fastest placement that fits, out of all strategies of the three networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch

from petzval.errors import PlacementError
from petzval.inference.dry_networks import Work
from petzval.inference.footprint import Footprints
from petzval.inference.forms import Reckoned
from petzval.inference.placement import (
    DENOISER,
    NEAREST_FIRST,
    NETWORKS,
    NetworkPlacement,
    Placement,
    Residence,
    Storage,
    StorageChoice,
    Strategy,
    spell_bytes,
)
from petzval.inference.residency import has_codes
from petzval.inference.speeds import Speeds
from petzval.inference.terms import Budget
from petzval.kernels import backends
from petzval.resolution import PIXELS_PER_TOKEN
from petzval.weights.checkpoint import Checkpoint

STRIP_ROWS = 64
_COMPILED_BYTES = 100_000_000
"""oneDNN compiles and keeps a product for every shape that it meets in bfloat16; as measured."""

_AS_FAST = 1.05
"""Times as many seconds are no difference: predictions are not that good."""

PICTURES = 4
"""A plan is to be the fastest for so many prompts, the first of which reads the weights."""

_PARTS = 8
"""Of the layers that are streamed, so many parts may stay where there is room for them."""

_STEP_DOWN = 0.9
"""After memory ran out, the next plan is predicted to need at most this share of the last one."""


class Planner:
    """All placements of a checkpoint for one kind of picture on one machine.

    Args:
        checkpoint: open, not loaded.
        device: that draws.
        dtype: of the networks.
        work: what a picture asks.
        speeds: of the machine.
        storage: of the denoiser's blocks; only "exact" leaves the picture as it is, "auto" does
            where an exact plan fits.
        beside: numbers that LoRAs keep beside the denoiser's weights.
        changed: layers of it that LoRAs are merged into.
        baseline: RAM of the process before a network is there, what it compiles included; None
            takes what it holds.
        encodes: False: words are encoded in another process.
        reckoned: for this checkpoint before; what is missing there is added.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        work: Work,
        speeds: Speeds,
        *,
        storage: StorageChoice = "exact",
        beside: int = 0,
        changed: Collection[str] = (),
        baseline: int | None = None,
        encodes: bool = True,
        reckoned: Reckoned | None = None,
    ) -> None:
        reckoned = reckoned or Reckoned()
        self.checkpoint = checkpoint
        self.device = device
        self._dtype = dtype
        self._work = work
        self._storages: tuple[Storage, ...] = (
            ("exact", *NEAREST_FIRST) if storage == "auto" else (storage,)
        )
        self._footprints = Footprints(
            checkpoint,
            dtype,
            work,
            speeds,
            beside=beside,
            changed=changed,
            encodes=encodes,
            reckoned=reckoned,
        )
        self._encodes = encodes
        may_stay = self._storages[0] == "exact" and dtype != torch.float16
        keeps = may_stay and reckoned.codes.of(
            frozenset(changed), lambda: has_codes(checkpoint, changed)
        )
        self._codes = (False, True) if keeps else (False,)
        self._baseline = baseline
        self._placements: dict[Storage, list[Placement]] = {}

    @property
    def placements(self) -> list[Placement]:
        """Those of the storage that was asked for (of auto: the exact ones), the fastest first."""
        return self._of(self._storages[0])

    def choose(self, budget: Budget, *, briefly: bool = False) -> Placement:
        """The fastest placement within a budget; of those nearly as fast the plainest.

        Args:
            budget: that it keeps.
            briefly: look for no quantised plan to hint at, which takes longer than the rest.

        Raises:
            PlacementError: none is; the hint names the smallest, or what would make one fit.
        """
        found = self._first(budget.holds, self._storages, budget)
        if found is None:
            raise self._nothing_fits(budget, briefly=briefly)
        return found

    def again(self, placement: Placement) -> Placement:
        """The strategies of a placement that was made for other pictures, reckoned for these."""
        each = (self._footprints.of(one.network, one.strategy) for one in placement.networks)
        return replace(
            self._placement(tuple(each), placement.baseline_bytes), clears=placement.clears
        )

    def smaller(self, than: Placement, budget: Budget | None = None) -> Placement:
        """The fastest within a budget that needs clearly less than one that was too large.

        Raises:
            PlacementError: none does.
        """
        limit = int(_STEP_DOWN * than.added_bytes)

        def holds(placement: Placement) -> bool:
            within = budget is None or budget.holds(placement)
            return within and placement.added_bytes <= limit

        found = self._first(holds, self._storages, budget or Budget())
        if found is None:
            raise PlacementError(
                f"memory ran out, and no plan for {than.width}x{than.height} needs clearly less "
                f"than {spell_bytes(than.peak_bytes)} ({than})",
                "draw a smaller --size, or free some memory" + self._quantised_hint(holds),
            )
        return found

    def _of(self, storage: Storage) -> list[Placement]:
        if storage not in self._placements:
            self._placements[storage] = sorted(self._all(storage), key=whole_seconds)
        return self._placements[storage]

    def _first(
        self, holds: Callable[[Placement], bool], storages: Sequence[Storage], budget: Budget
    ) -> Placement | None:
        """Of the first storage that has any: the plainest of those as fast as the fastest."""
        for storage in storages:
            held = [
                replace(each, clears=not budget.leaves_holes(each.device, each.ram_bytes))
                for each in self._of(storage)
                if holds(each)
            ]
            if held := _without_needless(held):
                enough = _AS_FAST * min(whole_seconds(each) for each in held)
                return min((x for x in held if whole_seconds(x) <= enough), key=_plainness)
        return None

    def _quantised_hint(self, holds: Callable[[Placement], bool]) -> str:
        """What would fit beyond the storages that may be chosen; empty where nothing would."""
        tried = self._storages[-1]
        behind = () if tried == "int4" else NEAREST_FIRST if tried == "exact" else ("int4",)
        found = self._first(holds, behind, Budget())
        if found is None:
            return ""
        storage = found.of(DENOISER).strategy.storage
        return f", or --quantise {storage}: {found} needs {spell_bytes(found.peak_bytes)}"

    def _all(self, storage: Storage) -> Iterator[Placement]:
        device = str(self.device)
        encoders = [Strategy(residence="resident", device=device)]
        if self._encodes:
            encoders += [Strategy(residence="staged", device=device)]
            streamed = Strategy(residence="streamed", device=device)
            encoders += with_kept_layers(streamed, self.checkpoint.encoder_config.num_hidden_layers)
        if self._encodes and self.device.type != "cpu":
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
                storage=storage,
                coded=coded,
            )
            for residence, folded in forms
            for coded in (self._codes if storage == "exact" else (False,))
        ]
        blocks = self.checkpoint.denoiser_config.num_layers
        denoisers = [kept for each in denoisers for kept in with_kept_layers(each, blocks)]
        stays: tuple[Residence, ...] = ("resident", "staged")
        decoders = [
            Strategy(residence=residence, device=device, strip_rows=rows)
            for residence in stays
            for rows in (0, STRIP_ROWS)
        ]
        choices = [
            [self._footprints.of(network, strategy) for strategy in strategies]
            for network, strategies in zip(NETWORKS, (encoders, denoisers, decoders), strict=True)
        ]
        baseline = self._process_bytes() if self._baseline is None else self._baseline
        for networks in product(*choices):
            yield self._placement(networks, baseline)

    def _process_bytes(self) -> int:
        """RAM of this process, without the free pages of its heap: they are used again."""
        backends.trim_heap()
        compiles = self.device.type == "cpu" and self._dtype == torch.bfloat16
        return backends.resident_bytes() + (_COMPILED_BYTES if compiles else 0)

    def _placement(self, networks: Sequence[NetworkPlacement], baseline: int) -> Placement:
        height, width = (PIXELS_PER_TOKEN * side for side in self._work.grid)
        return Placement(
            device=str(self.device),
            dtype=str(self._dtype).removeprefix("torch."),
            height=height,
            width=width,
            steps=self._work.calls,
            text_tokens=self._work.text_tokens,
            batch=self._work.batch,
            networks=tuple(networks),
            baseline_bytes=baseline,
        )

    def _nothing_fits(self, budget: Budget, *, briefly: bool) -> PlacementError:
        every = [each for storage in self._storages for each in self._of(storage)]
        least = min(every, key=lambda each: each.peak_bytes)
        size = f"{least.width}x{least.height}"
        quantised = "" if briefly else self._quantised_hint(budget.holds)
        if budget.memory is not None and least.peak_bytes > budget.memory:
            return PlacementError(
                f"no plan for {size} fits in {spell_bytes(budget.memory)} of memory: the smallest "
                f"({least}) needs {spell_bytes(least.peak_bytes)}",
                f"give --memory {_rounded_up(least.peak_bytes)}, or draw a smaller --size"
                + quantised,
            )
        # What needs least RAM of all may be what the other limit has no room for.
        memory = budget.memory
        within = [each for each in every if memory is None or each.peak_bytes <= memory]
        modest = min(within, key=lambda each: each.ram_bytes)
        beside = "" if memory is None else f" beside {spell_bytes(memory)} of memory"
        return PlacementError(
            f"no plan for {size} fits in {spell_bytes(budget.ram or 0)} of RAM{beside}: the "
            f"smallest ({modest}) needs {spell_bytes(modest.ram_bytes)} of RAM",
            f"give --ram {_rounded_up(modest.ram_bytes)}" + quantised,
        )


def with_kept_layers(strategy: Strategy, layers: int) -> list[Strategy]:
    """A strategy, and where it streams its layers those with some of them kept, the most first.

    Args:
        strategy: of a network, none kept.
        layers: that it has.
    """
    if strategy.residence != "streamed":
        return [strategy]
    counts = sorted({layers * part // _PARTS for part in range(_PARTS)}, reverse=True)
    return [replace(strategy, kept_layers=count) for count in counts]


def _rounded_up(count: int) -> str:
    """In whole hundreds of megabytes, as the options read it."""
    return f"{-(-count // 100_000_000) * 100}MB"


def whole_seconds(placement: Placement) -> float:
    """For all `PICTURES`."""
    return placement.seconds + (PICTURES - 1) * placement.other_seconds


def _without_needless(held: list[Placement]) -> list[Placement]:
    """Those that keep layers for want of room alone: not where the whole network may stay."""

    def strategies(placement: Placement) -> tuple[Strategy, ...]:
        return tuple(each.strategy for each in placement.networks)

    def whole(strategy: Strategy) -> Strategy:
        kept = strategy.kept_layers > 0
        return replace(strategy, residence="resident", kept_layers=0) if kept else strategy

    there = {strategies(each) for each in held}

    def needed(placement: Placement) -> bool:
        own = strategies(placement)
        roomier = tuple(map(whole, own))
        return roomier == own or roomier not in there

    return [each for each in held if needed(each)]


def _plainness(placement: Placement) -> tuple[int, int, float]:
    """Fewer networks that move, then fewer extras, then faster."""
    networks = placement.networks
    moving = sum(each.strategy.residence != "resident" for each in networks)
    held = [each.strategy for each in networks]
    extras = sum(x.folded + bool(x.strip_rows) + bool(x.kept_layers) for x in held)
    return (moving, extras, whole_seconds(placement))
