"""Which tensors an architecture has: key, shape and kind, from the networks themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from petzval.errors import CheckpointError
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.vae import Autoencoder
from petzval.weights.published import ComponentConfig
from petzval.weights.source import Source

Kind = Literal["float", "integer", "packed"]
"""float: any floating-point type. integer: any integer type. packed: bytes of 4-bit experts."""

_FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"})
_INTEGERS = frozenset({"U8", "I8", "I16", "I32", "I64"})
_ALLOWED: Mapping[Kind, frozenset[str]] = {
    "float": _FLOATS,
    "integer": _INTEGERS,
    "packed": frozenset({"U8"}),
}
_NUM_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedTensor:
    """What a checkpoint must hold under a key.

    Attributes:
        required: False for what is published with the encoder but not used for features (the
            final norm and the head).
    """

    shape: tuple[int, ...]
    kind: Kind
    required: bool = True


class _WithoutInitialisation(TorchFunctionMode):
    """Skips `torch.nn.init` while a network is built whose numbers will be replaced anyway.

    Random draws on the meta device would import torch's compiler, which takes two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build_on_meta(config: ComponentConfig, selected_layers: Sequence[int] = ()) -> nn.Module:
    """The network without numbers.

    Args:
        config: decides the class.
        selected_layers: text encoder only: build no layer behind the last of these; all if empty.
    """
    with torch.device("meta"), _WithoutInitialisation():
        if isinstance(config, MMDiTConfig):
            return MMDiT(config)
        if isinstance(config, GptOssConfig):
            layers = selected_layers or (config.num_hidden_layers - 1,)
            return GptOssEncoder(config, layers, build_all=not selected_layers)
        return Autoencoder(config)


def expected_tensors(config: ComponentConfig) -> dict[str, ExpectedTensor]:
    """Every key of a component in the published layout."""
    expected: dict[str, ExpectedTensor] = {}
    for key, tensor in build_on_meta(config).state_dict().items():
        kind: Kind = "float"
        if not tensor.dtype.is_floating_point:
            kind = "packed" if tensor.dtype == torch.uint8 else "integer"
        expected[key] = ExpectedTensor(shape=tuple(tensor.shape), kind=kind)
    if isinstance(config, GptOssConfig):
        unused = {
            "model.norm.weight": (config.hidden_size,),
            "lm_head.weight": (config.vocab_size, config.hidden_size),
        }
        for key, shape in unused.items():
            expected[key] = ExpectedTensor(shape=shape, kind="float", required=False)
    return expected


def find_problems(source: Source, expected: Mapping[str, ExpectedTensor]) -> list[str]:
    """What differs between files and architecture, one line each with file and key."""
    problems: list[str] = []
    home = source.files[0] if len(source.files) == 1 else source.files[0].parent
    for key, wanted in expected.items():
        info = source.infos.get(key)
        if info is None:
            if wanted.required:
                problems.append(f"{home}: key {key!r} is missing, expected {list(wanted.shape)}")
        elif info.shape != wanted.shape:
            problems.append(
                f"{info.file}: key {key!r} has shape {list(info.shape)}, "
                f"expected {list(wanted.shape)}"
            )
        elif info.dtype not in _ALLOWED[wanted.kind]:
            names = ", ".join(sorted(_ALLOWED[wanted.kind]))
            problems.append(
                f"{info.file}: key {key!r} has dtype {info.dtype}, expected one of {names}"
            )
    problems += [
        f"{info.file}: key {key!r} is unknown to this architecture"
        for key, info in source.infos.items()
        if key not in expected
    ]
    return problems


def refuse(problems: Sequence[str]) -> None:
    """Raise one error for all problems: the first three in full, the others counted.

    Raises:
        CheckpointError: there is at least one problem.
    """
    if not problems:
        return
    lines = list(problems[:_NUM_NAMED])
    if len(problems) > _NUM_NAMED:
        lines.append(f"and {len(problems) - _NUM_NAMED} more")
    raise CheckpointError(
        "; ".join(lines),
        "config.json and weights must come from the same checkpoint; "
        "`petzval verify` lists every difference",
    )
