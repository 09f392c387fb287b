"""Every format of every component: recognised by its keys, read to the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.errors import CheckpointError, ConfigError
from petzval.models.experts import Nvfp4Experts
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.weights.checkpoint import Checkpoint, load_encoder
from petzval.weights.component import OpenComponent, open_component
from petzval.weights.inferred import infer_denoiser, infer_encoder, infer_vae
from petzval.weights.mxfp4 import decode_state
from petzval.weights.source import DerivedSource, DerivedTensor
from petzval.weights.tensors import TensorSource
from tests.support import TINY_CHECKPOINT, golden_json
from tests.weights.formats import (
    PACKED_ENCODER,
    Pack,
    comfyui_encoder,
    gguf_denoiser,
    gguf_encoder,
    is_matrix,
    mxfp8,
    nvfp4,
    older_scaled_fp8,
    openai_encoder,
    original_vae,
    plain_fp8,
    quantised_denoiser,
    saved,
    scaled_fp8,
    settings,
    stored,
    unmarked,
)

TINY = Checkpoint.open(TINY_CHECKPOINT)


def read(component: OpenComponent) -> dict[str, Tensor]:
    return {key: component.source.read(key, torch.float32) for key in component.source}


def relative_error(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The worst over all tensors, each relative to its own norm."""
    assert set(got) == set(expected)
    errors = [
        float((got[key] - value.float()).norm() / value.float().norm().clamp(min=1e-12))
        for key, value in expected.items()
    ]
    return max(errors)


# ── the denoiser ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prefix", "dtype"),
    [
        ("", torch.bfloat16),
        ("model.diffusion_model.", torch.float16),
        ("diffusion_model.", torch.float32),
    ],
)
def test_a_denoisers_single_file(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    state = {prefix + key: tensor.to(dtype) for key, tensor in stored("denoiser").items()}
    component = open_component(saved(tmp_path / "any.name", state, settings("denoiser")))
    assert (component.kind, component.config) == ("denoiser", TINY.denoiser_config)
    assert component.packings == ()
    got = read(component)
    assert set(got) == set(stored("denoiser"))
    assert all(torch.equal(got[key], state[prefix + key].float()) for key in got)


QUANTISED: list[tuple[str, Pack, str, float]] = [
    ("scaled", scaled_fp8, "float8_e4m3fn", 0.03),
    ("scaled without mark", unmarked(scaled_fp8), "float8_e4m3fn", 0.03),
    ("older scaled", older_scaled_fp8, "float8_e4m3fn", 0.03),
    ("mxfp8", mxfp8, "mxfp8", 0.03),
    ("mxfp8 without mark", unmarked(mxfp8), "mxfp8", 0.03),
    ("nvfp4", nvfp4, "nvfp4", 0.11),
    ("nvfp4 without mark", unmarked(nvfp4), "nvfp4", 0.11),
]


@pytest.mark.parametrize(
    ("pack", "packing", "limit"), [q[1:] for q in QUANTISED], ids=[q[0] for q in QUANTISED]
)
def test_a_quantised_denoiser(tmp_path: Path, pack: Pack, packing: str, limit: float) -> None:
    prefix = "model.diffusion_model." if packing == "mxfp8" else ""
    state = {prefix + key: tensor for key, tensor in quantised_denoiser(pack).items()}
    if pack is older_scaled_fp8:
        state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    component = open_component(saved(tmp_path / "q", state, settings("denoiser")), "denoiser")
    assert component.packings == (packing,)
    # The second linear layer has 341 columns: blocks are filled up, and cut off again.
    got, exact = read(component), stored("denoiser")
    assert got["transformer_blocks.0.img_mlp.w2.weight"].shape == (128, 341)
    assert limit / 5 < relative_error(got, exact) < limit
    assert all(torch.equal(got[k], exact[k].bfloat16().float()) for k in exact if not is_matrix(k))


def test_plain_fp8_is_read_as_it_is(tmp_path: Path) -> None:
    state = quantised_denoiser(plain_fp8)
    component = open_component(saved(tmp_path / "q", state, settings("denoiser")))
    key = "transformer_blocks.0.attn.img_qkv.weight"
    assert torch.equal(component.source.read(key, torch.float32), state[key].float())


def test_the_headers_metadata_says_the_format_too(tmp_path: Path) -> None:
    state = quantised_denoiser(unmarked(nvfp4))
    layers = {key.removesuffix(".weight"): {"format": "nvfp4"} for key in state if is_matrix(key)}
    text = json.dumps({"format_version": "1.0", "layers": layers})
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}
    file = saved(tmp_path / "q", prefixed, {**settings("denoiser"), "_quantization_metadata": text})
    assert open_component(file).packings == ("nvfp4",)


