"""A denoiser as lens-mlx writes it: own names for modulation, plain numbers or MLX's integers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import OpenComponent, open_component
from petzval.weights.convert import convert_component
from petzval.weights.foreign_formats import WAY_OUT
from petzval.weights.key_tables import DENOISER_MLX
from petzval.weights.source import packings
from petzval.weights.verify import verify_checkpoint
from tests.support import GOLDENS, TINY_CHECKPOINT
from tests.weights.formats import saved, stored
from tests.weights.support import copy_checkpoint, edit_json

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
        ({"weight": words[:, :12].clone()}, "read are codes of 2, 4, 8 bits"),
    ]
    for i, (change, message) in enumerate(wrong):
        state = good | {f"{LAYER}.{name}": part for name, part in change.items()}
        with pytest.raises(CheckpointError, match=message):
            opened(tmp_path / str(i), state)
    state = good | {f"{LAYER}.scales": torch.full_like(scales, float("nan"))}
    component = opened(tmp_path / "nan", state)
    with pytest.raises(CheckpointError, match=r"img_qkv\.scales' holds scales that are no numbers"):
        component.source.read(f"{LAYER}.weight")


def test_an_encoder_in_words_is_told_for_what_it_is(tmp_path: Path) -> None:
    """mlx-community's GPT-OSS: its experts are in another of MLX's formats."""
    state = stored("encoder")
    name = "model.layers.0.self_attn.q_proj"
    state |= {f"{name}.{key}": part for key, part in packed(state[f"{name}.weight"], 8, 64).items()}
    file = saved(tmp_path / "encoder", state)
    with pytest.raises(CheckpointError, match="stored as integers of MLX, which is not") as caught:
        open_component(file)
    assert caught.value.hint == WAY_OUT
