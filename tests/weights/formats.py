"""The tiny checkpoint's parts in every format, made by the formats' own libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.kernels.fp8 import encode_mxfp8, encode_scaled_fp8
from petzval.kernels.nvfp4 import encode_nvfp4
from petzval.weights.key_tables import ENCODER_GGUF, VAE_ORIGINAL, VAE_POINTWISE
from petzval.weights.mxfp4 import decode_experts
from tests.support import GOLDENS, TINY_CHECKPOINT

FILES = {
    "denoiser": "transformer/diffusion_pytorch_model.safetensors",
    "encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
CONFIGS = {"denoiser": "transformer", "encoder": "text_encoder", "vae": "vae"}
PACKED_ENCODER = GOLDENS / "text_encoder_mxfp4"

MATRICES = ("img_qkv", "txt_qkv", "to_out.0", "to_add_out", "w1", "w2", "w3")


def stored(kind: str) -> dict[str, Tensor]:
    """A part's tensors under their published names."""
    return load_file(TINY_CHECKPOINT / FILES[kind])


def settings(kind: str) -> dict[str, str]:
    """Metadata that says what shapes cannot: sizes of the tiny parts are not the published ones."""
    text = (TINY_CHECKPOINT / CONFIGS[kind] / "config.json").read_text(encoding="utf-8")
    return {"petzval.config": text}


