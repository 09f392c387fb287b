"""Networks in the words of MLX: the denoiser of lens-mlx, GPT-OSS of mlx-lm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.models.experts import PACKINGS
from petzval.models.gpt_oss import GptOssConfig
from petzval.weights.checkpoint import Checkpoint, load_encoder
from petzval.weights.component import OpenComponent, open_component
from petzval.weights.convert import convert_component
from petzval.weights.foreign_formats import WAY_OUT
from petzval.weights.key_tables import DENOISER_MLX
from petzval.weights.source import packings
from petzval.weights.verify import verify_checkpoint
from tests.support import GOLDENS, TINY_CHECKPOINT
from tests.weights.formats import saved, stored
from tests.weights.support import copy_checkpoint, edit_json

LM_FILE = GOLDENS.parent / "formats" / "mlx_lm.safetensors"
LM = load_file(LM_FILE)
with safe_open(LM_FILE, framework="pt") as _file:  # pyright: ignore[reportUnknownVariableType]
    LM_CONFIGS: dict[str, str] = _file.metadata() or {}
CONFIG = json.loads((TINY_CHECKPOINT / "transformer/config.json").read_text(encoding="utf-8"))
LAYER = "transformer_blocks.0.attn.img_qkv"


def packed(weight: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    """MLX's integers by hand: the smallest of a group is its bias."""
    grouped = weight.reshape(len(weight), -1, group)
    biases = grouped.amin(-1)
    scales = (grouped.amax(-1) - biases) / ((1 << bits) - 1)
    codes = ((grouped - biases[..., None]) / scales[..., None]).round().long().flatten(1)
    fields = codes.reshape(len(weight), -1, 32 // bits) << torch.arange(0, 32, bits)
    words = fields.sum(-1).to(torch.uint32)
    return {"weight": words, "scales": scales.bfloat16(), "biases": biases.bfloat16()}


def mlx_state(bits: int | None, group: int = 64) -> dict[str, Tensor]:
    """The tiny denoiser; matrices of blocks that are cut into whole groups are packed."""
    state: dict[str, Tensor] = {}
    for published, tensor in stored("denoiser").items():
        key = DENOISER_MLX.to_theirs(published) or published
        fits = published.startswith("transformer_blocks") and tensor.shape[-1] % group == 0
        if bits is not None and fits and tensor.dim() == 2:
            layer = key.removesuffix(".weight")
            parts = packed(tensor, bits, group)
            state |= {f"{layer}.{name}": part for name, part in parts.items()}
        else:
            state[key] = tensor.bfloat16()
    return state


def opened(folder: Path, state: dict[str, Tensor], **settings: object) -> OpenComponent:
    """The folder that lens-mlx writes, with a config.json of its own."""
    folder.mkdir()
    text = json.dumps(CONFIG | {"mlx_format": True} | settings)
    (folder / "config.json").write_text(text, encoding="utf-8")
    saved(folder / "model.safetensors", state)
    return open_component(folder)


def test_plain_numbers(tmp_path: Path) -> None:
    state = mlx_state(None)
    assert "transformer_blocks.0.img_mod.weight" in state
    assert not any("_mod.1." in key for key in state)
    component = opened(tmp_path / "Lens-Turbo-3.8B-bf16", state)
    assert (component.kind, component.packings) == ("denoiser", ())
    assert set(component.source) == set(stored("denoiser"))
    for key, value in stored("denoiser").items():
        assert torch.equal(component.source.read(key), value.bfloat16())


@pytest.mark.parametrize(
    ("bits", "group", "limit"), [(8, 64, 0.008), (4, 64, 0.12), (8, 32, 0.008), (4, 128, 0.14)]
)
def test_integers_are_within_their_error(
    tmp_path: Path, bits: int, group: int, limit: float
) -> None:
    settings = {"quantization": {"bits": bits, "group_size": group, "keep_hi_precision": []}}
    component = opened(tmp_path / "mlx", mlx_state(bits, group), **settings)
    assert component.packings == (f"mlx_q{bits}",)
    assert set(component.source) == set(stored("denoiser"))
    for key, value in stored("denoiser").items():
        error = float((component.source.read(key).float() - value).norm() / value.norm())
        assert error < limit, key
    # Where no config.json tells the length of a group, it is MLX's own.
    if group == 64:
        loose = saved(tmp_path / "loose", mlx_state(bits), {"petzval.config": json.dumps(CONFIG)})
        again = open_component(loose)
        assert torch.equal(
            again.source.read(f"{LAYER}.weight"), component.source.read(f"{LAYER}.weight")
        )
    out = tmp_path / "out.safetensors"
    convert_component(component, out, "comfyui")
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.bfloat16}


