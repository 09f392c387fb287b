"""Matrices that stay in the codes of their file: the decoded network bit for bit, and smaller."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.ggml import BLOCK_FORMATS, has_finite_scales
from petzval.kernels.matrix_codes import MatrixCodes, decode_matrix
from petzval.models.coded import CodedLinear, num_coded_values
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.weights.assembly import assemble
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.gguf_source import GgufSource
from petzval.weights.lora import read_lora
from petzval.weights.manifest import expected_tensors
from petzval.weights.published import published_json
from petzval.weights.source import stored_codes
from tests.support import TINY_CHECKPOINT
from tests.weights.formats import (
    gguf_denoiser,
    is_matrix,
    mxfp8,
    nvfp4,
    older_scaled_fp8,
    plain_fp8,
    quantised_denoiser,
    saved,
    scaled_fp8,
    settings,
    stored,
    write_gguf,
)
from tests.weights.support import velocity_of


def _in_rows(layer: str, weight: Tensor) -> dict[str, Tensor]:
    """Scaled float8 with a scale for each row."""
    scale = weight.float().abs().amax(dim=1) / 448
    codes = (weight.float() / scale[:, None]).to(torch.float8_e4m3fn)
    return {f"{layer}.weight": codes, f"{layer}.weight_scale": scale}


def _e5m2(layer: str, weight: Tensor) -> dict[str, Tensor]:
    return {f"{layer}.weight": weight.to(torch.float8_e5m2)}


def _apart(file: Path) -> Path:
    """Query, key and value in matrices of their own, each with its own scale."""
    state: dict[str, Tensor] = {}
    names = {
        "img_qkv": ("to_q", "to_k", "to_v"),
        "txt_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    }
    for key, tensor in stored("denoiser").items():
        owner, _, parameter = key.rpartition(".")
        fused = owner.rpartition(".")[2]
        if fused not in names:
            state[key] = tensor
            continue
        for name, third in zip(names[fused], tensor.chunk(3), strict=True):
            layer = owner.replace(fused, name)
            if parameter == "weight":
                state |= scaled_fp8(layer, third)
            else:
                state[f"{layer}.{parameter}"] = third
    return saved(file, state, settings("denoiser"))


def _comfyui(pack: Callable[[str, Tensor], dict[str, Tensor]]) -> Callable[[Path], Path]:
    return lambda file: saved(file, quantised_denoiser(pack), settings("denoiser"))


FILES: dict[str, Callable[[Path], Path]] = {
    "scaled_fp8": _comfyui(scaled_fp8),
    "older_scaled_fp8": _comfyui(older_scaled_fp8),
    "fp8_in_rows": _comfyui(_in_rows),
    "plain_fp8": _comfyui(plain_fp8),
    "plain_e5m2": _comfyui(_e5m2),
    "mxfp8": _comfyui(mxfp8),
    "nvfp4": _comfyui(nvfp4),
    "query_key_value_apart": _apart,
    **{
        kind: lambda file, kind=kind: gguf_denoiser(file, kind) for kind in ("Q8_0", "Q5_1", "Q4_0")
    },
}


def _opened(file: Path) -> Checkpoint:
    return assemble(file, TINY_CHECKPOINT, TINY_CHECKPOINT)


def _bytes(model: MMDiT) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(FILES))
def test_the_velocity_is_the_decoded_one_bit_for_bit(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    checkpoint = _opened(FILES[name](tmp_path / "denoiser"))
    decoded = checkpoint.load_denoiser(dtype)
    coded = checkpoint.load_denoiser(dtype, coded=True)
    kept = {key for key, each in coded.named_modules() if isinstance(each, CodedLinear)}
    assert kept
    for layer in kept:
        plain, own = decoded.get_submodule(layer), coded.get_submodule(layer)
        assert isinstance(own, CodedLinear)
        assert torch.equal(own.decoded(dtype), plain.get_parameter("weight")), layer
    assert torch.equal(velocity_of(coded), velocity_of(decoded))
    assert _bytes(coded) < _bytes(decoded)
    assert not any("_mod." in layer for layer in kept)
    assert num_coded_values(coded) == sum(
        decoded.get_submodule(layer).get_parameter("weight").numel() for layer in kept
    )
    whole = not name.startswith(("Q", "query"))  # rows of 341 do not fit GGUF's blocks
    assert len(kept) == (10 if whole else 8 if name.startswith("Q") else 2) * len(
        decoded.transformer_blocks
    )


@pytest.mark.parametrize("kind", sorted(BLOCK_FORMATS))
def test_every_block_format_decodes_as_its_file_is_read(tmp_path: Path, kind: str) -> None:
    form = BLOCK_FORMATS[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 2, form.num_bytes), dtype=np.uint8)
    if form.halves is None:
        raw[..., 0] = 120
    else:
        raw[..., slice(*form.halves)] &= 0x3F  # no infinities among float16 scales
    file = write_gguf(tmp_path / "m.gguf", {"matrix": (raw.reshape(6, -1), kind)})
    source = GgufSource.open(file)
    [codes] = stored_codes(source, "matrix")
    [blocks] = [part.load() for part in codes.tensors]
    assert blocks.nbytes == raw.nbytes
    assert torch.equal(decode_matrix(codes.form, [blocks]), source.read("matrix"))


@pytest.mark.parametrize("kind", sorted(BLOCK_FORMATS))
def test_scales_that_are_no_numbers_are_found(kind: str) -> None:
    form = BLOCK_FORMATS[kind]
    raw = torch.zeros((3, form.num_bytes), dtype=torch.uint8)
    raw[:, : form.num_bytes // 2] = 1
    assert has_finite_scales(raw, form)
    raw[1, 1:] = 0x77
    raw[1, 0 if form.halves is None else form.halves[1] - 1] = 0xFF
    assert not has_finite_scales(raw, form)


def test_a_damaged_scale_is_refused_by_name(tmp_path: Path) -> None:
    state = quantised_denoiser(mxfp8)
    key = "transformer_blocks.1.img_mlp.w2.weight_scale"
    state[key] = state[key].clone()
    state[key].view(torch.uint8)[0, 0] = 255
    checkpoint = _opened(saved(tmp_path / "denoiser", state, settings("denoiser")))
    with pytest.raises(CheckpointError, match="img_mlp.w2.weight_scale' holds scales that are no"):
        checkpoint.load_denoiser(coded=True)


def test_what_a_lora_changes_is_decoded_and_nothing_else(tmp_path: Path) -> None:
    layer = "transformer_blocks.1.attn.img_qkv"
    generator = torch.Generator().manual_seed(0)
    halves = {
        f"transformer.{layer}.lora_{name}.weight": torch.randn(shape, generator=generator)
        for name, shape in (("A", (4, 128)), ("B", (384, 4)))
    }
    save_file(halves, tmp_path / "style.safetensors")
    checkpoint = _opened(FILES["scaled_fp8"](tmp_path / "denoiser"))
    lora = read_lora(tmp_path / "style.safetensors", checkpoint.denoiser_config)
    expected = checkpoint.load_denoiser(torch.float32, loras=[(lora, 0.7)])
    coded = checkpoint.load_denoiser(torch.float32, loras=[(lora, 0.7)], coded=True)
    assert isinstance(coded.get_submodule(layer), torch.nn.Linear)
    assert isinstance(coded.get_submodule(layer.replace("img", "txt")), CodedLinear)
    assert torch.equal(velocity_of(coded), velocity_of(expected))


def test_a_plain_file_is_left_as_it_is() -> None:
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    coded = checkpoint.load_denoiser(coded=True)
    assert not any(isinstance(each, CodedLinear) for each in coded.modules())


def test_pieces_have_to_fit() -> None:
    piece = MatrixCodes(kind="Q8_0", shape=(4, 32), parts=(("blocks", (4, 34), torch.uint8),))
    with pytest.raises(ValueError, match="other widths"):
        CodedLinear(64, 4, bias=False, pieces=[piece])
    with pytest.raises(ValueError, match="other heights"):
        CodedLinear(32, 5, bias=False, pieces=[piece])


# ── resident size ─────────────────────────────────────────────────────────────────────────────────

WIDE = 768
PROGRAM = """
import json, re, sys
import torch
torch.set_num_threads(1)
from petzval.weights.checkpoint import materialise
from petzval.weights.component import open_component
from petzval.weights.kept_codes import keep_codes
from petzval.weights.manifest import build_on_meta

