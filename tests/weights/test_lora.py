"""LoRA files of every family: read to the same change, or refused with file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from petzval.errors import CheckpointError, PetzvalError
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import Lora, lora_sha256, read_lora
from petzval.weights.tensors import file_sha256
from tests.support import TINY_CHECKPOINT
from tests.weights.support import write_file

CONFIG = Checkpoint.open(TINY_CHECKPOINT).denoiser_config
QKV = "transformer_blocks.1.attn.img_qkv"
OUT = "transformer_blocks.2.attn.to_out.0"
WIDTH, RANK = 128, 4


def halves(outputs: int, inputs: int = WIDTH, rank: int = RANK, seed: int = 0) -> list[Tensor]:
    """Random down and up."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, inputs), (outputs, rank))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def saved(folder: Path, tensors: Mapping[str, Tensor], name: str = "style.safetensors") -> Path:
    path = folder / name
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return path


def read(folder: Path, tensors: Mapping[str, Tensor]) -> Lora:
    return read_lora(saved(folder, tensors), CONFIG)


@pytest.mark.parametrize(
    ("down_key", "up_key"),
    [
        (f"transformer.{OUT}.lora_A.weight", f"transformer.{OUT}.lora_B.weight"),
        (f"base_model.model.{OUT}.lora_A.weight", f"base_model.model.{OUT}.lora_B.weight"),
        (
            f"base_model.model.transformer.{OUT}.lora_A.default.weight",
            f"base_model.model.transformer.{OUT}.lora_B.default.weight",
        ),
        (f"diffusion_model.{OUT}.lora_A.weight", f"diffusion_model.{OUT}.lora_B.weight"),
        (f"diffusion_model.{OUT}.lora_down.weight", f"diffusion_model.{OUT}.lora_up.weight"),
        (f"transformer.{OUT}.lora.down.weight", f"transformer.{OUT}.lora.up.weight"),
        (f"{OUT}.lora_A.weight", f"{OUT}.lora_B.weight"),
        (
            "lora_unet_transformer_blocks_2_attn_to_out_0.lora_down.weight",
            "lora_unet_transformer_blocks_2_attn_to_out_0.lora_up.weight",
        ),
        (
            "lora_transformer_transformer_blocks_2_attn_to_out_0.lora_A.weight",
            "lora_transformer_transformer_blocks_2_attn_to_out_0.lora_B.weight",
        ),
    ],
)
def test_every_spelling_is_the_same_change(tmp_path: Path, down_key: str, up_key: str) -> None:
    down, up = halves(WIDTH)
    lora = read(tmp_path, {down_key: down, up_key: up})
    assert list(lora.changes) == [OUT]
    assert torch.allclose(lora.changes[OUT].product(), up @ down, atol=1e-5)
    assert lora.sha256 == lora_sha256(lora.path) == file_sha256(lora.path)


