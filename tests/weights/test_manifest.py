"""The published architecture, tensor by tensor, and what verification says of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petzval.config import to_mapping
from petzval.errors import CheckpointError
from petzval.models.sizes import (
    LENS_GPT_OSS,
    LENS_MMDIT,
    LENS_VAE,
    MINI_GPT_OSS,
    MINI_MMDIT,
    MINI_VAE,
)
from petzval.weights.manifest import build_on_meta, expected_tensors
from petzval.weights.published import (
    ComponentConfig,
    component_folder,
    encoder_config_in,
    published_json,
    read_denoiser_config,
    read_vae_config,
)
from petzval.weights.tensors import file_sha256
from petzval.weights.verify import verify_checkpoint, verify_component
from petzval.weights.writing import write_safetensors
from tests.support import GOLDENS, TINY_CHECKPOINT, golden_json
from tests.weights.formats import (
    comfyui_encoder,
    mxfp8,
    quantised_denoiser,
    saved,
    scaled_fp8,
    settings,
    stored,
)
from tests.weights.support import DENOISER_FILE, copy_checkpoint, edit_json

PUBLISHED: list[tuple[str, ComponentConfig, int]] = [
    ("transformer", LENS_MMDIT, 1264),
    ("text_encoder_mxfp4", LENS_GPT_OSS, 459),
    ("text_encoder_dense", replace(LENS_GPT_OSS, packed_experts=False), 411),
    ("vae", LENS_VAE, 251),
]


@pytest.mark.parametrize(("name", "config", "count"), PUBLISHED)
def test_the_full_size_networks_are_the_published_ones(
    name: str, config: ComponentConfig, count: int
) -> None:
    recorded = golden_json(f"manifests/{name}.json")["keys"]
    expected = expected_tensors(config)
    assert len(expected) == len(recorded) == count
    kinds = {"uint8": "packed", "int64": "integer"}
    assert {key: (list(e.shape), e.kind) for key, e in expected.items()} == {
        key: (said["shape"], kinds.get(said["dtype"], "float")) for key, said in recorded.items()
    }


def test_building_without_numbers_takes_no_memory() -> None:
    network = build_on_meta(LENS_MMDIT)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_104_225_152


@pytest.mark.parametrize(
    "config",
    [
        LENS_MMDIT,
        LENS_GPT_OSS,
        LENS_VAE,
        MINI_MMDIT,
        replace(MINI_GPT_OSS, sliding_window=7),
        MINI_VAE,
    ],
)
def test_config_files_survive_the_round_trip(tmp_path: Path, config: ComponentConfig) -> None:

    home = tmp_path / component_folder(config)
    home.mkdir()
    text = json.dumps(published_json(config))
    (home / "config.json").write_text(text, encoding="utf-8")
    if home.name == "text_encoder":
        assert encoder_config_in(home) == config
    elif home.name == "vae":
        assert read_vae_config(tmp_path) == config
    else:
        again = to_mapping(read_denoiser_config(tmp_path))
        assert {**again, "inner_dim": None} == to_mapping(config)


@pytest.mark.parametrize("name", ["transformer", "vae"])
def test_written_configs_look_like_the_published_ones(name: str) -> None:
    published = golden_json(f"checkpoint/{name}/config.json")
    config = {"transformer": read_denoiser_config, "vae": read_vae_config}[name](TINY_CHECKPOINT)
    written = published_json(config)
    skipped = {"batch_norm_momentum", "force_upcast", "sample_size"}
    assert written == {key: value for key, value in published.items() if key not in skipped}


def test_a_sound_checkpoint_is_counted_and_hashed() -> None:
    report = verify_checkpoint(TINY_CHECKPOINT)
    assert report.passed
    assert report.all_problems == ()
    transformer, encoder, vae = report.components
    assert (transformer.num_tensors, encoder.num_tensors, vae.num_tensors) == (94, 105, 247)
    assert transformer.num_parameters == 1_927_296
    assert transformer.num_bytes == 4 * 1_927_296
    assert transformer.dtypes == (("F32", 94),)
    assert vae.dtypes == (("F32", 246), ("I64", 1))
    file = transformer.files[0]
    assert file.name == DENOISER_FILE
    assert file.sha256 == file_sha256(TINY_CHECKPOINT / DENOISER_FILE)


def test_packed_experts_count_as_the_numbers_they_hold(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    for name in ("config.json", "model.safetensors"):
        source = GOLDENS / "text_encoder_mxfp4" / name
        (folder / "text_encoder" / name).write_bytes(source.read_bytes())
    packed = verify_checkpoint(folder, hashes=False)
    assert packed.passed
    dense = verify_checkpoint(TINY_CHECKPOINT, hashes=False)
    assert packed.components[1].num_parameters == dense.components[1].num_parameters
    state = load_file(folder / "text_encoder" / "model.safetensors")
    key = "model.layers.2.mlp.experts.down_proj_scales"
    state[key][0, 0, 0] = 255
    write_safetensors(folder / "text_encoder" / "model.safetensors", state)
    (problem,) = verify_checkpoint(folder, hashes=False).all_problems
    assert f"key '{key}' holds 1 MXFP4 scales of 255" in problem


def test_every_fault_is_listed(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    state = load_file(folder / DENOISER_FILE)
    state["img_in.weight"][3, 5] = float("nan")
    state["img_in.bias"] = torch.zeros(3)
    del state["proj_out.bias"]
    write_safetensors(folder / DENOISER_FILE, {**state, "extra": torch.zeros(1)})
    edit_json(folder / "vae/config.json", act_fn="relu")
    (folder / "text_encoder/model.safetensors").write_bytes(b"\x80\x04.")
    edit_json(folder / "model_index.json", _class_name="Other")
    (folder / "tokenizer/tokenizer.json").unlink()
    report = verify_checkpoint(folder)
    assert not report.passed
    text = "\n".join(report.all_problems)
    for part in (
        "this is a checkpoint of 'Other'",
        "tokenizer.json is missing",
        "key 'proj_out.bias' is missing",
        "key 'img_in.bias' has shape [3]",
        "key 'extra' is unknown",
        "key 'img_in.weight' holds 1 NaN or infinite numbers",
        "this is a pickle",
        "'act_fn' is 'relu'",
    ):
        assert part in text
    assert len(report.all_problems) == 8
    assert len(report.components[2].files) == 1


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    edit_json(folder / "transformer/config.json", selected_layer_index=[1, 2, 4, 9])
    report = verify_checkpoint(folder, hashes=False, values=False)
    assert len(report.problems) == 1
    assert "goes beyond the text encoder's 6 layers" in report.problems[0]
    assert report.components[0].files[0].sha256 == ""


def test_a_part_in_any_format_is_counted_and_hashed(tmp_path: Path) -> None:
    file = saved(
        tmp_path / "lens.safetensors", quantised_denoiser(scaled_fp8), settings("denoiser")
    )
    report = verify_component(file)
    assert report.passed
    [part] = report.components
    assert (part.name, part.num_tensors) == ("denoiser", len(stored("denoiser")))
    assert dict(part.dtypes) == {"BF16": 64, "float8_e4m3fn": 30}
    assert [(each.name, each.sha256) for each in part.files] == [(file.name, file_sha256(file))]
    assert part.num_parameters == sum(tensor.numel() for tensor in stored("denoiser").values())
    encoder = saved(tmp_path / "encoder", comfyui_encoder(), settings("encoder"))
    [packed], [dense] = (
        verify_component(path, hashes=False).components
        for path in (encoder, TINY_CHECKPOINT / "text_encoder")
    )
    assert packed.num_parameters == dense.num_parameters
    assert "nvfp4" in dict(packed.dtypes)


def test_every_fault_of_a_part_is_listed(tmp_path: Path) -> None:
    state = quantised_denoiser(mxfp8)
    scales = "transformer_blocks.0.attn.img_qkv.weight_scale"
    state[scales].view(torch.uint8).view(-1)[0] = 255
    state["img_in.weight"][3, 5] = float("nan")
    state["img_in.bias"] = torch.zeros(3)
    del state["proj_out.bias"]
    file = saved(tmp_path / "x", state | {"extra": torch.zeros(1)}, settings("denoiser"))
    report = verify_component(file)
    text = "\n".join(report.all_problems)
    for part in (
        "key 'proj_out.bias' is missing",
        "key 'img_in.bias' has shape [3]",
        "key 'extra' is unknown",
        "key 'img_in.weight' holds 1 NaN or infinite numbers",
        f"key {scales!r} holds scales that are no numbers",
    ):
        assert part in text
    assert len(report.all_problems) == 5
    (tmp_path / "pickle").write_bytes(b"\x80\x04.")
    [problem] = verify_component(tmp_path / "pickle").all_problems
    assert "this is a pickle" in problem
    with pytest.raises(CheckpointError, match="or a file of one part"):
        verify_component(tmp_path / "none")


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        verify_checkpoint(tmp_path / "none")
