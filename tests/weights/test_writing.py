"""What is written can be read again; what cannot be finished leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.models.mmdit import MMDiT
from petzval.weights import writing
from petzval.weights.checkpoint import Checkpoint, open_encoder
from petzval.weights.header import read_header
from petzval.weights.mxfp4 import encode_state
from petzval.weights.published import published_json
from petzval.weights.tensors import TensorSource
from petzval.weights.writing import Component, save_checkpoint, save_component, write_safetensors
from tests.support import TINY_CHECKPOINT
from tests.weights.support import small_files


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_CHECKPOINT)


@pytest.fixture(scope="module")
def denoiser(tiny: Checkpoint) -> MMDiT:
    return tiny.load_denoiser(torch.float32)


def components(tiny: Checkpoint, dtype: torch.dtype | None = None) -> list[Component]:
    networks = (tiny.load_denoiser(), tiny.load_encoder(), tiny.load_vae())
    return [Component.of(network, dtype) for network in networks]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_what_the_library_expects(tmp_path: Path) -> None:
    state = {
        "half": torch.randn(3, 5).bfloat16(),
        "eighth": torch.randn(7).to(torch.float8_e5m2),
        "wide": torch.randn(2).double(),
        "transposed": torch.randn(4, 6).T,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, state, {"note": "ä"})
    for key, tensor in load_file(path).items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor.float(), state[key].detach().float())
    assert set(load_file(path)) == set(state)
    for info in read_header(path).values():
        assert info.start % info.torch_dtype.itemsize == 0
    with safe_open(path, framework="pt") as opened:  # pyright: ignore[reportUnknownVariableType]
        assert opened.metadata() == {"format": "pt", "note": "ä"}


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path, denoiser: MMDiT) -> None:
    state: dict[str, Tensor] = denoiser.state_dict()
    write_safetensors(tmp_path / "a", state)
    write_safetensors(tmp_path / "b", dict(reversed(state.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("max_shard_bytes", [10**9, 10**6])
def test_a_checkpoint_survives_the_round_trip(
    tmp_path: Path, tiny: Checkpoint, max_shard_bytes: int
) -> None:
    folder = tmp_path / "deep" / "copy"
    save_checkpoint(
        folder,
        components(tiny),
        tiny.tokenizer_folder,
        extra_files={"petzval.json": "{}", "licences/NOTICE": "n"},
        max_shard_bytes=max_shard_bytes,
    )
    again = Checkpoint.open(folder)
    assert again.denoiser_config == replace(tiny.denoiser_config, inner_dim=128)
    assert again.encoder_config == tiny.encoder_config
    assert again.vae_config == tiny.vae_config
    assert len(again.denoiser_source.files) == (1 if max_shard_bytes == 10**9 else 9)
    for got, expected in zip(components(again), components(tiny), strict=True):
        assert set(got.state) == set(expected.state)
        assert all(torch.equal(got.state[key], expected.state[key]) for key in got.state)
    assert (folder / "licences/NOTICE").read_text(encoding="utf-8") == "n"
    assert entries(folder.parent) == ["copy"]


def test_shards_stay_below_the_limit(tmp_path: Path, denoiser: MMDiT) -> None:
    save_component(tmp_path / "c", Component.of(denoiser), max_shard_bytes=10**6)
    files = list((tmp_path / "c").glob("*.safetensors"))
    assert len(files) == 9
    assert all(file.stat().st_size < 10**6 + 20_000 for file in files)
    index = json.loads(next((tmp_path / "c").glob("*.index.json")).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == TensorSource.open(tmp_path / "c").num_bytes


def test_parameters_take_the_dtype_and_statistics_keep_theirs(
    tmp_path: Path, tiny: Checkpoint
) -> None:
    save_component(tmp_path / "vae", Component.of(tiny.load_vae(), torch.bfloat16))
    infos = TensorSource.open(tmp_path / "vae").infos
    assert infos["decoder.conv_in.weight"].dtype == "BF16"
    assert infos["bn.running_var"].dtype == "F32"
    assert infos["bn.num_batches_tracked"].dtype == "I64"


def test_a_text_encoder_can_be_packed(tmp_path: Path, tiny: Checkpoint) -> None:
    dense = Component.of(tiny.load_encoder(all_layers=True))
    config = replace(tiny.encoder_config, packed_experts=True)
    packed = Component(config=config, state=encode_state(dense.state))
    save_component(tmp_path / "te", packed)
    again, source = open_encoder(tmp_path / "te")
    assert again == config
    assert published_json(again)["quantization_config"]["quant_method"] == "mxfp4"
    experts = sum(
        i.num_bytes for k, i in source.infos.items() if k.endswith(("_blocks", "_scales"))
    )
    before = sum(t.nbytes for k, t in dense.state.items() if k.endswith("_proj"))
    assert experts == before * 17 // (4 * 32)


def test_wrong_tensors_are_not_written(tmp_path: Path, denoiser: MMDiT) -> None:
    whole = Component.of(denoiser)
    for key, tensor, message in (
        ("img_in.weight", None, "key 'img_in.weight' is missing; nothing was written"),
        ("img_in.weight", torch.zeros(2), "has shape [2], expected [128, 128]"),
        ("extra", torch.zeros(2), "key 'extra' is unknown"),
    ):
        state = {k: v for k, v in whole.state.items() if k != key}
        state |= {} if tensor is None else {key: tensor}
        with pytest.raises(CheckpointError) as caught:
            save_component(tmp_path / "c", replace(whole, state=state))
        assert message in caught.value.message
    assert entries(tmp_path) == []


def test_a_checkpoint_has_three_components(tmp_path: Path, denoiser: MMDiT) -> None:
    with pytest.raises(ValueError, match="one denoiser, text encoder and vae"):
        save_checkpoint(tmp_path / "c", [Component.of(denoiser)], tmp_path)


def test_nothing_is_replaced_unasked(tmp_path: Path, denoiser: MMDiT) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="already exists; nothing was written"):
        save_component(folder, Component.of(denoiser))
    with pytest.raises(CheckpointError, match="holds other things than weights"):
        save_component(folder, Component.of(denoiser), overwrite=True)
    assert entries(folder) == ["mine"]
    (folder / "mine").unlink()
    save_component(folder, Component.of(denoiser), overwrite=True)
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    save_component(folder, Component.of(denoiser), overwrite=True)  # a folder of weights is whole
    assert entries(folder) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert entries(tmp_path) == ["c"]
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a file; nothing was written"):
        save_component(tmp_path / "file", Component.of(denoiser), overwrite=True)


def test_a_write_that_stops_half_way_leaves_what_was_there(tmp_path: Path, denoiser: MMDiT) -> None:
    folder = tmp_path / "c"
    save_component(folder, Component.of(denoiser, torch.bfloat16))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with small_files(10**6), pytest.raises(CheckpointError, match="what was there is unchanged"):
        save_component(folder, Component.of(denoiser), overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert entries(tmp_path) == ["c"]


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "make room on the disk"), (errno.EROFS, "a folder that can be written to")],
)
def test_a_full_or_read_only_disk(
    tmp_path: Path, denoiser: MMDiT, monkeypatch: pytest.MonkeyPatch, code: int, hint: str
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(CheckpointError) as caught:
        save_component(tmp_path / "c", Component.of(denoiser))
    assert os.strerror(code) in caught.value.message
    assert hint in caught.value.hint
    assert entries(tmp_path) == []


def test_a_file_in_place_of_a_parent_folder(tmp_path: Path, denoiser: MMDiT) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not written"):
        save_component(tmp_path / "file" / "c", Component.of(denoiser))


def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, denoiser: MMDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    save_component(folder, Component.of(denoiser, torch.bfloat16))
    before = (folder / "config.json").stat().st_ino
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        save_component(folder, Component.of(denoiser), overwrite=True)
    assert (folder / "config.json").stat().st_ino == before
    assert entries(tmp_path) == ["c"]
