"""Banks of experts as others keep them, put into the published form.

Others have matrices [E, out, in] and gates apart from ups, or one after the other; published, gate
and up alternate row by row, and plain matrices lie [E, in, out]. Four-bit blocks keep their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights.header import DTYPES
from petzval.weights.source import DerivedTensor, Source, joined, packing_of

Mxfp4Parts = Callable[[str], tuple[Tensor, Tensor]]
"""Key of a bank → its blocks [E, out, in / 32, 16] and exponents [E, out, in / 32]."""


def published_experts(
    source: Source,
    owner: str,
    gate_up: Sequence[str],
    down: str,
    *,
    parts: Mxfp4Parts | None = None,
) -> list[DerivedTensor]:
    """The experts of one layer.

    Args:
        source: with the banks as matrices [E, out, in].
        owner: published name of the experts.
        gate_up: names of the banks of gates and of ups, or of the one that holds both halves,
            without `.weight` and `.bias`.
        down: of the other bank.
        parts: reads a bank's four-bit blocks, which then stay; None decodes what is quantised, to
            bfloat16.

    Raises:
        CheckpointError: a piece is missing, or does not fit its other half.
    """
    tensors: list[DerivedTensor] = []
    for name, pieces in (("gate_up_proj", gate_up), ("down_proj", [down])):
        for piece in pieces:
            for parameter in ("weight", "bias"):
                if f"{piece}.{parameter}" not in source:
                    raise CheckpointError(
                        f"{source.files[0]}: key '{piece}.{parameter}' is missing",
                        "download or convert the file again",
                    )
        order = _alternating if name == "gate_up_proj" else _same
        keys = [f"{piece}.weight" for piece in pieces]
        tensors += _bank(source, f"{owner}.{name}", keys, order, parts)
        biases = [f"{piece}.bias" for piece in pieces]
        shapes = [source.infos[key].shape for key in biases]
        if len(shapes[0]) != 2 or shapes[0] != shapes[-1]:
            raise _unfit(source, biases[0])
        shape = (shapes[0][0], shapes[0][1] * len(pieces))
        tensors.append(joined(source, f"{owner}.{name}_bias", biases, shape, order))
    return tensors


def _bank(
    source: Source,
    name: str,
    keys: list[str],
    order: Callable[[list[Tensor]], Tensor],
    parts: Mxfp4Parts | None,
) -> list[DerivedTensor]:
    shapes = [source.infos[key].shape for key in keys]
    if any(len(shape) != 3 or shape != shapes[0] for shape in shapes):
        raise _unfit(source, keys[0])
    experts, rows, columns = shapes[0]
    rows *= len(keys)
    if parts is None:
        first = source.infos[keys[0]]
        dtype = "BF16" if packing_of(first) else first.dtype  # plain numbers keep their type
        number = DTYPES[dtype]
        whole = joined(
            source,
            name,
            keys,
            (experts, columns, rows),
            lambda banks: order(banks).transpose(1, 2).to(number),
            dtype,
        )
        return [whole]
    read = parts

    def part(index: int) -> Callable[[], Tensor]:
        return lambda: order([read(key)[index] for key in keys])

    size = sum(source.infos[key].num_bytes for key in keys)
    blocks = DerivedTensor(
        key=f"{name}_blocks",
        file=source.files[0],
        shape=(experts, rows, columns // 32, 16),
        dtype="U8",
        num_bytes=size // 17 * 16,
        load=part(0),
        packing="MXFP4",
    )
    scales = replace(
        blocks, key=f"{name}_scales", shape=blocks.shape[:3], num_bytes=size // 17, load=part(1)
    )
    return [blocks, scales]


def _alternating(parts: list[Tensor]) -> Tensor:
    """Gates and ups (two tensors, or the halves of one) → gate 0, up 0, gate 1, up 1 …, by rows."""
    gates, ups = parts if len(parts) == 2 else parts[0].chunk(2, dim=1)
    return torch.stack((gates, ups), dim=2).flatten(1, 2)


def _same(parts: list[Tensor]) -> Tensor:
    return parts[0]


def _unfit(source: Source, key: str) -> CheckpointError:
    return CheckpointError(
        f"{source.files[0]}: key {key!r} has shape {list(source.infos[key].shape)}, which does not "
        "fit a bank of experts or its other half"
    )
