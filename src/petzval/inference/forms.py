"""Networks without numbers in the form that a strategy keeps them in: what is counted on them.

To build one takes some tenths of a second, and what a picture asks changes nothing of it. So a form
is counted once, and shortened then to what is run dry. `Reckoned` keeps forms and dry runs for all
plans of a checkpoint.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import nn

from petzval.inference.dry_networks import packed_values, shortened
from petzval.inference.placement import AUTOENCODER, DENOISER, ENCODER, Strategy
from petzval.inference.residency import (
    build_autoencoder,
    build_denoiser,
    build_encoder,
    denoiser_blocks,
    encoder_layers,
    modulation_layers,
    parameter_dtype,
)
from petzval.models.coded import num_coded_values
from petzval.models.dry_run import Footprint
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.residence import EmbeddingRows
from petzval.weights.source import Source, TensorDescription, packing_of
from petzval.weights.tensors import REMAP_BYTES, TensorSource

N = TypeVar("N", bound=nn.Module)
V = TypeVar("V")

_MOST_FORMS, _MOST_RUNS = 64, 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """What it takes to bring some of a network's numbers.

    Attributes:
        size: bytes of them as they are used.
        moved: bytes read from the files.
        converted: bytes of these, with what is made of them: both pass through the CPU.
        made: bytes that are new, and not the mapped files themselves.
        unpacked: values that are decoded from another program's blocks.
    """

    size: int = 0
    moved: int = 0
    converted: int = 0
    made: int = 0
    unpacked: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            size=self.size + other.size,
            moved=self.moved + other.moved,
            converted=self.converted + other.converted,
            made=self.made + other.made,
            unpacked=self.unpacked + other.unpacked,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A network's numbers; bytes.

    Attributes:
        base: there all the time, without a table that is looked up in the file.
        table: of that one, all of it.
        layer: of the largest layer that comes and goes.
        mapped: of the files, beside what is made of them; 0 where that is the mapped file itself.
        unpacking: the most that one tensor takes while it is decoded.
        brought: all that comes and goes; of a network without such layers, all but the table.
        layers: of these each by itself, in the order of their calls.
    """

    base: int
    table: int
    layer: int
    mapped: int
    unpacking: int
    brought: Amounts
    layers: tuple[Amounts, ...]

    def parted(self, kept: Collection[int]) -> tuple[Amounts, Amounts]:
        """What is brought once, and what is brought again and again.

        Args:
            kept: places of layers that stay.
        """
        if not kept:
            return Amounts(), self.brought
        once = [layer for index, layer in enumerate(self.layers) if index in kept]
        again = [layer for index, layer in enumerate(self.layers) if index not in kept]
        return sum(once, Amounts()), sum(again, Amounts())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Form:
    """A network as a strategy keeps it.

    Attributes:
        network: to be run dry, see `shortened`.
        weights: of the whole.
        stored: (type, or packed format, bytes) as the files have it.
        decoded: values that a pass decodes.
        modulation: bytes of the layers that depend on the noise level alone.
        folding: the same layers, brought one by one.
    """

    network: nn.Module
    weights: Weights
    stored: tuple[tuple[str, int], ...]
    decoded: int = 0
    modulation: int = 0
    folding: Weights | None = None