@pytest.mark.parametrize("prefix", ["diffusion_model.{}", "lora_unet_{}"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_divides_by_the_rank(tmp_path: Path, prefix: str, shape: tuple[int, ...]) -> None:
    down, up = halves(WIDTH)
    name = prefix.format(OUT if "." in prefix else OUT.replace(".", "_"))
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    lora = read(tmp_path, tensors | {f"{name}.alpha": torch.full(shape, 2.0)})
    assert torch.allclose(lora.changes[OUT].product(), 0.5 * up @ down, atol=1e-5)


def test_query_key_and_value_that_were_apart_are_stacked(tmp_path: Path) -> None:
    # Many files train query and value alone; ranks may differ.
    thirds = {"to_q": 0, "to_v": 2, "add_k_proj": 1, "add_v_proj": 2}
    tensors: dict[str, Tensor] = {}
    expected = {stream: torch.zeros(3 * WIDTH, WIDTH) for stream in ("img", "txt")}
    for number, (name, third) in enumerate(thirds.items()):
        down, up = halves(WIDTH, rank=2 + number, seed=number)
        tensors[f"transformer.transformer_blocks.1.attn.{name}.lora_A.weight"] = down
        tensors[f"transformer.transformer_blocks.1.attn.{name}.lora_B.weight"] = up
        stream = "img" if name.startswith("to_") else "txt"
        expected[stream][third * WIDTH : (third + 1) * WIDTH] = up @ down
    lora = read(tmp_path, tensors)
    assert len(lora.changes) == 2
    for stream, change in expected.items():
        product = lora.changes[f"transformer_blocks.1.attn.{stream}_qkv"].product()
        assert torch.allclose(product, change, atol=1e-5)


@pytest.mark.parametrize("decomposed", ["", "1", "2", "12"])
@pytest.mark.parametrize(
    "name", [f"diffusion_model.{OUT}", "lycoris_transformer_blocks_2_attn_to_out_0"]
)
def test_lokr_is_a_kronecker_product(tmp_path: Path, decomposed: str, name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    factors: list[Tensor] = []
    for number, (rows, columns) in (("1", (4, 8)), ("2", (32, 16))):
        if number in decomposed:
            left = torch.randn(rows, RANK, generator=generator)
            right = torch.randn(RANK, columns, generator=generator)
            tensors |= {f"{name}.lokr_w{number}_a": left, f"{name}.lokr_w{number}_b": right}
            factors.append(left @ right)
        else:
            factors.append(torch.randn(rows, columns, generator=generator))
            tensors[f"{name}.lokr_w{number}"] = factors[-1]
    tensors[f"{name}.alpha"] = torch.tensor(2.0)
    scale = 0.5 if decomposed else 1.0  # alpha counts only where there is a rank
    expected = scale * torch.einsum("ab,cd->acbd", *factors).reshape(WIDTH, WIDTH)
    lora = read(tmp_path, tensors)
    assert torch.allclose(lora.changes[OUT].product(), expected, atol=1e-4)


def test_pefts_settings_decide_the_scale_wherever_they_stand(tmp_path: Path) -> None:
    down, up = halves(WIDTH)
    keys = {f"base_model.model.{OUT}.lora_A.weight": down}
    keys |= {f"base_model.model.{OUT}.lora_B.weight": up}
    folder = tmp_path / "style"
    folder.mkdir()
    file = saved(folder, keys, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    lora = read_lora(folder, CONFIG)
    assert torch.allclose(lora.changes[OUT].product(), 2 * up @ down, atol=1e-5)
    # The settings are a part of what was applied, so of its name, too.
    assert lora.sha256 == lora_sha256(folder) != file_sha256(file)
    (folder / "adapter_config.json").write_text(
        '{"lora_alpha": 8, "alpha_pattern": {"to_out.0": 2}, "use_rslora": true}'
    )
    lora = read_lora(folder, CONFIG)
    assert torch.allclose(lora.changes[OUT].product(), up @ down, atol=1e-5)
    header = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 1})
    save_file(keys, file, {"lora_adapter_metadata": header})
    lora = read_lora(folder, CONFIG)
    assert torch.allclose(lora.changes[OUT].product(), 0.25 * up @ down, atol=1e-5)
    assert lora.sha256 == file_sha256(file)


# ── refused ───────────────────────────────────────────────────────────────────────────────────────

KEY_A: str = f"{OUT}.lora_A.weight"
KEY_B: str = f"{OUT}.lora_B.weight"
GOOD: dict[str, Tensor] = dict(zip((KEY_A, KEY_B), halves(WIDTH), strict=True))
LOKR: dict[str, Tensor] = {
    f"{QKV}.lokr_w1": torch.ones(3, 1),
    f"{QKV}.lokr_w2": torch.ones(WIDTH, WIDTH),
}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, ["holds no tensor"]),
        (GOOD | {"transformer.single_blocks.0.lora_A.weight": torch.ones(1, 1)},
         ["transformer.single_blocks.0.lora_A.weight", "belongs to nothing"]),
        (GOOD | {"transformer_blocks.3.attn.to_out.0.lora_A.weight": torch.ones(4, WIDTH)},
         ["transformer_blocks.3.attn.to_out.0", "belongs to nothing"]),
        (GOOD | {f"{OUT}.diff_b": torch.ones(WIDTH)}, [f"{OUT}.diff_b", "a difference of whole"]),
        ({f"{OUT}.hada_w1_a": torch.ones(4, 4)}, [f"{OUT}.hada_w1_a", "a LoHa, which is not"]),
        ({f"{OUT}.oft_blocks": torch.ones(4, 4, 4)}, [f"{OUT}.oft_blocks", "OFT"]),
        (GOOD | {f"{OUT}.lora_B.bias": torch.ones(WIDTH)}, [f"{OUT}.lora_B.bias", "of biases"]),
        (GOOD | {f"{OUT}.dora_scale": torch.ones(WIDTH)}, ["dora_scale", "DoRA"]),
        ({"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(4, 4)}, ["text encoder"]),
        (GOOD | {"lora_te_layers_0_q_proj.lora_down.weight": torch.ones(4, 4)},
         ["lora_te_layers_0", "text encoder"]),
        ({KEY_A: GOOD[KEY_A]}, [KEY_A, "no other half (up)"]),
        ({KEY_B: GOOD[KEY_B]}, [KEY_B, "no other half (down)"]),
        ({f"{OUT}.alpha": torch.ones(1)}, [f"{OUT}.alpha", "no other half"]),
        (GOOD | {KEY_A: torch.ones(3, WIDTH)}, [KEY_A, KEY_B, "has rank 4", "has rank 3"]),
        (GOOD | {KEY_A: torch.ones(0, WIDTH), KEY_B: torch.ones(WIDTH, 0)}, [KEY_B, "rank 0"]),
        (GOOD | {KEY_A: torch.ones(RANK, 192)}, [KEY_A, "shape [4, 192]", "expected [rank, 128]"]),
        (GOOD | {KEY_B: torch.ones(192, RANK)}, [KEY_B, "shape [192, 4]", "expected [128, rank]"]),
        (GOOD | {KEY_A: torch.ones(RANK, WIDTH, 1, 1)}, [KEY_A, "two dimensions"]),
        (GOOD | {KEY_A: torch.full((RANK, WIDTH), float("nan"))}, [KEY_A, "not finite"]),
        (GOOD | {KEY_B: torch.full((WIDTH, RANK), float("inf"))}, [KEY_B, "not finite"]),
        (GOOD | {f"{OUT}.alpha": torch.tensor(float("nan"))}, [f"{OUT}.alpha", "not finite"]),
        (GOOD | {f"{OUT}.alpha": torch.ones(2)}, [f"{OUT}.alpha", "one number"]),
        (GOOD | {KEY_A: torch.ones(RANK, WIDTH, dtype=torch.int32)}, [KEY_A, "dtype I32"]),
        (GOOD | {f"transformer.{KEY_A}": GOOD[KEY_A]}, [KEY_A, "says the same as"]),
        (GOOD | {f"{OUT}.lokr_w1": torch.ones(1, 1)}, [f"{OUT}.lokr_w1", "beside a LoRA"]),
        ({f"{QKV}.lokr_w1": torch.ones(3, 1)}, [f"{QKV}.lokr_w1", "needs either lokr_w2"]),
        (LOKR | {f"{QKV}.lokr_w1_a": torch.ones(3, 1)}, ["lokr_w1", "needs either lokr_w1"]),
        (LOKR | {f"{QKV}.lokr_w1": torch.ones(2, 1)},
         ["lokr_w1", "change of [256, 128], expected [384, 128]"]),
        (LOKR | {f"{QKV}.lokr_t2": torch.ones(2, 1)}, ["lokr_t2", "of a layer of convolutions"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_key(
    tmp_path: Path, tensors: dict[str, Tensor], said: list[str]
) -> None:
    path = saved(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        read_lora(path, CONFIG)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert [text for text in said if text not in caught.value.message] == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"peft_type": "LOHA"}', "peft_type"),
        ('{"use_dora": true}', "use_dora"),
        ('{"lora_alpha": NaN}', "NaN"),
        ('{"lora_alpha": 1e999}', "out of range"),
        ('{"lora_alpha": "8"}', "must be a number"),
        ('{"alpha_pattern": {"(a+)+b": 1}}', "expression"),
        ('{"alpha_pattern": []}', None),
        ('{"alpha_pattern": 3}', "not an object"),
        ("[]", "expected an object"),
        ("{", "not JSON"),
    ],
)
def test_settings_that_mean_something_else_are_refused(
    tmp_path: Path, config: str, said: str | None
) -> None:
    saved(tmp_path, GOOD, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    if said is None:  # as good as none
        assert read_lora(tmp_path, CONFIG).changes.keys() == {OUT}
        return
    with pytest.raises(PetzvalError) as caught:
        read_lora(tmp_path, CONFIG)
    assert said in caught.value.message
    assert "adapter_config.json" in caught.value.message


def test_what_is_no_lora_file_is_named(tmp_path: Path) -> None:
    pickle = tmp_path / "style.pt"
    pickle.write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(CheckpointError, match="pickle"):
        read_lora(pickle, CONFIG)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_lora(tmp_path / "absent.safetensors", CONFIG)
    whole = saved(tmp_path, GOOD)
    whole.write_bytes(whole.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="truncated"):
        read_lora(whole, CONFIG)
    model = TINY_CHECKPOINT / "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="this is a denoiser, not a LoRA") as caught:
        read_lora(model, CONFIG)
    assert caught.value.hint == "give it with --denoiser"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="found 0"):
        read_lora(tmp_path / "empty", CONFIG)
    for number in (1, 2):
        saved(tmp_path / "empty", GOOD, f"{number}.safetensors")
    with pytest.raises(CheckpointError, match="found 2"):
        read_lora(tmp_path / "empty", CONFIG)
    wrong = write_file(tmp_path / "wrong.safetensors", {"__metadata__": {"a": 1}})
    with pytest.raises(CheckpointError, match="holds no tensor"):
        read_lora(wrong, CONFIG)


# ── added to the weights ──────────────────────────────────────────────────────────────────────────


def test_changes_are_summed_in_float32_and_leave_the_checkpoint_alone(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    first = read(tmp_path, GOOD)
    second = read(tmp_path, LOKR)
    third = read(tmp_path, {KEY_A: GOOD[KEY_A], KEY_B: -GOOD[KEY_B].flip(0)})
    base = checkpoint.load_denoiser(torch.float32).state_dict()
    loras = [(first, 0.5), (second, -1.0), (third, 2.0)]
    changed = checkpoint.load_denoiser(torch.float32, loras=loras).state_dict()
    for key, weight in base.items():
        layer = key.removesuffix(".weight")
        expected = weight.clone()
        for lora, number in loras:
            if layer in lora.changes:
                expected += number * lora.changes[layer].product()
        assert torch.equal(changed[key], expected), key
        assert layer in (OUT, QKV) or torch.equal(changed[key], weight)
    assert not torch.equal(changed[f"{OUT}.weight"], base[f"{OUT}.weight"])
    again = checkpoint.load_denoiser(torch.float32).state_dict()
    assert all(torch.equal(again[key], base[key]) for key in base)
    # bfloat16 rounds once: the sum, not its parts.
    rounded = checkpoint.load_denoiser(torch.bfloat16, loras=loras).state_dict()
    assert torch.equal(rounded[f"{OUT}.weight"], changed[f"{OUT}.weight"].bfloat16())


def test_weight_zero_changes_no_bit_and_an_overflow_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    lora = read(tmp_path, GOOD)
    base = checkpoint.load_denoiser().state_dict()
    zero = checkpoint.load_denoiser(loras=[(lora, 0.0)]).state_dict()
    assert all(torch.equal(zero[key], base[key]) for key in base)
    huge = read(tmp_path, {key: tensor * 3e18 for key, tensor in GOOD.items()})
    with pytest.raises(CheckpointError, match=r"style\.safetensors.*to_out\.0.*not finite"):
        checkpoint.load_denoiser(loras=[(huge, 100.0)])