def saved(
    file: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """A safetensors file."""
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(tensors, file, None if metadata is None else dict(metadata))
    return file


def mark(**said: Any) -> Tensor:
    """What ComfyUI writes beside a quantised layer."""
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def is_matrix(key: str) -> bool:
    """Whether quantised denoisers pack it."""
    return key.startswith("transformer_blocks.") and key.endswith(
        tuple(f".{name}.weight" for name in MATRICES)
    )


Pack = Callable[[str, Tensor], dict[str, Tensor]]


def scaled_fp8(layer: str, weight: Tensor) -> dict[str, Tensor]:
    codes, scale = encode_scaled_fp8(weight)
    return {
        f"{layer}.weight": codes,
        f"{layer}.weight_scale": scale,
        f"{layer}.input_scale": torch.ones(()),
        f"{layer}.comfy_quant": mark(format="float8_e4m3fn", full_precision_matrix_mult=True),
    }


def older_scaled_fp8(layer: str, weight: Tensor) -> dict[str, Tensor]:
    codes, scale = encode_scaled_fp8(weight)
    return {f"{layer}.weight": codes, f"{layer}.scale_weight": scale[None]}


def plain_fp8(layer: str, weight: Tensor) -> dict[str, Tensor]:
    return {f"{layer}.weight": weight.to(torch.float8_e4m3fn)}


def mxfp8(layer: str, weight: Tensor) -> dict[str, Tensor]:
    codes, exponents = encode_mxfp8(weight)
    return {
        f"{layer}.weight": codes,
        f"{layer}.weight_scale": exponents,
        f"{layer}.comfy_quant": mark(format="mxfp8"),
    }


def nvfp4(layer: str, weight: Tensor) -> dict[str, Tensor]:
    codes, tiles, factor = encode_nvfp4(weight)
    return {
        f"{layer}.weight": codes,
        f"{layer}.weight_scale": tiles,
        f"{layer}.weight_scale_2": factor,
        f"{layer}.comfy_quant": mark(format="nvfp4"),
    }


def sdnq_uint4(layer: str, weight: Tensor) -> dict[str, Tensor]:
    """SDNQ's uint4 in groups of 16, where they fit, two codes a byte, the first below."""
    weight = weight.float()
    grouped = weight if weight.shape[1] % 16 else weight.reshape(len(weight), -1, 16)
    least = grouped.amin(-1, keepdim=True)
    scale = (grouped.amax(-1, keepdim=True) - least) / 15
    codes = ((grouped - least) / scale).round().clamp(0, 15).to(torch.uint8).reshape(-1, 2)
    packed = codes[:, 0] | (codes[:, 1] << 4)
    return {f"{layer}.weight": packed, f"{layer}.scale": scale, f"{layer}.zero_point": least}


SDNQ_SETTINGS = {"quant_method": "sdnq", "weights_dtype": "uint4", "sdnq_version": "0.2.8"}


def unmarked(pack: Pack) -> Pack:
    """The same without the mark: types and names have to tell."""

    def packed(layer: str, weight: Tensor) -> dict[str, Tensor]:
        tensors = pack(layer, weight)
        return {key: value for key, value in tensors.items() if not key.endswith("comfy_quant")}

    return packed


def quantised_denoiser(pack: Pack, exact: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A denoiser, the tiny one or `exact`, its blocks' matrices packed, the rest in bfloat16."""
    state: dict[str, Tensor] = {}
    for key, tensor in (stored("denoiser") if exact is None else exact).items():
        if is_matrix(key):
            state |= pack(key.removesuffix(".weight"), tensor)
        else:
            state[key] = tensor.bfloat16()
    return state


def original_vae() -> dict[str, Tensor]:
    """The autoencoder under FLUX.2's own names."""
    state: dict[str, Tensor] = {}
    for key, tensor in stored("vae").items():
        name = VAE_ORIGINAL.to_theirs(key)
        assert name is not None
        state[name] = tensor[:, :, None, None] if key.endswith(VAE_POINTWISE) else tensor
    return state


def comfyui_encoder() -> dict[str, Tensor]:
    """The text encoder as ComfyUI's file has it: NVFP4 banks [E, out, in], the tokenizer inside."""
    state: dict[str, Tensor] = {}
    for key, tensor in stored("encoder").items():
        if key.endswith(("gate_up_proj", "down_proj")):
            parts = [nvfp4("", expert.T) for expert in tensor]
            for name in (".weight", ".weight_scale"):
                state[key + name] = torch.stack([part[name] for part in parts])
            state[f"{key}.weight_scale_2"] = torch.stack([p[".weight_scale_2"] for p in parts])
            state[f"{key}.comfy_quant"] = mark(format="nvfp4", num_experts=len(parts))
        elif key.endswith("_proj_bias"):
            state[f"{key.removesuffix('_bias')}.bias"] = tensor
        else:
            state[key] = tensor
    tokenizer = (TINY_CHECKPOINT / "tokenizer" / "tokenizer.json").read_bytes()
    state["tokenizer_json"] = torch.from_numpy(np.frombuffer(tokenizer, dtype=np.uint8).copy())
    return state


def openai_encoder() -> dict[str, Tensor]:
    """The packed text encoder in OpenAI's own form."""
    from petzval.weights.key_tables import ENCODER_OPENAI

    packed = load_file(PACKED_ENCODER / "model.safetensors")
    state: dict[str, Tensor] = {}
    for key, tensor in packed.items():
        if ".q_proj." in key:
            thirds = [
                packed[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")
            ]
            layer, parameter = key.split(".")[2], key.rpartition(".")[2]
            state[f"block.{layer}.attn.qkv.{parameter}"] = torch.cat(thirds)
        elif ".k_proj." not in key and ".v_proj." not in key:
            name = ENCODER_OPENAI.to_theirs(key)
            assert name is not None, key
            state[name] = tensor
    return state


def write_gguf(
    file: Path,
    tensors: Mapping[str, tuple[np.ndarray, str]],
    texts: Mapping[str, str] | None = None,
    numbers: Mapping[str, int | float] | None = None,
    architecture: str = "lens",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A GGUF file by the format's own library; values are quantised by it, raw uint8 is kept.

    `shapes` are those of tensors that were folded to fit, in the settings of ComfyUI-GGUF.
    """
    writer = gguf.GGUFWriter(file, architecture)
    for name, text in (texts or {}).items():
        writer.add_string(name, text)
    for name, number in (numbers or {}).items():
        (writer.add_uint32 if isinstance(number, int) else writer.add_float32)(name, number)  # pyright: ignore[reportArgumentType]
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (values, kind) in tensors.items():
        form = gguf.GGMLQuantizationType[kind]
        raw = values if values.dtype == np.uint8 else gguf.quantize(values, form)
        writer.add_tensor(name, raw, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_denoiser(file: Path, kind: str, prefix: str = "") -> Path:
    """The denoiser with every matrix that fits in one type, vectors in float32."""
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for key, tensor in stored("denoiser").items():
        fits = tensor.dim() == 2 and (kind in ("F16", "BF16") or tensor.shape[1] % 32 == 0)
        other = "F32" if tensor.dim() == 1 else "BF16"
        tensors[prefix + key] = (tensor.float().numpy(), kind if fits else other)
    return write_gguf(file, tensors, settings("denoiser"))


def mxfp4_bytes(blocks: Tensor, scales: Tensor) -> np.ndarray:
    """Published MXFP4 → ggml's blocks, by hand: the exponent, then value j below value j + 16."""
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    packed = codes[..., :16] | (codes[..., 16:] << 4)
    return torch.cat((scales[..., None], packed), dim=-1).flatten(-2).numpy()


def gguf_encoder(file: Path, kind: str, *, fused: bool = False) -> Path:
    """The packed text encoder as llama.cpp writes it: gates and ups apart, settings inside."""
    packed = load_file(PACKED_ENCODER / "model.safetensors")
    config = json.loads((PACKED_ENCODER / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for key, tensor in packed.items():
        name = ENCODER_GGUF.to_theirs(key)
        if name is not None:
            tensors[name] = (tensor.float().numpy(), "BF16" if tensor.dim() == 2 else "F32")
    for i in range(config["num_hidden_layers"]):
        owner = f"model.layers.{i}.mlp.experts"
        bias = packed[f"{owner}.gate_up_proj_bias"].float()
        gates, ups = bias[:, 0::2], bias[:, 1::2]
        banks = {"down": _bank(packed, f"{owner}.down_proj", kind)}
        whole = _bank(packed, f"{owner}.gate_up_proj", kind)
        if fused:
            banks["gate_up"] = np.concatenate((whole[:, 0::2], whole[:, 1::2]), axis=1)
            tensors[f"blk.{i}.ffn_gate_up_exps.bias"] = (torch.cat((gates, ups), 1).numpy(), "F32")
        else:
            banks |= {"gate": whole[:, 0::2], "up": whole[:, 1::2]}
            tensors[f"blk.{i}.ffn_gate_exps.bias"] = (gates.contiguous().numpy(), "F32")
            tensors[f"blk.{i}.ffn_up_exps.bias"] = (ups.contiguous().numpy(), "F32")
        for part, bank in banks.items():
            tensors[f"blk.{i}.ffn_{part}_exps.weight"] = (np.ascontiguousarray(bank), kind)
    numbers: dict[str, int | float] = {
        "gpt-oss.attention.sliding_window": config["sliding_window"],
        "gpt-oss.attention.layer_norm_rms_epsilon": 1e-5,
        "gpt-oss.expert_used_count": config["num_experts_per_tok"],
        "gpt-oss.rope.freq_base": 150000.0,
        "gpt-oss.rope.scaling.factor": 32.0,
        "gpt-oss.rope.scaling.original_context_length": 4096,
    }
    return write_gguf(file, tensors, numbers=numbers, architecture="gpt-oss")


def _bank(packed: Mapping[str, Tensor], name: str, kind: str) -> np.ndarray:
    """[E, out, in], or its bytes where it stays MXFP4."""
    blocks, scales = packed[f"{name}_blocks"], packed[f"{name}_scales"]
    if kind == "MXFP4":
        return mxfp4_bytes(blocks, scales)
    return decode_experts(blocks, scales, torch.float32).transpose(1, 2).contiguous().numpy()