def test_the_librarys_own_words_are_read(tmp_path: Path) -> None:
    recorded = load_file(GOLDENS.parent / "formats" / "mlx.safetensors")
    for case, bits in (("bfloat16.4.64", 4), ("float32.8.64", 8)):
        state = mlx_state(None)
        name = "transformer_blocks.0.attn.to_out.0"
        rows = [recorded[f"{case}.{part}"] for part in ("words", "scales", "biases")]
        # Six rows of 256: as many rows of 128 as the layer has are made of them.
        tiled = [part.reshape(12, -1).repeat(11, 1)[:128] for part in rows]
        state |= dict(
            zip([f"{name}.{p}" for p in ("weight", "scales", "biases")], tiled, strict=True)
        )
        component = opened(tmp_path / case, state)
        expected = recorded[f"{case}.decoded"].reshape(12, 128).repeat(11, 1)[:128]
        assert component.packings == (f"mlx_q{bits}",)
        assert torch.allclose(component.source.read(f"{name}.weight"), expected, atol=1e-5)


def test_inside_a_published_folder(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    place = folder / "transformer/diffusion_pytorch_model.safetensors"
    saved(place, mlx_state(4))
    edit_json(folder / "transformer/config.json", quantization={"bits": 4, "group_size": 64})
    checkpoint, alone = Checkpoint.open(folder), open_component(folder / "transformer")
    assert packings(checkpoint.denoiser_source) == ("mlx_q4",)
    assert set(checkpoint.denoiser_source) == set(stored("denoiser"))
    weight = checkpoint.load_denoiser().get_submodule(LAYER).get_parameter("weight")
    assert torch.equal(weight, alone.source.read(f"{LAYER}.weight"))
    assert verify_checkpoint(folder).passed


def test_damage_is_named(tmp_path: Path) -> None:
    good = mlx_state(4)
    words, scales = good[f"{LAYER}.weight"], good[f"{LAYER}.scales"]
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({"scales": scales[:-1].clone()}, "scales' is .*, expected 384 rows"),
        ({"biases": scales[:, :1].clone()}, "biases' is "),
        ({"scales": scales.to(torch.int32)}, "of I32"),
        ({"weight": words[:, :-1].clone()}, "has 15 words a row for 2 groups of 64"),
        ({"weight": words[:, :12].clone()}, "are codes of 3 bits, not of 4"),
        ({"weight": words[:, :14].clone()}, "read are codes of 2, 3, 4, 5, 6, 8 bits"),
        ({"scales": scales.view(torch.uint8)}, "of U8"),
    ]
    settings = {"quantization": {"bits": 4, "group_size": 64}}
    for i, (change, message) in enumerate(wrong):
        state = good | {f"{LAYER}.{name}": part for name, part in change.items()}
        with pytest.raises(CheckpointError, match=message):
            opened(tmp_path / str(i), state, **settings)
    state = good | {f"{LAYER}.scales": torch.full_like(scales, float("nan"))}
    component = opened(tmp_path / "nan", state)
    with pytest.raises(CheckpointError, match=r"img_qkv\.scales' holds scales that are no numbers"):
        component.source.read(f"{LAYER}.weight")


def mlx_encoder(folder: Path, case: str, **changes: Tensor | None) -> Path:
    """The folder that mlx-lm writes: a recorded one, or one that was damaged."""
    folder.mkdir()
    start = f"{case}."
    state = {k.removeprefix(start): v for k, v in LM.items() if k.startswith(start)} | changes
    kept = {key: part for key, part in state.items() if part is not None and "." in key}
    saved(folder / "model.safetensors", kept)
    (folder / "config.json").write_text(LM_CONFIGS[case], encoding="utf-8")
    return folder


def test_the_encoders_features_are_mlx_lms_own(tmp_path: Path) -> None:
    component = open_component(mlx_encoder(tmp_path / "e", "mxfp4"), "encoder")
    assert component.packings == ("MXFP4", "mlx_q8")
    config = component.config
    assert isinstance(config, GptOssConfig)
    assert config.packed_experts
    rounded = replace(config, yarn=replace(config.yarn, truncate=True))  # as mlx-lm does it
    for keep, limit in ((PACKINGS, 1e-6), ((), 1e-6)):
        opened = open_component(tmp_path / "e", keep=keep)
        assert isinstance(opened.config, GptOssConfig)
        assert opened.config.packed_experts == bool(keep)
        config = replace(rounded, packed_experts=bool(keep))
        for i, error in enumerate(feature_errors(opened, config, "mxfp4")):
            assert error < limit, (keep, i)


def test_an_encoder_in_integers_throughout(tmp_path: Path) -> None:
    component = open_component(mlx_encoder(tmp_path / "e", "q4"), "encoder")
    assert component.packings == ("mlx_q4", "mlx_q8")  # the router has 8 bits in every file
    config = component.config
    assert isinstance(config, GptOssConfig)
    assert not config.packed_experts
    assert max(feature_errors(component, config, "q4")) < 4e-3  # banks are bfloat16


def feature_errors(component: OpenComponent, config: GptOssConfig, case: str) -> list[float]:
    encoder = load_encoder(config, component.source, (0, 1), torch.float32)
    with torch.no_grad():
        got = encoder(LM["ids"].long())
    expected = [LM[f"features.{case}.{i}"] for i in range(2)]
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


