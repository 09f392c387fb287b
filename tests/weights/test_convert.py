"""Formats are written so that they read back: bit for bit where they can be, all or nothing."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from petzval.errors import CheckpointError, MissingExtraError, RequestError
from petzval.weights.assembly import assemble, find_tokenizer
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import OpenComponent, open_component
from petzval.weights.convert import convert_checkpoint, convert_component
from petzval.weights.formats import Kind, Target
from petzval.weights.header import read_metadata
from tests.support import TINY_CHECKPOINT
from tests.weights.formats import (
    PACKED_ENCODER,
    comfyui_encoder,
    gguf_encoder,
    is_matrix,
    original_vae,
    saved,
    settings,
    stored,
)
from tests.weights.support import copy_checkpoint, small_files


def tiny(kind: Kind) -> OpenComponent:
    return open_component(TINY_CHECKPOINT, kind)


def same(first: OpenComponent, second: OpenComponent) -> bool:
    assert set(first.source) == set(second.source)
    return all(torch.equal(first.source.read(key), second.source.read(key)) for key in first.source)


def test_comfyuis_single_file_comes_back_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "lens.safetensors"
    convert_component(tiny("denoiser"), file, "comfyui")
    again = open_component(file)
    assert (again.kind, again.config, again.packings) == ("denoiser", tiny("denoiser").config, ())
    assert same(again, tiny("denoiser"))
    assert set(load_file(file)) == set(stored("denoiser"))
    assert "petzval.config" in read_metadata(file)


def test_a_dtype_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    convert_component(tiny("denoiser"), file, "comfyui", dtype=torch.bfloat16)
    state = load_file(file)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    exact = stored("denoiser")
    assert all(torch.equal(state[key], exact[key].bfloat16()) for key in state)


def test_scaled_fp8_is_stable_and_marked_as_comfyui_marks_it(tmp_path: Path) -> None:
    file, twice = tmp_path / "fp8.safetensors", tmp_path / "twice.safetensors"
    convert_component(tiny("denoiser"), file, "comfyui-fp8", dtype=torch.bfloat16)
    state = load_file(file)
    packed = [key for key in state if is_matrix(key)]
    assert len(packed) == 3 * 10  # blocks x (4 of attention, 2 x 3 of the feed-forwards)
    for key in packed:
        layer = key.removesuffix(".weight")
        assert state[key].dtype == torch.float8_e4m3fn
        assert state[f"{layer}.weight_scale"].shape == ()
        assert bytes(state[f"{layer}.comfy_quant"].tolist()) == b'{"format": "float8_e4m3fn"}'
    kept = [key for key in stored("denoiser") if key not in packed]
    assert {state[key].dtype for key in kept} == {torch.bfloat16}
    # What was rounded once is not rounded again.
    convert_component(open_component(file), twice, "comfyui-fp8")
    again = load_file(twice)
    assert all(torch.equal(again[k].view(torch.uint8), state[k].view(torch.uint8)) for k in packed)


def test_gguf_is_what_the_formats_library_makes_of_the_numbers(tmp_path: Path) -> None:
    file, twice = tmp_path / "lens.gguf", tmp_path / "twice.gguf"
    convert_component(tiny("denoiser"), file, "gguf-q8_0")
    exact = stored("denoiser")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert set(tensors) == set(exact)
    for key, tensor in tensors.items():
        kind = tensor.tensor_type.name
        if exact[key].dim() == 1:
            assert kind == "F32", key
        elif key.startswith("transformer_blocks.") and exact[key].shape[1] % 32 == 0:
            assert kind == "Q8_0", key
        else:
            assert kind == "BF16", key
        expected = gguf.quantize(exact[key].float().numpy(), tensor.tensor_type)
        assert bytes(tensor.data.tobytes()) == expected.tobytes(), key
    convert_component(open_component(file), twice, "gguf-q8_0", dtype=torch.float32)
    first, second = open_component(file), open_component(twice)
    assert first.config == second.config == tiny("denoiser").config
    assert same(first, second)


def test_an_autoencoder_under_the_originals_names(tmp_path: Path) -> None:
    file = tmp_path / "vae.safetensors"
    convert_component(tiny("vae"), file, "comfyui", dtype=torch.bfloat16)
    written, expected = load_file(file), original_vae()
    assert {key: tensor.shape for key, tensor in written.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    # Statistics keep their precision whatever is asked for.
    assert torch.equal(written["bn.running_var"], expected["bn.running_var"])
    assert written["decoder.conv_in.weight"].dtype == torch.bfloat16
    assert open_component(file).config == tiny("vae").config


def test_parts_of_four_formats_become_one_folder(tmp_path: Path) -> None:
    convert_component(tiny("denoiser"), tmp_path / "d", "comfyui-fp8")
    encoder = saved(tmp_path / "e", comfyui_encoder(), settings("encoder"))
    vae = saved(tmp_path / "v", original_vae(), settings("vae"))
    assembled = assemble(tmp_path / "d", encoder, vae, None, keep=("mxfp4",))
    ticks: list[tuple[int, int]] = []
    convert_checkpoint(
        assembled,
        tmp_path / "whole",
        extra_files={"NOTICE": "whose it is\n"},
        progress=lambda done, total: ticks.append((done, total)),
    )
    total = sum(map(len, (assembled.denoiser_source, assembled.encoder_source)))
    total += len(assembled.vae_source)
    assert ticks == [(i + 1, total) for i in range(total)]
    whole = Checkpoint.open(tmp_path / "whole")
    assert (tmp_path / "whole" / "NOTICE").read_text(encoding="utf-8") == "whose it is\n"
    assert whole.denoiser_config == assembled.denoiser_config
    assert whole.tokenizer_json == Checkpoint.open(TINY_CHECKPOINT).tokenizer_json
    key = "transformer_blocks.0.attn.img_qkv.weight"
    written = whole.denoiser_source.read(key)
    assert written.dtype == torch.bfloat16  # what was quantised
    assert torch.equal(written, assembled.denoiser_source.read(key, torch.bfloat16))
    assert whole.vae_source.infos["decoder.conv_in.weight"].dtype == "F32"  # what was not


def test_nvfp4_experts_are_decoded_first(tmp_path: Path) -> None:
    file = saved(tmp_path / "e", comfyui_encoder(), settings("encoder"))
    with pytest.raises(CheckpointError, match="NVFP4 experts have no place"):
        convert_component(open_component(file), tmp_path / "out", "folder")
    assert not (tmp_path / "out").exists()


def test_gguf_experts_in_mxfp4_become_the_published_folder(tmp_path: Path) -> None:
    file = gguf_encoder(tmp_path / "e.gguf", "MXFP4")
    convert_component(open_component(file), tmp_path / "out", "folder", dtype=torch.bfloat16)
    assert same(open_component(tmp_path / "out"), open_component(PACKED_ENCODER))


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("encoder", "comfyui"),
        ("encoder", "gguf-q8_0"),
        ("vae", "comfyui-fp8"),
        ("vae", "gguf-q8_0"),
    ],
)
def test_formats_that_a_part_does_not_have(tmp_path: Path, kind: Kind, target: Target) -> None:
    with pytest.raises(RequestError, match=f"the {kind} is not written as {target}"):
        convert_component(tiny(kind), tmp_path / "x", target)


def test_nothing_is_overwritten_unasked_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("comfyui", "comfyui-fp8", "gguf-q8_0"):
        file = tmp_path / target
        file.write_bytes(b"mine")
        with pytest.raises(CheckpointError, match="already exists"):
            convert_component(tiny("denoiser"), file, target)
        component = tiny("denoiser")

        def fail(key: str, *_: object) -> torch.Tensor:
            raise CheckpointError(f"{key} cannot be read")

        monkeypatch.setattr(component.source, "read", fail)
        with pytest.raises(CheckpointError, match="cannot be read"):
            convert_component(component, file, target, overwrite=True)
        assert file.read_bytes() == b"mine"
        convert_component(tiny("denoiser"), file, target, overwrite=True)
        assert open_component(file).kind == "denoiser"
        with pytest.raises(CheckpointError, match="is a folder, expected the name of a file"):
            convert_component(tiny("denoiser"), tmp_path, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comfyui",
        "comfyui-fp8",
        "gguf-q8_0",
    ]


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in ("comfyui", "comfyui-fp8", "gguf-q8_0"):
        with pytest.raises(CheckpointError, match="is a device, expected the name of a file"):
            convert_component(tiny("denoiser"), pipe, target, overwrite=True)
    assert pipe.is_fifo()


def test_a_folder_that_holds_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    copy = copy_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="which is read; nothing was written"):
        convert_component(open_component(copy / "text_encoder"), copy, "folder", overwrite=True)
    encoder, vae = copy / "text_encoder", copy / "vae"
    parts = assemble(copy / "transformer", encoder, vae, copy / "tokenizer")
    with pytest.raises(CheckpointError, match="which is read; nothing was written"):
        convert_checkpoint(parts, copy, overwrite=True)
    convert_component(open_component(encoder), encoder, "folder", overwrite=True)
    convert_checkpoint(Checkpoint.open(copy), copy, overwrite=True)
    assert Checkpoint.open(copy).denoiser_config == Checkpoint.open(TINY_CHECKPOINT).denoiser_config


def test_a_tokenizer_inside_a_file_goes_along(tmp_path: Path) -> None:
    state = comfyui_encoder()
    file = saved(tmp_path / "encoder.safetensors", state, settings("encoder"))
    convert_component(open_component(file, keep=("mxfp4",)), tmp_path / "folder", "folder")
    folder = open_component(tmp_path / "folder", "encoder")
    assert find_tokenizer(None, folder) == tmp_path / "folder"
    written = (tmp_path / "folder" / "tokenizer.json").read_bytes()
    assert written == state["tokenizer_json"].numpy().tobytes()


def test_gguf_that_stops_half_way_says_why(tmp_path: Path) -> None:
    with small_files(10**6), pytest.raises(CheckpointError) as caught:
        convert_component(tiny("denoiser"), tmp_path / "x.gguf", "gguf-q8_0")
    reason = os.strerror(errno.EFBIG)
    assert f"x.gguf: not written ({reason}); what was there is unchanged" in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_called_one_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(_: Path) -> Generator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr("petzval.weights.gguf_writing.replacing_file", full)
    with pytest.raises(CheckpointError) as caught:
        convert_component(tiny("denoiser"), tmp_path / "x.gguf", "gguf-q8_0")
    assert f"not written ({os.strerror(errno.ENOSPC)})" in caught.value.message
    assert caught.value.hint == "make room on the disk"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not written"):
        convert_component(tiny("denoiser"), tmp_path / "file" / "x", "comfyui")


@pytest.mark.parametrize("target", ["comfyui-fp8", "gguf-q8_0"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, target: Target) -> None:
    state = stored("denoiser")
    key = "transformer_blocks.0.img_mlp.w1.weight"
    state[key][0, 0] = float("nan")
    file = saved(tmp_path / "bad", state, settings("denoiser"))
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.0\.img_mlp\.w1\.weight"):
        convert_component(open_component(file), tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_answered_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"petzval\[gguf\]"):
        convert_component(tiny("denoiser"), tmp_path / "x", "gguf-q8_0")