def test_query_key_and_value_that_are_apart_are_put_together(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {}
    names = {
        "img_qkv": ("to_q", "to_k", "to_v"),
        "txt_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    }
    for key, tensor in stored("denoiser").items():
        fused = key.split(".")[-2]
        if fused in names:
            for name, part in zip(names[fused], tensor.chunk(3), strict=True):
                state[key.replace(fused, name)] = part
        else:
            state[key] = tensor
    component = open_component(saved(tmp_path / "split", state, settings("denoiser")))
    assert relative_error(read(component), stored("denoiser")) == 0
    del state["transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(CheckpointError, match=r"img_qkv\.weight', but its key is missing"):
        open_component(saved(tmp_path / "half", state, settings("denoiser")))


@pytest.mark.parametrize(
    ("kind", "limit"), [("F16", 4e-4), ("BF16", 3e-3), ("Q8_0", 7e-3), ("Q5_0", 0.08)]
)
def test_a_gguf_denoiser(tmp_path: Path, kind: str, limit: float) -> None:
    prefix = "model.diffusion_model." if kind == "Q8_0" else ""
    component = open_component(gguf_denoiser(tmp_path / "d", kind, prefix))
    assert (component.kind, component.config) == ("denoiser", TINY.denoiser_config)
    assert component.packings == ((kind,) if kind.startswith("Q") else ())
    error = relative_error(read(component), stored("denoiser"))
    assert limit / 20 <= error <= max(limit, 3e-3)  # what does not fit is bfloat16


# ── the autoencoder ───────────────────────────────────────────────────────────────────────────────


def test_an_autoencoder_in_both_styles(tmp_path: Path) -> None:
    prefix = "first_stage_model."
    state = original_vae()
    assert "decoder.up.0.block.2.conv2.weight" in state
    assert state["decoder.mid.attn_1.q.weight"].dim() == 4
    for number, each in enumerate((state, stored("vae"))):
        prefixed = {prefix + key: tensor for key, tensor in each.items()}
        component = open_component(saved(tmp_path / str(number), prefixed, settings("vae")), "vae")
        assert component.config == TINY.vae_config
        assert relative_error(read(component), stored("vae")) == 0


def test_the_count_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = original_vae()
    del state["bn.num_batches_tracked"]
    component = open_component(saved(tmp_path / "vae", state, settings("vae")))
    assert component.source.read("bn.num_batches_tracked").dtype == torch.int64


# ── the text encoder ──────────────────────────────────────────────────────────────────────────────


def open_experts(component: OpenComponent) -> Nvfp4Experts:
    """Those of the first layer, as the network has them."""
    assert isinstance(component.config, GptOssConfig)
    encoder = load_encoder(component.config, component.source, (0,), torch.float32)
    experts = encoder.model.layers[0].get_submodule("mlp.experts")
    assert isinstance(experts, Nvfp4Experts)
    return experts


def features(component: OpenComponent, ids: Tensor) -> list[Tensor]:
    assert isinstance(component.config, GptOssConfig)
    encoder = load_encoder(component.config, component.source, (1, 2, 4, 5), torch.float32)
    return list(encoder(ids))


def test_comfyuis_encoder_stays_in_four_bits_and_carries_its_tokenizer(tmp_path: Path) -> None:
    file = saved(tmp_path / "encoder", comfyui_encoder(), settings("encoder"))
    component = open_component(file, "encoder")
    assert component.tokenizer == (TINY_CHECKPOINT / "tokenizer/tokenizer.json").read_bytes()
    assert isinstance(component.config, GptOssConfig)
    assert component.config.packing == "nvfp4"
    assert component.config.packed_experts
    codes = component.source.infos["model.layers.0.mlp.experts.gate_up_proj_codes"]
    assert (codes.shape, codes.dtype) == ((4, 192, 32), "U8")
    decoded = open_component(file, keep=())
    assert isinstance(decoded.config, GptOssConfig)
    assert not decoded.config.packed_experts
    exact = stored("encoder")
    got = read(decoded)
    assert set(got) == set(exact)
    assert 0.02 < relative_error(got, exact) < 0.12
    gate_up, _, down, _ = open_experts(component).matrices(3)
    bank = got["model.layers.0.mlp.experts.gate_up_proj"][3]
    assert torch.equal(gate_up.bfloat16().float(), bank)
    assert torch.equal(down.bfloat16().float(), got["model.layers.0.mlp.experts.down_proj"][3])
    ids = torch.arange(11)[None]
    for packed, dense in zip(features(component, ids), features(decoded, ids), strict=True):
        # Matrices are rounded to bfloat16 when a whole bank is decoded, and not one by one.
        assert (packed - dense).abs().max() < 0.02 * dense.abs().max()


@pytest.mark.parametrize("name", ["without model.", "biases as published", "plain matrices"])
def test_other_spellings_of_comfyuis_encoder(tmp_path: Path, name: str) -> None:
    state = comfyui_encoder()
    if name == "without model.":
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    elif name == "biases as published":
        state = {
            key.replace("_proj.bias", "_proj_bias") if ".experts." in key else key: tensor
            for key, tensor in state.items()
        }
    else:
        exact = stored("encoder")
        state = {
            key: tensor for key, tensor in state.items() if "_proj." not in key or "attn" in key
        }
        for key, tensor in exact.items():
            if key.endswith(("gate_up_proj", "down_proj")):
                state[f"{key}.weight"] = tensor.transpose(1, 2)
                state[f"{key}.bias"] = exact[f"{key}_bias"]
    component = open_component(saved(tmp_path / "e", state, settings("encoder")), keep=())
    assert relative_error(read(component), stored("encoder")) < (
        0.12 if "plain" not in name else 1e-9
    )


@pytest.mark.parametrize("fused", [False, True])
def test_a_gguf_encoder_in_mxfp4_is_the_published_one_bit_for_bit(
    tmp_path: Path, fused: bool
) -> None:
    component = open_component(gguf_encoder(tmp_path / "e", "MXFP4", fused=fused), "encoder")
    published = open_component(PACKED_ENCODER)
    assert component.config == published.config  # the settings stand in the file
    for key in published.source:
        assert torch.equal(
            component.source.read(key),
            published.source.read(key).to(component.source.infos[key].torch_dtype),
        ), key


@pytest.mark.parametrize(("kind", "limit"), [("BF16", 3e-3), ("Q8_0", 8e-3), ("Q5_1", 0.06)])
def test_a_gguf_encoder_in_other_types_is_decoded(tmp_path: Path, kind: str, limit: float) -> None:
    component = open_component(gguf_encoder(tmp_path / "e", kind))
    assert isinstance(component.config, GptOssConfig)
    assert not component.config.packed_experts
    packed = load_file(PACKED_ENCODER / "model.safetensors")
    assert relative_error(read(component), decode_state(packed, torch.float32)) < limit


def test_openais_own_form(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    saved(folder / "model.safetensors", openai_encoder())
    config = json.loads((PACKED_ENCODER / "config.json").read_text(encoding="utf-8"))
    own = {
        "num_hidden_layers": config["num_hidden_layers"],
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1.0,
        "rope_ntk_beta": 32.0,
        "initial_context_length": 4096,
        **{
            name: config[name]
            for name in (
                "vocab_size", "hidden_size", "intermediate_size", "head_dim",
                "num_attention_heads", "num_key_value_heads", "sliding_window",
            )
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(own), encoding="utf-8")
    component, published = open_component(folder, "encoder"), open_component(PACKED_ENCODER)
    assert component.config == published.config
    for key in published.source:
        assert torch.equal(component.source.read(key), published.source.read(key)), key


# ── recognition ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["denoiser", "encoder", "vae"])
def test_the_name_decides_nothing(tmp_path: Path, kind: str) -> None:
    file = saved(tmp_path / "vae.safetensors", stored(kind), settings(kind))
    assert open_component(file).kind == kind
    folder = tmp_path / "anything"
    folder.mkdir()
    shutil.copy(file, folder / "one-file.safetensors")
    assert open_component(folder).kind == kind


def test_another_component_than_expected(tmp_path: Path) -> None:
    file = saved(tmp_path / "x", stored("vae"), settings("vae"))
    with pytest.raises(CheckpointError) as caught:
        open_component(file, "denoiser")
    assert caught.value.message == f"{file}: this is an autoencoder, expected a denoiser"
    assert caught.value.hint == "give it with --vae"


STRANGERS: list[tuple[list[str], str]] = [
    (["transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight"], "this is a LoRA"),
    (["lora_unet_a.lora_down.weight"], "this is a LoRA"),
    (["double_blocks.0.img_attn.qkv.weight"], "FLUX.1"),
    (["model.diffusion_model.single_stream_modulation.lin.weight"], "FLUX.2, not of Lens"),
    (["decoder.conv_in.weight", "encoder.conv_in.weight"], "without FLUX.2's token statistics"),
    (["something.weight"], "its keys begin with 'something.weight'"),
    ([], "holds no tensors"),
]


@pytest.mark.parametrize(("keys", "message"), STRANGERS)
def test_what_is_no_part_of_lens_is_named(tmp_path: Path, keys: list[str], message: str) -> None:
    file = saved(tmp_path / "x", {key: torch.zeros(1) for key in keys})
    with pytest.raises(CheckpointError) as caught:
        open_component(file)
    assert message in caught.value.message
    assert str(file) in caught.value.message


def test_two_components_in_one_file_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "x", stored("vae") | stored("denoiser"))
    with pytest.raises(CheckpointError, match="holds a denoiser and an autoencoder"):
        open_component(file)


def test_a_whole_checkpoint_gives_the_part_that_is_asked_for() -> None:
    assert open_component(TINY_CHECKPOINT, "encoder").config == TINY.encoder_config
    with pytest.raises(CheckpointError, match="a whole checkpoint, not one component"):
        open_component(TINY_CHECKPOINT)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    state = {f"model.diffusion_model.{key}": value for key, value in stored("denoiser").items()}
    state["img_in.bias"] = stored("denoiser")["img_in.bias"]
    with pytest.raises(CheckpointError, match="'img_in.bias' is there twice"):
        open_component(saved(tmp_path / "x", state, settings("denoiser")))


DAMAGE: list[tuple[str, str, Tensor | None, str]] = [
    ("denoiser", "img_in.weight", None, "key 'img_in.weight' is missing"),
    ("denoiser", "img_in.weight", torch.zeros(2, 2), "'img_in.weight' has shape [2, 2]"),
    ("denoiser", "stray", torch.zeros(1), "key 'stray' is unknown"),
    ("vae", "post_quant_conv.bias", None, "key 'post_quant_conv.bias' is missing"),
    ("encoder", "model.layers.2.self_attn.sinks", torch.zeros(9), "has shape [9]"),
]


@pytest.mark.parametrize(("kind", "key", "tensor", "message"), DAMAGE)
def test_what_does_not_fit_is_named(
    tmp_path: Path, kind: str, key: str, tensor: Tensor | None, message: str
) -> None:
    state: dict[str, Tensor] = stored(kind)
    state.pop(key, None)
    if tensor is not None:
        state[key] = tensor
    file = saved(tmp_path / "x", state, settings(kind))
    with pytest.raises(CheckpointError) as caught:
        open_component(file)
    assert message in caught.value.message
    assert str(file) in caught.value.message


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def published_shapes(component: str) -> DerivedSource:
    """The full-size tensors by name and shape, without numbers."""
    base = TensorSource.open(TINY_CHECKPOINT / "vae")
    names = {"bfloat16": "BF16", "float32": "F32", "uint8": "U8", "int64": "I64"}

    def absent() -> Tensor:
        raise AssertionError("a number was read")

    keys = golden_json(f"manifests/{component}.json")["keys"]
    return DerivedSource(
        base,
        [
            DerivedTensor(
                key=key,
                file=Path("published"),
                shape=tuple(said["shape"]),
                dtype=names[said["dtype"]],
                num_bytes=0,
                load=absent,
            )
            for key, said in keys.items()
        ],
    )


def test_the_published_sizes_are_told_by_shapes_alone() -> None:
    assert infer_denoiser(published_shapes("transformer")) == LENS_MMDIT
    assert infer_vae(published_shapes("vae")) == LENS_VAE
    assert infer_encoder(published_shapes("text_encoder_mxfp4")) == LENS_GPT_OSS
    dense = infer_encoder(published_shapes("text_encoder_dense"))
    assert replace(dense, packed_experts=True) == LENS_GPT_OSS


@pytest.mark.parametrize("kind", ["denoiser", "encoder", "vae"])
def test_sizes_that_are_not_published_need_their_settings(tmp_path: Path, kind: str) -> None:
    file = saved(tmp_path / "x", stored(kind))
    with pytest.raises(ConfigError, match="not in the file") as caught:
        open_component(file)
    assert "config.json" in caught.value.hint
    folder = {"denoiser": "transformer", "encoder": "text_encoder", "vae": "vae"}[kind]
    shutil.copy(TINY_CHECKPOINT / folder / "config.json", tmp_path / "config.json")
    if kind == "encoder":
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == "gpt_oss"
    assert open_component(file).stated


def test_a_config_of_something_else_beside_a_loose_file_is_passed_over(tmp_path: Path) -> None:
    file = saved(tmp_path / "x", stored("vae"), settings("vae"))
    (tmp_path / "config.json").write_text('{"_class_name": "Other"}', encoding="utf-8")
    assert open_component(file).config == TINY.vae_config


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_settings_in_the_header(tmp_path: Path, text: str) -> None:
    file = saved(tmp_path / "x", stored("vae"), {"petzval.config": text})
    with pytest.raises(ConfigError, match=r"metadata 'petzval\.config'"):
        open_component(file)


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8)])
def test_a_tokenizer_that_is_no_row_of_bytes(tmp_path: Path, tensor: Tensor) -> None:
    state = comfyui_encoder() | {"tokenizer_json": tensor}
    with pytest.raises(CheckpointError, match="expected a row of bytes"):
        open_component(saved(tmp_path / "x", state, settings("encoder")))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="PyTorch pickle"):
        open_component(file)
    save_file({"a": torch.zeros(1)}, tmp_path / "y")
    (tmp_path / "z").write_bytes((tmp_path / "y").read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="truncated"):
        open_component(tmp_path / "z")
