"""A denoiser as a GGUF file, through the format's own library; tensor by tensor, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from petzval.errors import CheckpointError, MissingExtraError
from petzval.weights.writing import replacing_file

ARCHITECTURE = "lens"
"""What the file calls its network; programs that read denoisers go by the names of the tensors."""

_BLOCK = 32


def write_gguf(
    file: Path,
    state: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    quantised: Collection[str],
    settings: Mapping[str, str],
) -> None:
    """One GGUF file: Q8_0 where asked and possible, vectors in float32, the rest in bfloat16.

    A matrix whose rows are no multiple of 32 cannot be Q8_0 and stays bfloat16.

    Args:
        file: where to; replaced when all is written.
        state: shapes of the tensors, on any device.
        read: gives the numbers of a key.
        quantised: keys that become Q8_0.
        settings: texts for the header.

    Raises:
        MissingExtraError: the package gguf is not installed.
        CheckpointError: a number that is not finite.
        OSError: the disk is full, or refuses to be written to.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    types = gguf.GGMLQuantizationType
    kinds: dict[str, Any] = {}
    for key, tensor in state.items():
        fits = tensor.dim() == 2 and tensor.shape[-1] % _BLOCK == 0
        kinds[key] = types.Q8_0 if fits and key in quantised else types.BF16
        if tensor.dim() < 2:
            kinds[key] = types.F32
    with replacing_file(file) as partial:
        writer = gguf.GGUFWriter(partial, ARCHITECTURE)
        try:
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for name, text in settings.items():
                writer.add_string(name, text)
            for key, tensor in state.items():
                shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape) or (1,), kinds[key])
                writer.add_tensor_info(
                    key, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kinds[key]
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key in state:
                values = read(key).float()
                if not bool(torch.isfinite(values).all()):
                    raise CheckpointError(f"{file}: key {key!r} holds a number that is not finite")
                packed = gguf.quantize(
                    values.reshape(tuple(values.shape) or (1,)).numpy(), kinds[key]
                )
                _append(writer, np.ascontiguousarray(packed).view(np.uint8))
        finally:
            writer.close()


def _append(writer: Any, packed: UInt8[np.ndarray, "*shape"]) -> None:
    """The next tensor; where numpy says only how much of it was written, the system says why."""
    try:
        writer.write_tensor_data(packed)
    except OSError as error:
        if error.errno is None:
            stream = writer.fout[-1]
            stream.write(packed.data)
            stream.flush()
        raise
