"""A checkpoint is taken whole or refused whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.errors import CheckpointError, ConfigError, PetzvalError
from petzval.weights import checkpoint as module
from petzval.weights.checkpoint import Checkpoint, open_encoder
from petzval.weights.checkpoint import load_encoder as load_packed
from petzval.weights.mxfp4 import decode_state
from petzval.weights.tensors import TensorSource
from petzval.weights.writing import write_safetensors
from tests.support import GOLDENS, TINY_CHECKPOINT
from tests.weights.support import DENOISER_FILE, copy_checkpoint, edit_json, read_parts, write_file

FILES = {
    "transformer": DENOISER_FILE,
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def test_every_number_arrives() -> None:
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    networks = {
        "transformer": checkpoint.load_denoiser(torch.float32),
        "text_encoder": checkpoint.load_encoder(torch.float32),
        "vae": checkpoint.load_vae(torch.float32),
    }
    for name, network in networks.items():
        stored = load_file(TINY_CHECKPOINT / FILES[name])
        state: dict[str, Tensor] = network.state_dict()
        unused = {"model.norm.weight", "lm_head.weight"} if name == "text_encoder" else set[str]()
        assert set(state) == set(stored) - unused
        assert all(torch.equal(state[key], stored[key]) for key in state)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_dtype_is_the_one_asked_for_and_statistics_stay_exact() -> None:
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    denoiser, vae = checkpoint.load_denoiser(torch.bfloat16), checkpoint.load_vae(torch.bfloat16)
    assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    assert vae.bn.running_var.dtype == torch.float32
    stored = load_file(TINY_CHECKPOINT / FILES["vae"])
    assert torch.equal(vae.bn.running_mean, stored["bn.running_mean"])
    assert vae.bn.num_batches_tracked.dtype == torch.int64


def test_layers_behind_the_last_feature_are_not_read(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    edit_json(folder / "transformer/config.json", selected_layer_index=[0, 1, 2, 2])
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.load_encoder().model.layers) == 3
    assert len(checkpoint.load_encoder(all_layers=True).model.layers) == 6
    assert checkpoint.load_encoder(all_layers=True).selected_layers == (0, 1, 2, 2)


def test_packed_experts_stay_packed_and_the_tensors_decide(tmp_path: Path) -> None:
    config, source = open_encoder(GOLDENS / "text_encoder_mxfp4")
    assert config.packed_experts
    encoder = load_packed(config, source, (1, 2), torch.float32)
    experts = encoder.model.layers[0].get_submodule("mlp.experts")
    assert experts.get_buffer("gate_up_proj_blocks").dtype == torch.uint8
    assert experts.get_parameter("gate_up_proj_bias").dtype == torch.float32
    # A de-quantised copy often keeps the quantised config.json.
    dense = decode_state({key: source.read(key) for key in source}, torch.bfloat16)
    (tmp_path / "config.json").write_bytes(
        (GOLDENS / "text_encoder_mxfp4" / "config.json").read_bytes()
    )
    save_file(
        {key: tensor.contiguous() for key, tensor in dense.items()}, tmp_path / "model.safetensors"
    )
    config, source = open_encoder(tmp_path)
    assert not config.packed_experts
    ids = torch.arange(9)[None]
    same = load_packed(config, source, (1, 2), torch.float32)
    for got, expected in zip(same(ids), encoder(ids), strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_the_identity_names_the_weights(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    first = Checkpoint.open(TINY_CHECKPOINT).identity
    assert Checkpoint.open(folder).identity == first
    state = load_file(folder / DENOISER_FILE)
    changed = {key: tensor * 1.001 for key, tensor in state.items()}
    write_safetensors(folder / DENOISER_FILE, changed)
    second = Checkpoint.open(folder).identity
    edit_json(folder / "text_encoder/config.json", sliding_window=9)
    third = Checkpoint.open(folder).identity
    assert len({first, second, third}) == 3


def change_state(folder: Path, name: str, changes: dict[str, Tensor | None]) -> None:
    state: dict[str, Tensor | None] = {**load_file(folder / FILES[name]), **changes}
    kept = {key: tensor for key, tensor in state.items() if tensor is not None}
    write_safetensors(folder / FILES[name], kept)  # which may read from the file it replaces


DAMAGE: list[tuple[str, dict[str, Tensor | None], str]] = [
    ("transformer", {"img_in.weight": None}, "key 'img_in.weight' is missing, expected [128, 128]"),
    ("transformer", {"extra.weight": torch.zeros(2)}, "key 'extra.weight' is unknown"),
    (
        "transformer",
        {"img_in.weight": torch.zeros(128, 64)},
        "key 'img_in.weight' has shape [128, 64], expected [128, 128]",
    ),
    (
        "transformer",
        {"img_in.bias": torch.zeros(128, dtype=torch.int64)},
        "key 'img_in.bias' has dtype I64, expected one of BF16",
    ),
    ("text_encoder", {"model.layers.3.self_attn.sinks": None}, "'model.layers.3.self_attn.sinks'"),
    ("text_encoder", {"lm_head.weight": torch.zeros(1, 1)}, "key 'lm_head.weight' has shape"),
    ("vae", {"bn.running_var": None}, "key 'bn.running_var' is missing"),
    (
        "vae",
        {"bn.num_batches_tracked": torch.zeros(())},
        "key 'bn.num_batches_tracked' has dtype F32",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), DAMAGE)
def test_wrong_tensors_are_refused_by_file_and_key(
    tmp_path: Path,
    name: str,
    changes: dict[str, Tensor | None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_checkpoint(tmp_path)
    change_state(folder, name, changes)

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a number was read from a checkpoint that is refused")

    monkeypatch.setattr(TensorSource, "read", refuse)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert message in caught.value.message
    assert str(folder / FILES[name]) in caught.value.message
    assert "petzval verify" in caught.value.hint


def test_many_differences_are_counted(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    change_state(folder, "vae", {f"extra{i}": torch.zeros(1) for i in range(9)})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert caught.value.message.endswith("and 6 more")


def test_the_head_may_be_left_out(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    change_state(folder, "text_encoder", {"lm_head.weight": None, "model.norm.weight": None})
    assert Checkpoint.open(folder).load_encoder()(torch.arange(3)[None])[0].shape == (1, 3, 64)


def test_a_checkpoint_with_only_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    (folder / DENOISER_FILE).rename(folder / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: this is a pickle"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    folder = copy_checkpoint(tmp_path)
    file = folder / DENOISER_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert DENOISER_FILE in caught.value.message


def test_nan_as_a_dtype_is_refused(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    header, data = read_parts(folder / DENOISER_FILE)
    header["img_in.bias"]["dtype"] = "NaN"
    write_file(folder / DENOISER_FILE, header, data)
    with pytest.raises(CheckpointError, match=r"key 'img_in\.bias': dtype 'NaN' is unknown"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae", "tokenizer"])
def test_a_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = copy_checkpoint(tmp_path)
    (folder / name).rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=f"the folder {name}/ is missing"):
        Checkpoint.open(folder)


def test_a_file_or_nothing_in_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a file, not a folder"):
        Checkpoint.open(TINY_CHECKPOINT / "model_index.json")
    with pytest.raises(CheckpointError, match="it is absent"):
        Checkpoint.open(tmp_path / "none")


def test_optional_files_may_be_absent(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    (folder / "model_index.json").unlink()
    (folder / "scheduler/scheduler_config.json").unlink()
    assert Checkpoint.open(folder).tokenizer_folder == folder / "tokenizer"
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Checkpoint.open(folder)


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("model_index.json", {"_class_name": "FluxPipeline"}, "this is a checkpoint of 'FluxPipeline'"),
    ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "'use_karras_sigmas' is True"),
    ("transformer/config.json", {"num_layrs": 3}, "unknown setting 'num_layrs' in MMDiTConfig"),
    ("transformer/config.json", {"num_layers": None}, "'num_layers' of MMDiTConfig is missing"),
    ("transformer/config.json", {"num_layers": "3"}, "'num_layers' must be a whole number"),
    ("transformer/config.json", {"num_layers": 0}, "'num_layers' must be at least 1"),
    ("transformer/config.json", {"gate_mlp": False}, "gate_mlp=false"),
    ("transformer/config.json", {"enc_hidden_dim": 32}, "text encoder's hidden_size is 64"),
    ("transformer/config.json", {"selected_layer_index": [1, 2, 4, 6]}, "goes beyond"),
    ("transformer/config.json", {"selected_layer_index": []}, "at least one layer"),
    (
        "transformer/config.json",
        {"in_channels": 64, "out_channels": 16},
        "expected 4 x the vae's latent_channels (32)",
    ),
    ("text_encoder/config.json", {"model_type": "llama"}, "model_type is 'llama'"),
    ("text_encoder/config.json", {"hidden_size": 64.5}, "'hidden_size' must be a whole number"),
    ("text_encoder/config.json", {"sliding_window": 0}, "'sliding_window' must be at least 1"),
    ("text_encoder/config.json", {"layer_types": ["full", "full"]}, "layer type 'full' is unknown"),
    ("text_encoder/config.json", {"hidden_act": "gelu"}, "'hidden_act' must be 'silu'"),
    ("text_encoder/config.json", {"quantization_config": {"quant_method": "awq"}}, "'awq'"),
    (
        "text_encoder/config.json",
        {"rope_parameters": {"rope_type": "yarn", "factor": "big"}},
        "'factor' must be a number",
    ),
    ("vae/config.json", {"act_fn": "relu"}, "setting 'act_fn' is 'relu'; Lens has 'silu'"),
    ("vae/config.json", {"norm_num_groups": 7}, "not a multiple of norm_num_groups"),
    ("vae/config.json", {"block_out_channels": [16, 16]}, "four block_out_channels"),
    ("vae/config.json", {"batch_norm_eps": -1.0}, "'batch_norm_eps' must be at least 0"),
    # Networks are built from these files before any weight is looked at.
    ("transformer/config.json", {"num_layers": 10**9}, "'num_layers' must be at most 1024"),
    ("transformer/config.json", {"num_attention_heads": 10**12}, "heads' must be at most 1024"),
    ("transformer/config.json", {"selected_layer_index": [0] * 2000}, "names 2,000 layers"),
    ("vae/config.json", {"layers_per_block": 10**9}, "'layers_per_block' must be at most 64"),
    ("vae/config.json", {"block_out_channels": [4 << 40] * 4}, "must be at most 65536"),
    ("vae/config.json", {"scaling_factor": 0.13}, "unknown setting 'scaling_factor'"),
]


@pytest.mark.parametrize(("file", "changes", "message"), SETTINGS)
def test_wrong_settings_are_refused_by_file_and_name(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = copy_checkpoint(tmp_path)
    edit_json(folder / file, **changes)
    with pytest.raises(PetzvalError) as caught:
        Checkpoint.open(folder)
    assert message in caught.value.message
    assert str(folder / file) in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"num_layers": 3,\n', "line 2"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "expected an object with settings"),
        (b" " * 1_100_000, "larger than 1,048,576 bytes"),
    ],
)
def test_a_broken_config_is_refused_by_file(tmp_path: Path, content: bytes, message: str) -> None:
    folder = copy_checkpoint(tmp_path)
    (folder / "transformer/config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Checkpoint.open(folder)
    assert message in caught.value.message
    assert "transformer/config.json" in caught.value.message


def test_extra_settings_of_the_published_files_are_passed_over(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    for name in ("transformer", "vae"):
        edit_json(folder / name / "config.json", _name_or_path="somewhere")
    edit_json(folder / "text_encoder/config.json", temperature=1.0, use_cache=False)
    Checkpoint.open(folder)


def test_peak_memory_of_loading_is_one_tensor_above_the_weights(tmp_path: Path) -> None:
    """Each tensor is converted and put in place before the next is read."""
    read: list[str] = []
    held: list[int] = []
    original = TensorSource.read

    def watch(self: TensorSource, key: str, *args: Any) -> Tensor:
        read.append(key)
        held.append(sum(p.is_meta for p in watched[0].parameters()) if watched else -1)
        return original(self, key, *args)

    watched: list[torch.nn.Module] = []
    network = module.build_on_meta(Checkpoint.open(TINY_CHECKPOINT).denoiser_config)
    watched.append(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorSource, "read", watch)
        source = Checkpoint.open(TINY_CHECKPOINT).denoiser_source
        module.materialise(network, source, torch.bfloat16, "cpu")
    assert held == list(range(len(read), 0, -1))


def test_the_index_of_a_sharded_component_is_used(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    state = load_file(folder / DENOISER_FILE)
    (folder / DENOISER_FILE).unlink()
    keys = sorted(state)
    stem = "diffusion_pytorch_model"
    places: dict[str, str] = {}
    for i, part in enumerate((keys[:40], keys[40:]), start=1):
        name = f"{stem}-{i:05d}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / "transformer" / name)
        places |= dict.fromkeys(part, name)
    index = folder / "transformer" / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    denoiser = Checkpoint.open(folder).load_denoiser(torch.float32)
    assert all(torch.equal(tensor, state[key]) for key, tensor in denoiser.state_dict().items())