class _Latest(Generic[V]):
    """Values by keys, those that were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[object, V] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: object, make: Callable[[], V]) -> V:
        """Two threads that ask at once may both make it; the results are alike."""
        with self._lock:
            found = self._values.get(key)
        if found is None:
            found = make()
        with self._lock:
            self._values[key] = found
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Reckoned:
    """What was reckoned for a checkpoint, for all of its plans and from any thread.

    Attributes:
        forms: by all that they depend on.
        runs: dry ones, by the same and what the picture asks of it.
        codes: whether a file keeps codes, by the layers that do not count.
    """

    forms: _Latest[Form] = field(default_factory=lambda: _Latest[Form](_MOST_FORMS))
    runs: _Latest[Footprint] = field(default_factory=lambda: _Latest[Footprint](_MOST_RUNS))
    codes: _Latest[bool] = field(default_factory=lambda: _Latest[bool](_MOST_FORMS))


def make_form(
    checkpoint: Checkpoint,
    network: str,
    strategy: Strategy,
    dtype: torch.dtype,
    changed: Collection[str] = (),
) -> Form:
    """Build a network and count; some tenths of a second at full size.

    Args:
        checkpoint: open; only headers and configs are looked at.
        network: which.
        strategy: of it.
        dtype: of the arithmetic.
        changed: layers of the denoiser that LoRAs are merged into.
    """
    number = parameter_dtype(dtype)
    streams = strategy.residence == "streamed"
    if network == ENCODER:
        encoder = _as_used(build_encoder(checkpoint, strategy, dtype), number)
        source = checkpoint.encoder_source
        layers = [layer for _, layer in encoder_layers(encoder)] if streams else []
        weights = _weights(encoder, source, strategy, number, layers)
        decoded = packed_values(encoder)
        return Form(
            network=shortened(encoder), weights=weights, stored=_stored(source), decoded=decoded
        )
    if network == DENOISER:
        denoiser, source = build_denoiser(checkpoint, strategy, dtype, changed)
        denoiser = _as_used(denoiser, number)
        modulation = [layer for _, layer in modulation_layers(denoiser)]
        folded = modulation if strategy.folded else []
        blocks = [block for _, block in denoiser_blocks(denoiser)] if streams else []
        return Form(
            weights=_weights(denoiser, source, strategy, number, blocks, without=folded),
            stored=_stored(checkpoint.denoiser_source),
            decoded=num_coded_values(denoiser),
            modulation=sum(_bytes_of(layer) for layer in modulation),
            folding=_weights(denoiser, source, strategy, number, modulation) if folded else None,
            network=shortened(denoiser),
        )
    assert network == AUTOENCODER
    source = checkpoint.vae_source
    autoencoder = _as_used(build_autoencoder(checkpoint), number)
    weights = _weights(autoencoder, source, strategy, number, ())
    return Form(network=autoencoder, weights=weights, stored=_stored(source))


def _weights(
    network: nn.Module,
    source: Source,
    strategy: Strategy,
    number: torch.dtype,
    layers: Collection[nn.Module],
    without: Collection[nn.Module] = (),
) -> Weights:
    away = _ids(without)
    groups = [{id(each) for each in layer.modules()} - away for layer in layers]
    everywhere = set[int]().union(*groups)
    named = [(name, each) for name, each in network.named_modules() if id(each) not in away]
    tables = {id(each) for _, each in named if isinstance(each, EmbeddingRows)}
    sizes = {id(each): _own_bytes(each) for _, each in named}
    owners = {name: id(each) for name, each in named if id(each) not in tables}
    stored: dict[int, list[TensorDescription]] = {}
    for key, info in source.infos.items():
        owner = owners.get(key.rpartition(".")[0])
        if owner is not None:
            stored.setdefault(owner, []).append(info)

    def copied(owner: int) -> int:
        infos = stored.get(owner, ())
        return sum(x.num_bytes for x in infos if _is_converted(x, source, strategy, number))

    def amounts(group: Collection[int]) -> Amounts:
        infos = [info for owner in group for info in stored.get(owner, ())]
        made = sum(sizes[owner] for owner in group if copied(owner))
        return Amounts(
            size=sum(sizes[owner] for owner in group),
            moved=sum(info.num_bytes for info in infos),
            converted=made + sum(copied(owner) for owner in group),
            made=made,
            unpacked=sum(x.num_elements for x in infos if packing_of(x) and x.dtype != "U8"),
        )

    each = tuple(amounts(group) for group in groups)
    again = (everywhere or set(sizes)) - tables
    packed = [info for owner in again for info in stored.get(owner, ()) if packing_of(info)]
    mapped = [sum(copied(owner) for owner in group) for group in groups or [set(sizes)]]
    return Weights(
        base=sum(size for owner, size in sizes.items() if owner not in everywhere | tables),
        table=sum(sizes[owner] for owner in tables),
        layer=max((layer.size for layer in each), default=0),
        mapped=min(REMAP_BYTES, max(mapped)),
        unpacking=max((_unpacking_bytes(info) for info in packed), default=0),
        brought=amounts(again),
        layers=each,
    )


def _is_converted(
    info: TensorDescription, source: Source, strategy: Strategy, number: torch.dtype
) -> bool:
    """Whether what is used is a copy, and not the pages of the file themselves."""
    if strategy.device != "cpu" or strategy.storage != "exact":
        return True
    if info.torch_dtype.is_floating_point:
        return info.torch_dtype != number or packing_of(info) != ""
    return not (strategy.coded or isinstance(source, TensorSource))  # rearranged bytes


def _as_used(network: N, dtype: torch.dtype) -> N:
    """Parameters in the type that `weights.residence.fill` gives them."""
    for owner in network.modules():
        if hasattr(owner, "prepared"):
            continue
        for key, weight in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(key, nn.Parameter(weight.to(dtype), requires_grad=False))
    return network


def _ids(layers: Collection[nn.Module]) -> set[int]:
    return {id(each) for layer in layers for each in layer.modules()}


def _own_bytes(owner: nn.Module) -> int:
    """Bytes of a module's own tensors."""
    tensors = [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]
    return sum(tensor.nbytes for tensor in tensors)


def _unpacking_bytes(info: TensorDescription) -> int:
    """A tensor of another program's blocks on its way: as float32, or as bytes, and rearranged."""
    return 2 * info.num_elements * (1 if info.dtype == "U8" else 4)


def _bytes_of(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in layer.parameters())


def _stored(source: Source) -> tuple[tuple[str, int], ...]:
    sizes: dict[str, int] = {}
    for info in source.infos.values():
        name = packing_of(info) or info.dtype
        sizes[name] = sizes.get(name, 0) + info.num_bytes
    return tuple(sorted(sizes.items(), key=lambda item: -item[1]))
