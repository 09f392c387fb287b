"""What each network needs under a strategy, from headers, configs and a dry run: no weight is read.

Bytes of weights are counted on the networks as `residency` builds them, working memory by running
their very code on the meta device (`models.dry_run`), seconds by dividing through `Speeds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from petzval.conditioning.template import PREFIX_LENGTH
from petzval.inference.dry_networks import (
    DRY_LAYERS,
    META,
    Work,
    dry_denoiser,
    dry_encoder,
    packed_values,
)
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    NetworkPlacement,
    Strategy,
)
from petzval.inference.residency import (
    build_autoencoder,
    build_denoiser,
    build_encoder,
    denoiser_blocks,
    encoder_layers,
    modulation_layers,
    parameter_dtype,
)
from petzval.inference.speeds import Speeds
from petzval.kernels import backends
from petzval.models.coded import num_coded_values
from petzval.models.dry_run import Footprint, dry_run
from petzval.models.flops import forward_flops
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.strips import decode_in_strips
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.residence import EmbeddingRows
from petzval.weights.source import Source, TensorDescription, packing_of
from petzval.weights.tensors import REMAP_BYTES, TensorSource

N = TypeVar("N", bound=nn.Module)

_PAGES_OF_A_ROW = 1 << 16
"""What the system maps around a row of a table that is looked up in the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    """Bytes of a network's numbers.

    Attributes:
        base: there all the time.
        layer: of the largest layer that comes and goes.
        moved: read from the files each time all of it is brought.
        mapped: of the files, beside what is made of them; 0 where that is the mapped file itself.
        unpacked: values that are decoded from another program's blocks whenever they are read.
        unpacking: the most that one tensor takes meanwhile.
    """

    base: int
    layer: int
    moved: int
    mapped: int
    unpacked: int
    unpacking: int


