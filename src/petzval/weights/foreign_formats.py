"""Formats that are not read, named for what they are: nobody should have to search for a fault.

Each has tensors beside a layer's weight that no other has. A file with them could only be refused
as one with wrong shapes and unknown keys, which it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from petzval.errors import CheckpointError
from petzval.weights.source import Source

WAY_OUT = (
    "read are float32, bfloat16, float16, ComfyUI's fp8, int8, MXFP8 and NVFP4, GGUF, SDNQ's "
    "integers, MLX's integers and MXFP4; `petzval pull` lists Lens in these"
)

NO_SETTINGS = "put the config.json or quantization_config.json of its folder beside it"
"""What SDNQ's layers are read with."""

_MARKS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".qweight", ".g_idx"), "GPTQ"),
    ((".qweight", ".wscales"), "SVDQuant, as nunchaku reads it"),
    ((".qweight", ".qzeros"), "AWQ"),
    ((".quant_state.bitsandbytes__nf4",), "bitsandbytes' NF4"),
    ((".quant_state.bitsandbytes__fp4",), "bitsandbytes' FP4"),
    ((".SCB",), "bitsandbytes' 8-bit integers"),
    ((".weight._data", ".weight._scale"), "optimum-quanto"),
    (("_weight_qdata",), "torchao"),
    ((".weight", ".scale", ".zero_point"), "SDNQ"),
    ((".weight", ".scale", ".svd_up"), "SDNQ"),
)
"""Ends of names that all occur → the format."""

_BESIDE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (".scales", ("U32",), "integers of MLX"),
    (".scale", ("U8", "I8"), "SDNQ"),
)
"""End of a name whose layer has a `.weight` of one of these types → the format."""

_METHODS = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "gptq": "GPTQ",
    "modelopt": "NVIDIA's ModelOpt",
    "quanto": "optimum-quanto",
    "sdnq_training": "SDNQ's state of training",
    "torchao": "torchao",
}
"""`quant_method` of a config.json → how the format is called."""


def is_mlx_layer(source: Source, layer: str) -> bool:
    """Whether a layer's matrix, or bank of matrices, lies in MLX's words, with scales beside it."""
    info = source.infos.get(f"{layer}.weight")
    if info is None or f"{layer}.scales" not in source:
        return False
    return info.dtype == "U32" and len(info.shape) in (2, 3)


def foreign_format(source: Source, *, but_mlx: bool = False) -> str | None:
    """What a component's weights are packed in, where that is not read here.

    Args:
        source: as the file has it.
        but_mlx: matrices in MLX's words are read, as they are of a denoiser and a text encoder.
    """
    for ends, name in _MARKS:
        if all(any(key.endswith(end) for key in source) for end in ends):
            return name
    for end, types, name in _BESIDE:
        for key in (each for each in source if each.endswith(end)):
            layer = key.removesuffix(end)
            info = source.infos.get(f"{layer}.weight")
            is_read = but_mlx and is_mlx_layer(source, layer)
            if info is not None and info.dtype in types and not is_read:
                return name
    return None


def refuse_foreign(source: Source, path: Path, *, but_mlx: bool = False) -> None:
    """Refuse weights in a format that is not read; see `foreign_format`.

    Raises:
        CheckpointError: naming file and format, and what there is instead.
    """
    name = foreign_format(source, but_mlx=but_mlx)
    if name == "SDNQ":
        raise CheckpointError(
            f"{path}: its weights are stored as SDNQ, without the settings that tell how",
            NO_SETTINGS,
        )
    if name is not None:
        raise CheckpointError(
            f"{path}: its weights are stored as {name}, which is not read", WAY_OUT
        )


def refuse_foreign_settings(values: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that says so itself.

    Raises:
        CheckpointError: as `refuse_foreign`.
    """
    said: Any = values.get("quantization_config")
    if said and "mlx_format" not in values:
        method: Any = (
            cast("dict[str, Any]", said).get("quant_method") if isinstance(said, dict) else said
        )
        if method == "sdnq":
            return
        known = _METHODS.get(str(method), f"{method!r:.40}")
        raise CheckpointError(
            f"{where}: the weights are stored as {known}, which is not read", WAY_OUT
        )
