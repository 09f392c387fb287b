"""SD.Next's quantised layers: the library's own numbers, whole folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import CheckpointError, ConfigError
from petzval.kernels.matrix_codes import decode_matrix
from petzval.models.coded import CodedLinear
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import open_component
from petzval.weights.foreign_formats import NO_SETTINGS, WAY_OUT
from petzval.weights.sdnq_quant import unpacked_sdnq
from petzval.weights.sdnq_settings import SdnqSettings, is_named
from petzval.weights.source import stored_codes
from petzval.weights.tensors import TensorSource
from petzval.weights.verify import verify_checkpoint
from tests.support import GOLDENS
from tests.weights.formats import MATRICES, quantised_denoiser, saved, sdnq_uint4
from tests.weights.formats import SDNQ_SETTINGS as SETTINGS
from tests.weights.support import copy_checkpoint, edit_json, velocity_of

FILES = [GOLDENS.parent / "formats" / f"{name}.safetensors" for name in ("sdnq", "sdnq_matmul")]
RECORDED = load_file(FILES[0]) | load_file(FILES[1])
CASES = sorted({key.partition(".")[0] for key in RECORDED})
LAYER = "transformer_blocks.0.attn.img_qkv"


def settings_of(case: str) -> dict[str, Any]:
    metadata: dict[str, str] = {}
    for path in FILES:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            metadata |= file.metadata() or {}
    return json.loads(metadata[case])["settings"] | {"sdnq_version": metadata["sdnq"]}


def parts_of(case: str) -> dict[str, Tensor]:
    start = f"{case}."
    found = {k.removeprefix(start): v for k, v in RECORDED.items() if k.startswith(start)}
    return {name: part for name, part in found.items() if name != "decoded"}


def decoded(tmp_path: Path, parts: dict[str, Tensor], settings: dict[str, Any]) -> Tensor:
    file = saved(tmp_path / "layer", {f"block.0.{name}": part for name, part in parts.items()})
    source = unpacked_sdnq(TensorSource.open(file), SdnqSettings(values=settings, where="here"))
    assert set(source) == {"block.0.weight"}
    weight = source.read("block.0.weight")
    for codes in stored_codes(source, "block.0.weight"):
        assert torch.equal(
            decode_matrix(codes.form, [each.load() for each in codes.tensors]), weight
        )
        assert [tuple(each.load().shape) for each in codes.tensors] == [
            p[1] for p in codes.form.parts
        ]
        assert not any(dtype.is_floating_point for _, _, dtype in codes.form.parts)
    assert (tuple(weight.shape), weight.dtype) == (
        source.infos["block.0.weight"].shape,
        torch.float32,
    )
    return weight


@pytest.mark.parametrize("case", CASES)
def test_the_librarys_own_numbers(tmp_path: Path, case: str) -> None:
    weight, expected = (
        decoded(tmp_path, parts_of(case), settings_of(case)),
        RECORDED[f"{case}.decoded"],
    )
    if any(word in case for word in ("svd", "rank", "hadamard")):  # sums, in any order
        assert torch.allclose(weight, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    else:
        assert torch.equal(weight, expected)


def test_tables_tell_which_layers_differ() -> None:
    values = {
        "weights_dtype": "uint4",
        "modules_dtype_dict": {"minimum_6bit": ["to_out"], "int5": ["block.1.*"], "fp8": [".head"]},
        "modules_quant_config": {"w1": {"weights_dtype": "int7", "dequantize_fp32": True}},
    }
    settings = SdnqSettings(values=values, where="here")
    numbers = {
        "block.0.attn": "uint4",
        "block.0.to_out.0": "int6",
        "block.1.attn": "int5",
        "block.0.w1": "int7",
        "head.proj": "float8_e4m3fn",
    }
    assert {name: settings.layer(name).number for name in numbers} == numbers
    assert settings.layer("block.0.w1").wide
    assert not is_named("block.10.attn.weight", ["block.1", "attn.weight"])


def folder_of(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    folder = copy_checkpoint(tmp_path)
    saved(folder / "transformer/diffusion_pytorch_model.safetensors", state)
    return folder


def test_a_published_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, quantised_denoiser(sdnq_uint4))
    with pytest.raises(CheckpointError, match="SDNQ, without the settings") as caught:
        Checkpoint.open(folder)
    assert caught.value.hint == NO_SETTINGS
    (folder / "transformer/quantization_config.json").write_text(json.dumps(SETTINGS))
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.denoiser_source.infos[f"{LAYER}.weight"].num_bytes == 384 * 128
    network = checkpoint.load_denoiser(torch.bfloat16)
    part = open_component(folder / "transformer")
    kept = checkpoint.load_denoiser(torch.float32, coded=True)
    assert isinstance(kept.get_submodule(LAYER), CodedLinear)
    assert torch.equal(velocity_of(kept), velocity_of(checkpoint.load_denoiser(torch.float32)))
    assert part.packings == ("sdnq_uint4",)
    assert verify_checkpoint(folder, hashes=False).passed
    said = json.dumps(SETTINGS | {"dequantize_fp32": True})
    (folder / "transformer/quantization_config.json").write_text(said)
    assert Checkpoint.open(folder).identity != checkpoint.identity
    exact = load_file(GOLDENS / "checkpoint/transformer/diffusion_pytorch_model.safetensors")
    for key, weight in network.named_parameters():
        assert torch.equal(weight, part.source.read(key, torch.bfloat16))
        limit = 0.16 if key.removesuffix(".weight").endswith(MATRICES) else 0.005
        assert float((weight.float() - exact[key]).norm() / exact[key].norm()) < limit


def test_settings_decide_nothing_where_no_layer_is_sdnqs(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    identity = Checkpoint.open(folder).identity
    for text in (json.dumps(SETTINGS), "{", "[]"):
        (folder / "transformer/quantization_config.json").write_text(text)
        assert Checkpoint.open(folder).identity == identity


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, quantised_denoiser(sdnq_uint4))
    variants: list[tuple[dict[str, Any], str]] = [
        ({"weights_dtype": "float6_e3m2fn"}, "by SDNQ as 'float6_e3m2fn', which is not read"),
        ({"use_codebook": True}, "with codebooks"),
        ({"scale_dtype": "uint8"}, "with quantised scales"),
        ({"use_hadamard": True, "sdnq_version": "0.1.9"}, "rotated by a version before 0.2"),
    ]
    for change, name in variants:
        edit_json(folder / "transformer/config.json", quantization_config=SETTINGS | change)
        with pytest.raises(CheckpointError, match=name) as caught:
            Checkpoint.open(folder)
        assert caught.value.hint == WAY_OUT
    training = {"quant_method": "sdnq_training"}
    edit_json(folder / "transformer/config.json", quantization_config=training)
    with pytest.raises(CheckpointError, match="SDNQ's state of training"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("uint4", {"zero_point": None}, "but has no zero_point beside it"),
        ("int4", {"zero_point": torch.ones(32, 4, 1)}, "but has a zero_point beside it"),
        ("uint4", {"zero_point": torch.ones(32, 4)}, r"expected \[32, 4, 1\] as the scale"),
        ("int4", {"scale": torch.ones(32, 4)}, r"is \[32, 4\] beside \[1024\] of int4"),
        ("int4", {"scale": torch.ones(32, 5, 1)}, r"is \[32, 5, 1\] beside"),
        ("int4", {"scale": torch.ones(32, 0, 1)}, r"is \[32, 0, 1\] beside"),
        ("int4", {"scale": torch.ones(32, 4, 1).int()}, "is of I32, expected floats"),
        ("int3", {"weight": torch.zeros(7, dtype=torch.uint8)}, "of int3"),
        ("int8", {"weight": torch.zeros(32, 64)}, "has dtype F32, expected I8"),
        # As many scales as another shape of so many codes would have rows.
        ("int8_rows", {"weight": torch.zeros(64, 32, dtype=torch.int8)}, r"is \[32, 1\] beside"),
        ("int8_rows", {"scale": torch.ones(32)}, r"is \[32\] beside"),
        ("int8", {"scale": torch.ones(32, 8, 1)}, r"is \[32, 8, 1\] beside \[32, 4, 16\]"),
        ("int8_matmul", {"scale": torch.ones(1, 31)}, r"is \[1, 31\] beside"),
        ("int8_tensor", {"scale": torch.ones(2)}, r"is \[2\] beside"),
        ("int8_tensor", {"weight": torch.zeros(9, dtype=torch.int8)}, r"beside \[9\]"),
        ("int4", {"scale": torch.ones(1 << 20, 1)}, r"is \[1048576, 1\] beside"),
        ("uint4_svd", {"svd_down": None}, "one factor"),
        ("uint4_svd", {"svd_up": torch.ones(31, 8)}, "and its partner"),
        ("int4", {"scale": torch.full((32, 4, 1), torch.nan)}, "no numbers"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, case: str, change: dict[str, Tensor | None], message: str
) -> None:
    parts = {k: v for k, v in (parts_of(case) | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        decoded(tmp_path, parts, settings_of(case))


def test_one_scale_without_a_dimension(tmp_path: Path) -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).reshape(4, 4)
    parts = {"weight": codes, "scale": torch.tensor(0.5)}
    assert torch.equal(decoded(tmp_path, parts, {"weights_dtype": "int8"}), codes / 2)


def test_settings_that_lie(tmp_path: Path) -> None:
    rotated = {"weights_dtype": "int8", "use_hadamard": True, "sdnq_version": "0.2.8"}
    for group in (0, -1, "256", None, True):
        values = rotated | {"hadamard_group_size": group}
        with pytest.raises(ConfigError, match="settings of 'a' cannot be read"):
            SdnqSettings(values=values, where="here").layer("a")
    with pytest.raises(ConfigError, match="modules_to_not_use_matmul is no list"):
        SdnqSettings(values={"modules_to_not_use_matmul": "all"}, where="here").layer("a")
    table = {"int8": [f"{number:x}*" for number in range(10_001)]}
    with pytest.raises(ConfigError, match="names 10,001 modules; no model has so many"):
        SdnqSettings(values={"modules_dtype_dict": table}, where="here").layer("a")
    old = SdnqSettings(values=rotated | {"sdnq_version": f"{'9' * 5000}.1"}, where="here")
    assert old.layer("a").unread
    # 16 KB of codes that would ask for a matrix of a gigabyte.
    parts = {"weight": torch.zeros(1, 1 << 14, dtype=torch.int8), "scale": torch.ones(1, 1)}
    with pytest.raises(CheckpointError, match="rotated in groups of 16,384 columns"):
        decoded(tmp_path, parts, rotated | {"hadamard_group_size": 1 << 30})
