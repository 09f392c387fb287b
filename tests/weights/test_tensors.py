"""One file or shards, mapped, converted, and never led out of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights import tensors
from petzval.weights.tensors import TensorSource, file_sha256


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(4, 6, generator=generator),
        "b.weight": torch.randn(3, generator=generator).half(),
        "c.weight": torch.randn(2, 2, generator=generator).bfloat16(),
        "d.wide": torch.randn(5, generator=generator).double(),
        "e.small": torch.randn(8, generator=generator).to(torch.float8_e4m3fn),
        "f.count": torch.tensor(7),
        "g.packed": torch.arange(6, dtype=torch.uint8),
    }


def shards(folder: Path, stem: str = "diffusion_pytorch_model") -> Path:
    """Two shards and their index."""
    values = state()
    parts = [dict(list(values.items())[:3]), dict(list(values.items())[3:])]
    places: dict[str, str] = {}
    for i, part in enumerate(parts, start=1):
        name = f"{stem}-{i:05d}-of-00002.safetensors"
        save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return index


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model"])
@pytest.mark.parametrize("sharded", [False, True])
def test_both_namings_one_file_or_shards(tmp_path: Path, stem: str, sharded: bool) -> None:
    if sharded:
        shards(tmp_path, stem)
    else:
        save_file(state(), tmp_path / f"{stem}.safetensors")
    source = TensorSource.open(tmp_path)
    assert len(source.files) == (2 if sharded else 1)
    assert set(source) == set(state())
    assert source.num_bytes == sum(tensor.nbytes for tensor in state().values())
    for key, expected in state().items():
        got = source.read(key)
        assert got.dtype == expected.dtype
        assert torch.equal(got.float(), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_converted_and_integers_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    source = TensorSource.open(tmp_path)
    for key, expected in state().items():
        got = source.read(key, dtype)
        wanted = expected.to(dtype) if expected.is_floating_point() else expected
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


def test_tensors_outlive_the_source_and_never_write_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    before = file_sha256(path)
    source = TensorSource.open(path)
    tensor = source.read("a.weight")
    source.close()
    tensor.zero_()
    assert file_sha256(path) == before
    assert torch.equal(source.read("a.weight"), state()["a.weight"])


def test_pages_are_given_back_while_converting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    monkeypatch.setattr(tensors, "REMAP_BYTES", 1)
    source = TensorSource.open(tmp_path)
    for key, expected in state().items():
        if expected.is_floating_point() and expected.dtype != torch.float64:
            assert torch.equal(source.read(key, torch.float64), expected.double())
            assert not source._handles


def test_the_digest_changes_with_any_part_it_samples(tmp_path: Path) -> None:
    values = state()
    digests: set[str] = set()
    for change in (0.0, 1.0):
        save_file({**values, "a.weight": values["a.weight"] + change}, tmp_path / "x.safetensors")
        digests.add(TensorSource.open(tmp_path / "x.safetensors").digest())
    save_file({**values, "h": torch.zeros(1)}, tmp_path / "x.safetensors")
    digests.add(TensorSource.open(tmp_path / "x.safetensors").digest())
    assert len(digests) == 3


def damaged_index(folder: Path, change: Any) -> None:
    index = shards(folder)
    content = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps(change(content)), encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/outside.safetensors",
        "sub/inside.safetensors",
        "",
        "a\\b.safetensors",
        5,
        None,
    ],
)
def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, name: Any) -> None:
    save_file(state(), tmp_path / "outside.safetensors")
    folder = tmp_path / "component"
    folder.mkdir()
    damaged_index(folder, lambda c: {**c, "weight_map": {**c["weight_map"], "a.weight": name}})
    with pytest.raises(CheckpointError, match="key 'a.weight' points to .* not a file of this"):
        TensorSource.open(folder)


def test_an_index_cannot_lead_out_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "component"
    folder.mkdir()
    shards(folder)
    shard = folder / "diffusion_pytorch_model-00001-of-00002.safetensors"
    shutil.move(shard, tmp_path / "outside.safetensors")
    shard.symlink_to("../outside.safetensors")
    with pytest.raises(CheckpointError, match="it is a link out of the checkpoint"):
        TensorSource.open(folder)


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "models--x" / "snapshots" / "abc" / "transformer"
    blobs = tmp_path / "models--x" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    shards(folder)
    for i, shard in enumerate(sorted(folder.glob("*.safetensors"))):
        shutil.move(shard, blobs / str(i))
        shard.symlink_to(f"../../../blobs/{i}")
    assert set(TensorSource.open(folder)) == set(state())


def test_an_index_to_a_pickle_is_refused(tmp_path: Path) -> None:
    damaged_index(tmp_path, lambda c: {"weight_map": {"a.weight": "pytorch_model.bin"}})
    with pytest.raises(CheckpointError, match="is not safetensors") as caught:
        TensorSource.open(tmp_path)
    assert "pickle" in caught.value.hint


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}, []])
def test_an_index_without_a_map(tmp_path: Path, content: Any) -> None:
    damaged_index(tmp_path, lambda c: content)
    with pytest.raises(CheckpointError, match="has no weight_map"):
        TensorSource.open(tmp_path)


def test_a_broken_index_names_its_line(tmp_path: Path) -> None:
    shards(tmp_path).write_text('{\n"weight_map": {', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json, line 2"):
        TensorSource.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: this shard is missing"):
        TensorSource.open(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    damaged_index(
        tmp_path,
        lambda c: {"weight_map": {**c["weight_map"], "z": c["weight_map"]["a.weight"]}},
    )
    with pytest.raises(CheckpointError, match="key 'z' is missing"):
        TensorSource.open(tmp_path)
    damaged_index(
        tmp_path,
        lambda c: {"weight_map": {k: v for k, v in c["weight_map"].items() if k != "a.weight"}},
    )
    with pytest.raises(CheckpointError, match=r"key 'a\.weight' is not where .* says \(nowhere\)"):
        TensorSource.open(tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "x.pth", "x.pkl"])
def test_a_folder_with_only_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="this is a pickle") as caught:
        TensorSource.open(tmp_path)
    assert "safetensors version" in caught.value.hint


def test_shards_without_an_index_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no safetensors weights here"):
        TensorSource.open(tmp_path)
    shards(tmp_path).unlink()
    with pytest.raises(CheckpointError, match="but no index that names it"):
        TensorSource.open(tmp_path)


def test_a_variant_is_read_and_of_two_none(tmp_path: Path) -> None:
    """diffusers saves with `variant="bf16"` under such names, whole or in shards."""
    index = shards(tmp_path)
    expected = set(TensorSource.open(tmp_path))
    index.rename(tmp_path / "model.safetensors.index.bf16.json")
    assert set(TensorSource.open(tmp_path)) == expected
    save_file(state(), tmp_path / "model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"holds model\.fp16.* and none without such a word"):
        TensorSource.open(tmp_path)
    (tmp_path / "model.safetensors.index.bf16.json").unlink()
    assert set(TensorSource.open(tmp_path)) == set(state())
    save_file(state(), tmp_path / "model.safetensors")
    assert TensorSource.open(tmp_path).files == (tmp_path / "model.safetensors",)


def test_a_folder_of_several_files_wants_a_name(tmp_path: Path) -> None:
    for name in ("lens.safetensors", "lens-turbo.safetensors", "lens.gguf"):
        save_file(state(), tmp_path / name)
    with pytest.raises(CheckpointError, match="lens-turbo.safetensors and lens.gguf and oth") as e:
        TensorSource.open(tmp_path)
    assert e.value.hint == "name the file itself"


def test_a_file_that_shrank_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    source = TensorSource.open(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="key 'a.weight' cannot be read"):
        source.read("a.weight")


def test_the_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_what_the_library_reads_is_what_we_read(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    source = TensorSource.open(tmp_path)
    for key, expected in load_file(tmp_path / "model.safetensors").items():
        assert source.infos[key].shape == tuple(expected.shape)
        assert source.infos[key].torch_dtype == expected.dtype