def test_an_encoders_folder_inside_a_checkpoint(tmp_path: Path) -> None:
    """A whole checkpoint whose encoder alone is MLX's: opened, verified, written as published."""
    folder = copy_checkpoint(tmp_path)
    place, settings = folder / "text_encoder", {"group_size": 32, "bits": 8}
    state: dict[str, Tensor] = {}
    for key, tensor in load_file(place / "model.safetensors").items():
        if key.endswith("gate_up_proj"):
            for name, half in (("gate", tensor[..., 0::2]), ("up", tensor[..., 1::2])):
                state[key.replace("gate_up", name) + ".weight"] = half.transpose(1, 2)
        elif key.endswith("gate_up_proj_bias"):
            for name, half in (("gate", tensor[..., 0::2]), ("up", tensor[..., 1::2])):
                state[key.replace("gate_up_proj_bias", f"{name}_proj.bias")] = half
        elif ".experts." in key:
            whole = tensor if key.endswith("bias") else tensor.transpose(1, 2)
            name = key.replace("_bias", ".bias") if key.endswith("bias") else f"{key}.weight"
            state[name] = whole
        elif key.endswith("o_proj.weight"):
            parts = packed(tensor.float(), 8, 32)
            state |= {key.replace("weight", name): part for name, part in parts.items()}
        else:
            state[key] = tensor
    saved(place / "model.safetensors", state)
    edit_json(place / "config.json", quantization=settings, quantization_config=settings)
    checkpoint = Checkpoint.open(folder)
    assert packings(checkpoint.encoder_source) == ("mlx_q8",)
    assert verify_checkpoint(folder).passed
    for key, tensor in stored("encoder").items():
        got = checkpoint.encoder_source.read(key).float()
        limit = 0.01 if "o_proj.weight" in key else 0
        assert float((got - tensor.float()).norm()) <= limit * float(tensor.float().norm()), key


WHOLE = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("mxfp4", {f"{WHOLE}.bias": None}, r"down_proj\.bias' is missing"),
        ("mxfp4", {f"{WHOLE}.scales": None}, "has no '.*down_proj.scales' beside"),
        ("mxfp4", {f"{WHOLE}.scales": torch.zeros(3, 64, dtype=torch.uint8)}, "expected 3 x 64"),
        ("mxfp4", {f"{WHOLE}.scales": torch.zeros(3, 64, 1)}, "has no '.*down_proj.biases' beside"),
        (
            "mxfp4",
            {f"{WHOLE}.scales": torch.zeros(3, 64, 2, dtype=torch.uint8)},
            "stored in MLX's nvfp4, which is not read",
        ),
        (
            "mxfp4",
            {f"{WHOLE}.scales": torch.zeros(3, 64, 0, dtype=torch.uint8)},
            "has 4 words a row for 0 exponents",
        ),
        ("mxfp4", {WHOLE.replace("down", "up") + ".weight": None}, "up_proj"),
        ("mxfp4", {WHOLE.replace("down", "up") + ".bias": torch.zeros(3, 31)}, "does not fit"),
        ("q4", {f"{WHOLE}.biases": torch.zeros(3, 64, 2)}, "expected"),
    ],
)
def test_a_damaged_encoder_is_named(
    tmp_path: Path, case: str, changes: dict[str, Tensor | None], message: str
) -> None:
    folder = mlx_encoder(tmp_path / "e", case, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_component(folder)
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message


def test_an_exponent_that_stands_for_nan_is_found(tmp_path: Path) -> None:
    scales = LM[f"mxfp4.{WHOLE}.scales"].clone()
    scales[0, 0, 0] = 255
    component = open_component(mlx_encoder(tmp_path / "e", "mxfp4", **{f"{WHOLE}.scales": scales}))
    for part in ("blocks", "scales"):
        with pytest.raises(CheckpointError, match=r"down_proj\.scales' holds scales that are no"):
            component.source.read(f"{WHOLE}_{part}")


@pytest.mark.parametrize("group", [0, -64, "64", None, 1 << 40, 2.5])
def test_a_length_of_groups_that_is_none(tmp_path: Path, group: object) -> None:
    folder = mlx_encoder(tmp_path / "e", "q4")
    edit_json(folder / "config.json", quantization={"group_size": group, "bits": 4})
    with pytest.raises(CheckpointError, match="is in groups of .*, as config.json says"):
        open_component(folder)


def test_bits_that_are_not_the_files(tmp_path: Path) -> None:
    folder = mlx_encoder(tmp_path / "e", "q4")
    edit_json(folder / "config.json", quantization={"group_size": 32, "bits": 8})
    with pytest.raises(CheckpointError, match="are codes of 4 bits, not of 8"):
        open_component(folder)


def test_an_autoencoder_in_words_is_told_for_what_it_is(tmp_path: Path) -> None:
    state = stored("vae")
    name = "decoder.mid_block.attentions.0.to_q"
    state |= {f"{name}.{key}": part for key, part in packed(torch.randn(32, 64), 8, 64).items()}
    file = saved(tmp_path / "vae", state)
    with pytest.raises(CheckpointError, match="stored as integers of MLX, which is not") as caught:
        open_component(file)
    assert caught.value.hint == WAY_OUT