class Footprints:
    """The needs of one checkpoint's networks for one kind of picture.

    Args:
        checkpoint: open; only headers and configs are looked at.
        dtype: of the networks.
        work: what a picture asks.
        speeds: of the machine.
        beside: numbers that LoRAs keep beside the denoiser's weights.
        changed: layers of it that LoRAs are merged into.
        encodes: False: words are encoded elsewhere, and of the text encoder come features alone.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        work: Work,
        speeds: Speeds,
        *,
        beside: int = 0,
        changed: Collection[str] = (),
        encodes: bool = True,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._number = parameter_dtype(dtype)
        self._work = work
        self._speeds = speeds
        self._beside = beside
        self._changed = frozenset(changed)
        self._encodes = encodes
        self._runs: dict[object, Footprint] = {}

    def of(self, network: str, strategy: Strategy) -> NetworkPlacement:
        """What a network needs under a strategy."""
        if network == ENCODER and not self._encodes:
            return self._elsewhere(strategy)
        return {ENCODER: self._encoder, DENOISER: self._denoiser, AUTOENCODER: self._autoencoder}[
            network
        ](strategy)

    # ── text encoder ─────────────────────────────────────────────────────────────────────────────

    def _encoder(self, strategy: Strategy) -> NetworkPlacement:
        source = self._checkpoint.encoder_source
        encoder = self._encoder_network
        layers = [layer for _, layer in encoder_layers(encoder)]
        streamed = strategy.residence == "streamed"
        # Streamed layers are read once: prefix and prompt in one pass.
        tokens = self._work.text_tokens + (PREFIX_LENGTH if streamed else 0)
        texts, together = self._texts(strategy)
        weights = self._weights(encoder, source, strategy, layers if streamed else ())
        run = self._once(
            ("encoder", tokens, together, strategy.device),
            lambda: dry_encoder(encoder, tokens, self._number, texts=together),
            strategy,
        )
        flops = run.flops / together
        if not streamed:
            prefix = self._once(
                ("encoder", PREFIX_LENGTH, 1, strategy.device),
                lambda: dry_encoder(encoder, PREFIX_LENGTH, self._number),
                strategy,
            )
            run, flops = run.then(prefix), flops + prefix.flops
        decoded = packed_values(encoder) * math.ceil(texts / together)
        decoded *= 1 if streamed else 2
        on_cpu = strategy.device == "cpu"
        speed = self._speeds.cpu_flops if on_cpu else self._speeds.flops
        rate = self._speeds.cpu_decoded if on_cpu else self._speeds.decoded
        scale = len(layers) / DRY_LAYERS * texts
        compute = flops * scale / speed + decoded / rate
        kept = self._feature_bytes
        return self._placed(ENCODER, strategy, source, weights, run, kept, compute, passes=1)

    @property
    def _feature_bytes(self) -> int:
        """Of all features that are kept at a time."""
        width = self._checkpoint.encoder_config.hidden_size
        layers = len(self._checkpoint.denoiser_config.selected_layer_index)
        return (
            layers
            * width
            * self._number.itemsize
            * self._work.text_tokens
            * (self._work.kept_texts)
        )

    def _elsewhere(self, strategy: Strategy) -> NetworkPlacement:
        """A text encoder of another process: what it gives is here, and nothing else of it."""
        return NetworkPlacement(
            network=ENCODER,
            strategy=strategy,
            stored=(),
            weight_bytes=0,
            working_bytes=0,
            kept_bytes=self._feature_bytes,
            host_bytes=0,
            moved_bytes=0,
            seconds=0.0,
            further_seconds=0.0,
            other_seconds=0.0,
        )

    def _texts(self, strategy: Strategy) -> tuple[int, int]:
        """Texts of a batch of pictures, and how many at most run through the encoder together.

        One that stays reads the words of a lone picture when it comes; any other all at once.
        """
        work = self._work
        at_once = strategy.residence != "resident" or work.batch > 1
        return work.batch * work.texts, work.text_batch if at_once else 1

    @cached_property
    def _encoder_network(self) -> GptOssEncoder:
        strategy = Strategy(residence="resident", device="cpu")
        encoder = build_encoder(self._checkpoint, strategy, self._dtype)
        return _as_used(encoder, self._number)

    # ── denoiser ─────────────────────────────────────────────────────────────────────────────────

    def _denoiser(self, strategy: Strategy) -> NetworkPlacement:
        work = self._work
        denoiser, source = build_denoiser(self._checkpoint, strategy, self._dtype, self._changed)
        denoiser = _as_used(denoiser, self._number)
        folded = [layer for _, layer in modulation_layers(denoiser)] if strategy.folded else []
        streamed = strategy.residence == "streamed"
        blocks = [block for _, block in denoiser_blocks(denoiser)] if streamed else []
        weights = self._weights(denoiser, source, strategy, blocks, without=folded)
        run = self._once(
            ("denoiser", strategy.storage, strategy.coded, streamed, strategy.device),
            lambda: dry_denoiser(denoiser, work, self._number, side_by_side=streamed),
            strategy,
        )
        config = self._checkpoint.denoiser_config
        lengths = [work.grid[0] * work.grid[1]] * work.batch, [work.text_tokens] * work.batch
        flops = forward_flops(config, *lengths)
        compute = flops * work.calls * work.branches / self._speeds.flops
        decoded = num_coded_values(denoiser) * work.calls * work.branches
        compute += decoded / self._speeds.decoded
        values = (12 * config.num_layers + 2) * config.hidden_size
        kept = (work.calls * values + self._beside) * self._number.itemsize
        sizes = [_bytes_of(layer) for layer in folded]
        run = run.then(Footprint(peak_bytes=max(sizes, default=0), flops=0))
        passes = work.calls if streamed else 1  # both branches go through a block while it is there
        return self._placed(
            DENOISER, strategy, source, weights, run, kept, compute, passes=passes, once=sum(sizes)
        )

    # ── autoencoder ──────────────────────────────────────────────────────────────────────────────

    def _autoencoder(self, strategy: Strategy) -> NetworkPlacement:
        source = self._checkpoint.vae_source
        module = _as_used(build_autoencoder(self._checkpoint), self._number)
        weights = self._weights(module, source, strategy, ())
        height, width = self._work.grid
        channels = self._checkpoint.vae_config.latent_channels
        shape = (self._work.batch, channels, 2 * height, 2 * width)

        def decode() -> Tensor:
            latents = torch.empty(shape, dtype=self._number, device=META)
            if strategy.strip_rows:
                return decode_in_strips(module, latents, rows=strategy.strip_rows)
            return module.decode(latents)

        run = self._once(("autoencoder", strategy.strip_rows, strategy.device), decode, strategy)
        compute = run.flops / self._speeds.flops
        return self._placed(AUTOENCODER, strategy, source, weights, run, 0, compute, passes=1)

    # ── all three ────────────────────────────────────────────────────────────────────────────────

    def _once(self, key: object, work: Callable[[], object], strategy: Strategy) -> Footprint:
        if key not in self._runs:
            on_cpu = strategy.device == "cpu"
            self._runs[key] = dry_run(work, scratch=on_cpu)
        return self._runs[key]

    def _weights(
        self,
        network: nn.Module,
        source: Source,
        strategy: Strategy,
        layers: Collection[nn.Module],
        without: Collection[nn.Module] = (),
    ) -> _Weights:
        away = _ids(without)
        streamed = [{id(each) for each in layer.modules()} - away for layer in layers]
        named = [(name, each) for name, each in network.named_modules() if id(each) not in away]
        everywhere = set[int]().union(*streamed)
        sizes = {id(each): _own_bytes(each, self._work) for _, each in named}
        owners = {name: id(each) for name, each in named if not isinstance(each, EmbeddingRows)}
        again = everywhere or {id(each) for _, each in named}
        paths = {name for name, each in named if id(each) in again}
        paths -= {name for name, each in named if isinstance(each, EmbeddingRows)}
        groups = streamed or [set(sizes)]
        converted: dict[int, int] = {}
        for key, info in source.infos.items():
            owner = owners.get(key.rpartition(".")[0])
            if owner is not None and self._is_converted(info, source, strategy):
                converted[owner] = converted.get(owner, 0) + info.num_bytes
        mapped = [sum(converted.get(each, 0) for each in group) for group in groups]
        read = [info for key, info in source.infos.items() if key.rpartition(".")[0] in paths]
        packed = [info for info in read if packing_of(info)]
        return _Weights(
            base=sum(size for each, size in sizes.items() if each not in everywhere),
            layer=max((sum(sizes[each] for each in layer) for layer in streamed), default=0),
            moved=sum(info.num_bytes for info in read),
            mapped=min(REMAP_BYTES, max(mapped)),
            unpacked=sum(info.num_elements for info in packed if info.dtype != "U8"),
            unpacking=max((_unpacking_bytes(info) for info in packed), default=0),
        )

    def _is_converted(self, info: TensorDescription, source: Source, strategy: Strategy) -> bool:
        """Whether what is used is a copy, and not the pages of the file themselves."""
        if strategy.device != "cpu" or strategy.storage != "exact":
            return True
        if info.torch_dtype.is_floating_point:
            return info.torch_dtype != self._number or packing_of(info) != ""
        return not (strategy.coded or isinstance(source, TensorSource))  # rearranged bytes

    def _placed(
        self,
        network: str,
        strategy: Strategy,
        source: Source,
        weights: _Weights,
        run: Footprint,
        kept: int,
        compute: float,
        *,
        passes: int,
        once: int = 0,
    ) -> NetworkPlacement:
        """Put together: peaks of loading and of computing, seconds of both."""
        device = torch.device(strategy.device)
        on_cpu = device.type == "cpu"
        streamed = strategy.residence == "streamed"
        early = not on_cpu and "streams" not in backends.lacks(device)
        layers = weights.layer * (2 if early else 1)
        # While weights are converted, the stored ones are mapped beside them.
        loading = weights.mapped + weights.unpacking if on_cpu else 0
        speeds = self._speeds
        sent = 0.0 if on_cpu else 1 / speeds.sent
        each = weights.moved * (1 / speeds.read + sent) + weights.unpacked / speeds.cpu_decoded
        first_fold = once / speeds.read
        if streamed:
            seconds = max(compute, passes * each) + first_fold
            moved, further = weights.moved * passes, seconds - first_fold
        else:
            seconds = each + first_fold + compute
            moved = 0 if strategy.residence == "resident" else weights.moved
            further = compute + (0.0 if strategy.residence == "resident" else each)
        other = further
        if network == ENCODER:
            moved, further = 0, 0.0  # the features of a request's prompts are kept
        return NetworkPlacement(
            network=network,
            strategy=strategy,
            stored=_stored(self._checkpoint.denoiser_source if network == DENOISER else source),
            weight_bytes=weights.base + layers,
            working_bytes=max(run.peak_bytes, loading),
            kept_bytes=kept,
            host_bytes=0
            if on_cpu
            else min(REMAP_BYTES, weights.moved) + 2 * weights.layer + weights.unpacking,
            moved_bytes=moved,
            seconds=seconds,
            further_seconds=further,
            other_seconds=other,
        )


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


def _own_bytes(owner: nn.Module, work: Work) -> int:
    """Bytes of a module's own tensors; of a table in the file the rows that are looked up."""
    tensors = [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]
    total = sum(tensor.nbytes for tensor in tensors)
    if isinstance(owner, EmbeddingRows):
        return min(total, (PREFIX_LENGTH + work.text_tokens) * _PAGES_OF_A_ROW)
    return total


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
