"""Weights that come and go: filled in, put out, or there only while their layer runs.

`fill` and `vacate` work on the network itself and leave its modules in place, so that a network
that is put out is truly gone from memory, whoever still holds it, and can be filled again.
`StreamedWeights` does both around each call of some layers, with the next layer on its way while
one computes.
"""

from __future__ import annotations

import os
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from petzval.kernels import backends
from petzval.weights.header import TensorInfo
from petzval.weights.lora import Lora
from petzval.weights.source import Source

Read: TypeAlias = Callable[[str, torch.dtype | None, torch.device | str | None], Tensor]
"""(a layer's own name of a tensor, type, place) → tensor; None for the reader's own."""


@runtime_checkable
class PreparesWeights(Protocol):
    """A layer that stores its weights in a form of its own: quantised, scaled, left in the file."""

    def prepared(self, read: Read) -> Mapping[str, Tensor]:
        """What it stores, by the names of its parameters and buffers."""
        ...


class WeightReader:
    """A component's numbers as they are to be used: in their type, in their place, LoRAs added.

    Args:
        source: the files.
        dtype: of parameters; None keeps what is stored.
        device: where they go.
        loras: each with its number; added to the weights as stored, in float32.
    """

    def __init__(
        self,
        source: Source,
        dtype: torch.dtype | None,
        device: torch.device | str = "cpu",
        *,
        loras: Sequence[tuple[Lora, float]] = (),
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.device = torch.device(device)
        self.loras = [(lora, number) for lora, number in loras if number != 0]

    def read(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """One parameter; type and place are the reader's own where none are given.

        Raises:
            CheckpointError: it cannot be read any more.
        """
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else device
        layer = key.removesuffix(".weight")
        used = [(lora, number) for lora, number in self.loras if layer in lora.changes]
        if layer == key or not used:
            return self.source.read(key, dtype, device)
        weight = self.source.read(key, torch.float32, device).clone()
        for lora, number in used:
            weight += number * lora.changes[layer].product(weight.device)
        return weight.to(self.source.infos[key].torch_dtype if dtype is None else dtype)

    def read_buffer(self, key: str) -> Tensor:
        """One buffer: integers as they are, floats as float32."""
        return self.source.read(key, torch.float32, self.device)

    def read_ahead(self, prefix: str) -> None:
        """Ask the system to have these tensors' pages ready; no memory of this process is used.

        Tensors that are made of others lie in no one place, and are left out.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        spans: dict[Path, list[tuple[int, int]]] = {}
        for key, info in self.source.infos.items():
            if key.startswith(prefix) and isinstance(info, TensorInfo):
                spans.setdefault(info.file, []).append((info.start, info.stop))
        for file, parts in spans.items():
            with suppress(OSError), file.open("rb") as opened:
                for start, stop in parts:
                    os.posix_fadvise(opened.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Let go of the files: pages that no tensor is mapped to any more are given back."""
        self.source.close()


def fill(
    module: nn.Module, reader: WeightReader, prefix: str = "", without: Collection[nn.Module] = ()
) -> None:
    """Give a network, or a part of it, its numbers.

    Args:
        module: whose tensors are on the meta device, or are to be replaced.
        reader: of its component.
        prefix: the module's own name there, with a dot at the end; empty for the whole.
        without: parts that are left alone.
    """
    for weight in _read(_owners(module, prefix, without), reader):
        weight.install()
    reader.close()


def vacate(module: nn.Module, without: Collection[nn.Module] = ()) -> None:
    """Put a network's numbers out; its shapes stay."""
    for _, owner in _owners(module, "", without):
        for key, weight in list(owner.named_parameters(recurse=False)):
            empty = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
            owner.register_parameter(key, empty)
        for key, buffer in list(owner.named_buffers(recurse=False)):
            owner.register_buffer(key, torch.empty_like(buffer, device="meta"))


class EmbeddingRows(nn.Module):
    """An embedding whose table stays in the file: only the rows that are asked for are read.

    Args:
        table: shape and stored type of the published one.
        dtype, device: of the rows.
    """

    weight: Tensor

    def __init__(
        self, table: tuple[int, ...], stored: torch.dtype, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._stored = stored
        self._dtype = dtype
        self._device = device
        self.register_buffer("weight", torch.empty(table, dtype=stored, device="meta"))

    def prepared(self, read: Read) -> Mapping[str, Tensor]:
        """The table, mapped."""
        return {"weight": read("weight", self._stored, "cpu")}

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids.cpu(), self.weight)
        return rows.to(device=self._device, dtype=self._dtype)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Weight:
    """A tensor that was read, and the place it is for."""

    owner: nn.Module
    key: str
    tensor: Tensor

    def install(self) -> None:
        """Put it there."""
        if self.key in dict(self.owner.named_buffers(recurse=False)):
            self.owner.register_buffer(self.key, self.tensor)
        else:
            weight = nn.Parameter(self.tensor, requires_grad=False)
            self.owner.register_parameter(self.key, weight)


def _owners(
    module: nn.Module, prefix: str, without: Collection[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold tensors, with the prefix of their names; `without` and theirs left out."""
    yield prefix, module
    for name, child in module.named_children():
        if not any(child is each for each in without):
            yield from _owners(child, f"{prefix}{name}.", without)


def _read(owners: Iterable[tuple[str, nn.Module]], reader: WeightReader) -> Iterator[_Weight]:
    """The tensors of modules, one by one as they are asked for."""
    for place, owner in owners:
        if isinstance(owner, PreparesWeights):

            def read(
                key: str,
                dtype: torch.dtype | None = None,
                device: torch.device | str | None = None,
                place: str = place,
            ) -> Tensor:
                return reader.read(place + key, dtype, device)

            for key, tensor in owner.prepared(read).items():
                yield _Weight(owner=owner, key=key, tensor=tensor)
            continue
        for key, _ in list(owner.named_parameters(recurse=False)):
            yield _Weight(owner=owner, key=key, tensor=reader.read(place + key))
        for key, _ in list(owner.named_buffers(recurse=False)):
            yield _Weight(owner=owner, key=key, tensor=reader.read_buffer(place + key))


class StreamedWeights:
    """Layers that run one behind the other, each with its weights only while it runs.

    On a device with streams the next layer is read, pinned and copied by a thread on a stream of
    its own while one computes: two layers are on the device at a time. Elsewhere one is, and the
    system reads the next one's pages ahead.

    Args:
        layers: (name with a dot at the end, layer) in the order of their calls, which may repeat.
        reader: of their component.
        without: parts of the layers that somebody else fills.
        kept: places of layers that somebody else has there for good.
        cyclic: after the last layer comes the first again, and is fetched early as well.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, nn.Module]],
        reader: WeightReader,
        *,
        without: Collection[nn.Module] = (),
        kept: Collection[int] = (),
        cyclic: bool = False,
    ) -> None:
        self._layers = tuple(layers)
        moving = [index for index in range(len(self._layers)) if index not in kept]
        behind = [*moving[1:], moving[0] if cyclic else None] if moving else []
        self._following = dict(zip(moving, behind, strict=True))
        self._reader = reader
        self._without = tuple(without)
        self._fetcher = None
        if "streams" not in backends.lacks(reader.device):
            self._fetcher = _Fetcher(reader, torch.Stream(reader.device))
        self._pending: dict[int, Future[_Fetched]] = {}
        self._visited: int | None = None
        for index in self._following:
            layer = self._layers[index][1]
            layer.register_forward_pre_hook(self._entrance(index))
            layer.register_forward_hook(self._exit(index), always_call=True)

    def release(self) -> None:
        """Put out what is there or on its way; what could not be read matters no more."""
        wait(self._pending.values())
        self._pending.clear()
        for index in self._following:
            vacate(self._layers[index][1], self._without)

    @contextmanager
    def visit(self, index: int) -> Generator[None]:
        """A layer's weights are there for all calls of it in the block of code: read once."""
        if index not in self._following:
            yield
            return
        self._visited = index
        try:
            self._bring(index)
            yield
        finally:
            self._visited = None
            self._put_out(index)

    def _entrance(self, index: int) -> Callable[..., None]:
        def enter(layer: nn.Module, arguments: Any) -> None:
            del layer, arguments
            if self._visited != index:
                self._bring(index)

        return enter

    def _exit(self, index: int) -> Callable[..., None]:
        def leave(layer: nn.Module, arguments: Any, output: Any) -> None:
            del layer, arguments, output
            if self._visited != index:
                self._put_out(index)

        return leave

    def _bring(self, index: int) -> None:
        name, layer = self._layers[index]
        following = self._following[index]
        if self._fetcher is None:
            fill(layer, self._reader, name, self._without)
            if following is not None:
                self._reader.read_ahead(self._layers[following][0])
            return
        fetching = self._fetch(index)
        del self._pending[index]  # or one that failed would fail for ever
        fetching.result().install()
        if following is not None:
            self._fetch(following)

    def _put_out(self, index: int) -> None:
        vacate(self._layers[index][1], self._without)
        if self._reader.device.type == "cpu":  # or the heap grows with every layer
            backends.trim_heap()

    def _fetch(self, index: int) -> Future[_Fetched]:
        assert self._fetcher is not None
        if index not in self._pending:
            name, layer = self._layers[index]
            owners = list(_owners(layer, name, self._without))
            self._pending[index] = self._fetcher.start(owners)
        return self._pending[index]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Fetched:
    """A layer's tensors on the device, once the copying stream has passed `ready`."""

    weights: Sequence[_Weight]
    ready: torch.Event | None = None

    def install(self) -> None:
        """Make the computing stream wait for them, and put them into their modules."""
        if self.ready is not None and self.weights:
            # Of the weights' own device: "cuda:1" draws while the current one is the first.
            stream = torch.accelerator.current_stream(self.weights[0].tensor.device)
            stream.wait_event(self.ready)
            for weight in self.weights:
                weight.tensor.record_stream(stream)  # memory of the other stream, used on this one
        for weight in self.weights:
            weight.install()


class _Fetcher:
    """A thread that reads layers into pinned memory and sends them on a stream of its own."""

    def __init__(self, reader: WeightReader, stream: torch.Stream | None) -> None:
        self._reader = reader
        self._host = WeightReader(reader.source, reader.dtype, "cpu", loras=reader.loras)
        self._stream = stream
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="petzval-weights")

    def start(self, owners: Sequence[tuple[str, nn.Module]]) -> Future[_Fetched]:
        """Begin with a layer; its modules are not touched before `install`."""
        return self._thread.submit(self._run, owners)

    @torch.no_grad()
    def _run(self, owners: Sequence[tuple[str, nn.Module]]) -> _Fetched:
        weights = list(_read(owners, self._host))
        self._host.close()
        if self._stream is None:
            return _Fetched(weights=weights)
        with self._stream:
            sent = [replace(each, tensor=self._send(each.tensor)) for each in weights]
            return _Fetched(weights=sent, ready=self._stream.record_event())

    def _send(self, tensor: Tensor) -> Tensor:
        """From pinned memory, which torch keeps until the copy is done and then uses again."""
        return tensor.pin_memory().to(self._reader.device, non_blocking=True)