def status(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s*(\\d+) kB", status.read())[1]) * 1024

def run(file, coded):
    component = open_component(file, "denoiser")
    model = build_on_meta(component.config)
    source = keep_codes(model, component.source) if coded else component.source
    materialise(model, source, torch.bfloat16, "cpu")
    config = model.config
    features = [torch.ones(1, 5, config.enc_hidden_dim)] * len(config.selected_layer_index)
    with torch.no_grad():
        out = model.velocity(torch.ones(1, 12, config.in_channels), features, torch.ones(1), (3, 4))
    return model, out

run(sys.argv[1], True)
before = status("VmRSS")
model, out = run(sys.argv[2], sys.argv[3] == "coded")
print(json.dumps({
    "grown": status("VmRSS") - before,
    "sum": float(out.double().sum()),
    "held": sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["scaled_fp8", "nvfp4"])
def test_a_process_holds_what_the_file_does(tmp_path: Path, name: str) -> None:
    """Resident size with the network in place and used once, in processes of their own."""
    config = dataclasses.replace(
        Checkpoint.open(TINY_CHECKPOINT).denoiser_config,
        num_layers=4,
        num_attention_heads=WIDE // 64,
        attention_head_dim=64,
        axes_dims_rope=(8, 28, 28),
    )
    small = FILES[name](tmp_path / "small")
    large = _random_denoiser(tmp_path / "large", config, nvfp4 if name == "nvfp4" else scaled_fp8)
    found: dict[str, dict[str, float]] = {}
    # What is held, not what malloc has kept: blocks above 64 KiB are pages of their own, and go.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    for way in ("coded", "decoded"):
        command = [sys.executable, "-c", PROGRAM, str(small), str(large), way]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, env=environment
        )
        assert run.returncode == 0, run.stderr
        found[way] = json.loads(run.stdout)
    assert found["coded"]["sum"] == found["decoded"]["sum"]
    saving = found["decoded"]["held"] - found["coded"]["held"]
    matrices = 2 * 4 * WIDE * (8 * WIDE + 6 * int(WIDE / 3 * 8))
    assert saving > {"scaled_fp8": 0.49, "nvfp4": 0.7}[name] * matrices
    measured = found["decoded"]["grown"] - found["coded"]["grown"]
    assert measured > 0.8 * saving, (found, saving)


def _random_denoiser(
    file: Path, config: MMDiTConfig, pack: Callable[[str, Tensor], dict[str, Tensor]]
) -> Path:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for key, wanted in expected_tensors(config).items():
        values = torch.randn(wanted.shape, generator=generator).mul_(0.02).bfloat16()
        if is_matrix(key):
            state |= pack(key.removesuffix(".weight"), values)
        else:
            state[key] = values
    return saved(file, state, {"petzval.config": json.dumps(published_json(config))})
