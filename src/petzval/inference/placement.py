"""Where the three networks are while a picture is made, decided before a weight is loaded.

A `Placement` is a value: a strategy for each network, and what it will need. `planner` finds the
fastest one that fits; `residency` follows it. Nothing here computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from petzval.errors import RequestError

ENCODER, DENOISER, AUTOENCODER = "text encoder", "denoiser", "autoencoder"
NETWORKS = (ENCODER, DENOISER, AUTOENCODER)
"""In the order in which a picture needs them."""

Residence: TypeAlias = Literal["resident", "staged", "streamed"]
"""resident: loaded once, and stays. staged: there for its part of the work, then freed. streamed:
its layers are read one by one as they run."""

Storage: TypeAlias = Literal["exact", "float8", "int8", "int4"]
"""How the denoiser's blocks are kept; all but exact change the picture a little."""

STORAGES: tuple[Storage, ...] = ("exact", "float8", "int8", "int4")

StorageChoice: TypeAlias = Storage | Literal["auto"]
"""auto: exact where a plan of it fits, else the nearest to it that does."""

NEAREST_FIRST: tuple[Storage, ...] = ("int8", "int4")
"""What stands in for exact, in this order; float8 takes as much as int8 and is further off."""

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGT")},
    **{f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")},
}

_FEWEST_WITHOUT_UNIT = 1_000_000
"""Whoever writes fewer bytes than that as a bare number means gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """How one network is held.

    Attributes:
        residence: see `Residence`.
        device: where it computes, by torch's name.
        folded: denoiser: modulation evaluated once for the schedule, its weights never kept.
        storage: denoiser: of the blocks' matrices.
        coded: denoiser: the blocks' matrices stay in the codes of a quantised file, and are decoded
            at each call.
        strip_rows: autoencoder: rows of a strip; 0 decodes the picture at once.
        kept_layers: streamed: how many of the layers, once read, stay all the same.
    """

    residence: Residence
    device: str
    folded: bool = False
    storage: Storage = "exact"
    coded: bool = False
    strip_rows: int = 0
    kept_layers: int = 0

    def kept_of(self, count: int) -> tuple[int, ...]:
        """Which of so many layers stay: spread evenly, that one that does not is fetched behind
        the work of those that do.
        """
        kept = min(self.kept_layers, count)
        return tuple(i for i in range(count) if i * kept // count < (i + 1) * kept // count)

    @property
    def exact(self) -> bool:
        """Whether the picture is the resident one, bit for bit or to rounding."""
        return self.storage == "exact"

    def __str__(self) -> str:
        words: list[str] = [self.residence]
        words += [f"{self.kept_layers} layers kept"] if self.kept_layers else []
        words += ["folded"] if self.folded else []
        words += [self.storage] if self.storage != "exact" else []
        words += ["coded as its file"] if self.coded else []
        words += [f"strips of {self.strip_rows} rows"] if self.strip_rows else []
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPlacement:
    """One network's strategy and what it needs; bytes and seconds.

    Attributes:
        stored: (safetensors' name of a type, or of a packed format, bytes) as the files have them.
        weight_bytes: on its device while it is there, streamed layers included.
        staying_bytes: of these what is there while the others compute, too.
        working_bytes: the most its computation holds beside them.
        kept_bytes: what outlives it until the picture is done: features, modulations.
        host_bytes: in RAM on the way to another device: mapped pages, pinned layers.
        moved_bytes: read from the files for a further picture of the same request.
        seconds: for one picture, its weights read.
        further_seconds: for one more picture of the same request.
        other_seconds: for one more picture of other words.
        clearing_seconds: how much longer the latter takes on a CPU whose system has freed memory
            back at once and clears it anew, as under a close limit.
    """

    network: str
    strategy: Strategy
    stored: tuple[tuple[str, int], ...]
    weight_bytes: int
    staying_bytes: int
    working_bytes: int
    kept_bytes: int
    host_bytes: int
    moved_bytes: int
    seconds: float
    further_seconds: float
    other_seconds: float
    clearing_seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """On its device, everybody else away."""
        return self.weight_bytes + self.working_bytes

    def joined(self, other: NetworkPlacement) -> NetworkPlacement:
        """The same with as many bytes as the other one needs, where those are more."""
        return replace(
            self,
            weight_bytes=max(self.weight_bytes, other.weight_bytes),
            staying_bytes=max(self.staying_bytes, other.staying_bytes),
            working_bytes=max(self.working_bytes, other.working_bytes),
            kept_bytes=max(self.kept_bytes, other.kept_bytes),
            host_bytes=max(self.host_bytes, other.host_bytes),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A plan of memory for pictures of one size; seconds are those of a batch.

    Attributes:
        device, dtype: of the denoiser, by torch's names.
        height, width, steps, text_tokens: what was reckoned with.
        batch: pictures that run through the networks together.
        clears: whether freed memory goes back to the system at once; see `clearing_seconds`.
        networks: in the order of `NETWORKS`.
        baseline_bytes: RAM of the process before a network is there.
    """

    device: str
    dtype: str
    height: int
    width: int
    steps: int
    text_tokens: int
    networks: tuple[NetworkPlacement, ...]
    baseline_bytes: int
    batch: int = 1
    clears: bool = False

    def of(self, network: str) -> NetworkPlacement:
        """The placement of one network."""
        return self.networks[NETWORKS.index(network)]

    @property
    def exact(self) -> bool:
        """Whether the picture is the resident one, bit for bit or to rounding."""
        return all(each.strategy.exact for each in self.networks)

    @property
    def peak_bytes(self) -> int:
        """Of the device; on a CPU with the process itself, as the system counts it."""
        base = self.baseline_bytes if self._on_cpu(self.device) else 0
        return base + self._peak(self.device)

    @property
    def added_bytes(self) -> int:
        """Of the device's peak what comes on top of the process before a network is there."""
        return self._peak(self.device)

    @property
    def ram_bytes(self) -> int:
        """Peak of this process in RAM."""
        if self._on_cpu(self.device):
            return self.peak_bytes
        stays = sum(
            each.staying_bytes for each in self.networks if self._on_cpu(each.strategy.device)
        )
        on_the_way = stays + max(each.host_bytes for each in self.networks)
        return self.baseline_bytes + max(self._peak("cpu"), on_the_way)

    def peak_at_once(self, records: int = 0) -> int:
        """Peak of the device where one picture is decoded beside the steps of the next, and the
        words of a third are encoded.

        Args:
            records: calls of the denoiser whose memory is kept (CUDA graphs).
        """
        there = [each for each in self.networks if each.strategy.device == self.device]
        total = sum(each.weight_bytes + each.working_bytes for each in there)
        total += 2 * sum(each.kept_bytes for each in self.networks)
        total += records * self.of(DENOISER).working_bytes
        return total + (self.baseline_bytes if self._on_cpu(self.device) else 0)

    def joined(self, other: Placement) -> Placement:
        """Of each network the bytes that the larger of two needs, under the same strategies."""
        pairs = zip(self.networks, other.networks, strict=True)
        return replace(self, networks=tuple(mine.joined(its) for mine, its in pairs))

    @property
    def stays(self) -> bool:
        """Whether all networks, once loaded, stay in place."""
        return all(each.strategy.residence == "resident" for each in self.networks)

    def seconds_of(self, network: str) -> float:
        """Share of one network in `seconds`."""
        each = self.of(network)
        return each.seconds + (each.clearing_seconds if self.clears else 0.0)

    @property
    def load_seconds(self) -> float:
        """For reading what stays, before the first picture."""
        return self.seconds - self.other_seconds

    @property
    def seconds(self) -> float:
        """For the first picture, weights read."""
        return sum(self.seconds_of(name) for name in NETWORKS)

    @property
    def further_seconds(self) -> float:
        """For each further picture of the same request."""
        drawing = [each for each in self.networks if each.network != ENCODER]
        return sum(each.further_seconds for each in self.networks) + self._clearing(drawing)

    @property
    def other_seconds(self) -> float:
        """For each further picture of other words: its prompt has to be encoded."""
        return sum(each.other_seconds for each in self.networks) + self._clearing(self.networks)

    def _clearing(self, networks: Sequence[NetworkPlacement]) -> float:
        return sum(each.clearing_seconds for each in networks) if self.clears else 0.0

    def __str__(self) -> str:
        return "; ".join(f"{each.network} {each.strategy}" for each in self.networks)

    @staticmethod
    def _on_cpu(device: str) -> bool:
        return device.split(":")[0] == "cpu"

    def _peak(self, device: str) -> int:
        """The stage that needs most: its own, and what stays or is kept beside it."""
        peaks = [0]
        there = [each for each in self.networks if each.strategy.device == device]
        kept = sum(each.kept_bytes for each in self.networks) if device == self.device else 0
        for stage in there:
            others = [each for each in there if each is not stage]
            beside = sum(each.staying_bytes for each in others)
            peaks.append(stage.peak_bytes + beside + kept)
        return max(peaks)


def choose_storage(name: str) -> StorageChoice:
    """The storage of that name, or the choice between them.

    Raises:
        RequestError: unknown.
    """
    choices: tuple[StorageChoice, ...] = (*STORAGES, "auto")
    for choice in choices:
        if name == choice:
            return choice
    raise RequestError(
        f"unknown storage {name[:40]!r} for the denoiser", f"it is one of {', '.join(choices)}"
    )


def parse_bytes(text: str) -> int:
    """ "8GB" (10^9), "8GiB" (2^30), "500 MB", "8000000000" → bytes.

    Raises:
        RequestError: no such amount; or so few bytes that a unit was forgotten.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]{0,3})\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise RequestError(
            f"cannot read {text[:40]!r} as an amount of memory", "write it as 8GB, 8GiB or 500MB"
        )
    count = int(float(match[1]) * unit)
    if not match[2] and count < _FEWEST_WITHOUT_UNIT:
        raise RequestError(
            f"{text.strip()!r} has no unit: as an amount of memory that is {spell_bytes(count)}",
            f"write it as {match[1]}GB, {match[1]}GiB or 500MB",
        )
    return count


def spell_bytes(count: int) -> str:
    """Bytes for people, in powers of ten: "8.2 GB"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.{3 if count < 1000 * size else 6}g} {unit}"
    return f"{count:.0f} B"
