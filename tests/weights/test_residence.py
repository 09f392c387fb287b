"""Weights that come and go: the same results, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTBlock
from petzval.weights import residence
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import read_lora
from petzval.weights.manifest import build_on_meta
from petzval.weights.residence import (
    EmbeddingRows,
    StreamedWeights,
    WeightReader,
    fill,
    vacate,
)
from petzval.weights.tensors import TensorSource
from tests.weights.support import velocity_of

META = torch.device("meta")


@pytest.fixture(scope="module")
def checkpoint(golden_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(golden_checkpoint)


def _denoiser(checkpoint: Checkpoint) -> MMDiT:
    model = build_on_meta(checkpoint.denoiser_config)
    assert isinstance(model, MMDiT)
    return model.eval()


def _held(module: nn.Module) -> int:
    """Bytes that are not on the meta device."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors if tensor.device != META)


def _modulation_layers(model: MMDiT) -> list[tuple[str, nn.Module]]:
    numbered = list(enumerate(model.transformer_blocks))
    return [
        (f"transformer_blocks.{index}.{name}.", getattr(block, name))
        for name in ("img_mod", "txt_mod")
        for index, block in numbered
    ]


def _all(model: MMDiT) -> list[MMDiTBlock]:
    return [block for block in model.transformer_blocks if isinstance(block, MMDiTBlock)]


def _blocks(model: MMDiT) -> list[tuple[str, nn.Module]]:
    return [(f"transformer_blocks.{i}.", block) for i, block in enumerate(model.transformer_blocks)]


def test_filled_and_put_out_and_filled_again(checkpoint: Checkpoint) -> None:
    model = _denoiser(checkpoint)
    reader = WeightReader(checkpoint.denoiser_source, torch.float32)
    expected = velocity_of(checkpoint.load_denoiser(torch.float32))
    for _ in range(2):
        fill(model, reader)
        assert torch.equal(velocity_of(model), expected)
        vacate(model)
        assert _held(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_and_folded_equals_resident(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    expected = velocity_of(checkpoint.load_denoiser(dtype))
    model = _denoiser(checkpoint)
    reader = WeightReader(checkpoint.denoiser_source, dtype)
    folded = _modulation_layers(model)
    without = [layer for _, layer in folded]
    held: list[int] = []
    fill(model, reader, without=list(model.transformer_blocks))
    base = _held(model)
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda *_: held.append(_held(model)))
    StreamedWeights(folded, reader)
    streamed = StreamedWeights(_blocks(model), reader, without=without)
    assert torch.equal(velocity_of(model), expected)
    assert torch.equal(velocity_of(model), expected)  # a second step
    assert _held(model) == base
    blocks = [sum(p.nbytes for p in block.attn.parameters()) for block in _all(model)]
    assert max(held) - base < 6 * max(blocks)  # one block at a time
    streamed.release()


def test_the_thread_of_an_accelerator_brings_the_same(checkpoint: Checkpoint) -> None:
    """What CUDA does, without pinned memory and stream: the next layer comes while one runs."""
    expected = velocity_of(checkpoint.load_denoiser(torch.float32))
    model = _denoiser(checkpoint)
    reader = WeightReader(checkpoint.denoiser_source, torch.float32)
    fill(model, reader, without=list(model.transformer_blocks))
    base = _held(model)
    folded = _modulation_layers(model)
    parts = (
        StreamedWeights(folded, reader),
        StreamedWeights(
            _blocks(model), reader, without=[layer for _, layer in folded], cyclic=True
        ),
    )
    for part in parts:
        part._fetcher = residence._Fetcher(reader, None)
    for _ in range(2):
        assert torch.equal(velocity_of(model), expected)
        assert [list(part._pending) for part in parts] == [[], [0]]  # for the next step
    for part in parts:
        part.release()
        assert part._pending == {}
    assert _held(model) == base


@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("ahead", [False, True])
def test_layers_that_stay_are_passed_over(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, kept: tuple[int, ...], ahead: bool
) -> None:
    """Neither read nor put out, and the next one that comes is fetched while they run."""
    expected = velocity_of(checkpoint.load_denoiser(torch.float32))
    model = _denoiser(checkpoint)
    reader = WeightReader(checkpoint.denoiser_source, torch.float32)
    blocks, without = _blocks(model), [layer for _, layer in _modulation_layers(model)]
    comes = [index for index in range(len(blocks)) if index not in kept]
    fill(model, reader, without=[blocks[index][1] for index in comes])
    for name, layer in _modulation_layers(model):
        fill(layer, reader, name)
    there = _held(model)
    stream = StreamedWeights(blocks, reader, without=without, kept=kept, cyclic=True)
    stream._fetcher = residence._Fetcher(reader, None) if ahead else None
    read: list[int] = []
    _read = residence._read

    def watched(owners: Iterable[tuple[str, nn.Module]], reader: WeightReader) -> Iterator[object]:
        owners = list(owners)
        read.append(int(owners[0][0].split(".")[1]))
        return _read(owners, reader)

    monkeypatch.setattr(residence, "_read", watched)
    for _ in range(2):
        assert torch.equal(velocity_of(model), expected)
    for index in range(len(blocks)):
        with stream.visit(index):
            assert _held(blocks[index][1]) > 0
    assert list(stream._pending) == (comes[:1] if ahead else [])
    assert read[: 3 * len(comes)] == 3 * comes
    assert comes or read == []
    stream.release()
    assert _held(model) == there


def test_a_layer_that_fails_is_put_out(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _denoiser(checkpoint)
    reader = WeightReader(checkpoint.denoiser_source, torch.float32)
    fill(model, reader, without=list(model.transformer_blocks))
    base = _held(model)
    StreamedWeights(_blocks(model), reader, without=[block.img_mod for block in _all(model)])
    fill(_all(model)[0].img_mod, reader, "transformer_blocks.0.img_mod.")

    def fail(*_: object, **__: object) -> None:
        assert _held(_all(model)[0]) > 0
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_all(model)[0], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _all(model)[0]()
    assert _held(model) == base + _held(_all(model)[0].img_mod)


@torch.no_grad()
def test_the_encoder_layer_by_layer_in_mxfp4(goldens: Path) -> None:
    """Streamed from the file, embedding rows looked up in it: bit for bit the resident features."""
    from petzval.weights.checkpoint import load_encoder, match_packing
    from petzval.weights.published import encoder_config_in

    folder = goldens / "checkpoint" / "text_encoder"
    source = TensorSource.open(folder)
    config = match_packing(encoder_config_in(folder), source)
    selected = (1, 2, 4, 5)
    ids = torch.arange(30)[None]
    expected = load_encoder(config, source, selected, torch.float32)(ids)
    model = build_on_meta(config, selected)
    assert isinstance(model, GptOssEncoder)
    model.selected_layers = selected
    reader = WeightReader(source, torch.float32)
    table = model.model.embed_tokens.weight
    stored = source.infos["model.embed_tokens.weight"].torch_dtype
    rows = EmbeddingRows(tuple(table.shape), stored, torch.float32, torch.device("cpu"))
    model.model.embed_tokens = rows  # pyright: ignore[reportAttributeAccessIssue]
    layers = list(model.model.layers)
    fill(model, reader, without=layers)
    StreamedWeights([(f"model.layers.{i}.", layer) for i, layer in enumerate(layers)], reader)
    got = model(ids)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))
    assert _held(model) == rows.weight.nbytes


def test_a_lora_is_added_as_the_resident_network_has_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    layer = "transformer_blocks.1.attn.img_qkv"
    generator = torch.Generator().manual_seed(0)
    halves = {
        f"transformer.{layer}.lora_{name}.weight": torch.randn(shape, generator=generator)
        for name, shape in (("A", (4, 128)), ("B", (384, 4)))
    }
    save_file(halves, tmp_path / "style.safetensors")
    lora = read_lora(tmp_path / "style.safetensors", checkpoint.denoiser_config)
    expected = checkpoint.load_denoiser(torch.float32, loras=[(lora, 0.7)]).state_dict()
    model = _denoiser(checkpoint)
    source = checkpoint.denoiser_source
    fill(model, WeightReader(source, torch.float32, loras=[(lora, 0.7), (lora, 0.0)]))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    plain = checkpoint.load_denoiser(torch.float32).state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], expected[name])]
    assert changed == [f"{layer}.weight"]


def test_a_layer_that_could_not_be_read_is_read_anew(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the thread of an accelerator: an error of its own is told once, and never again."""
    expected = velocity_of(checkpoint.load_denoiser(torch.float32))
    model = _denoiser(checkpoint)
    reader = WeightReader(checkpoint.denoiser_source, torch.float32)
    fill(model, reader, without=list(model.transformer_blocks))
    modulations = _modulation_layers(model)
    for name, layer in modulations:
        fill(layer, reader, name)
    base = _held(model)
    without = [layer for _, layer in modulations]
    stream = StreamedWeights(_blocks(model), reader, without=without, cyclic=True)
    stream._fetcher = residence._Fetcher(reader, None)
    for release in (False, True):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise torch.OutOfMemoryError("CUDA out of memory")

            patch.setattr(residence, "_read", fail)
            with pytest.raises(torch.OutOfMemoryError):
                velocity_of(model)
            if release:
                stream._fetch(0)
                stream.release()
        assert _held(model) == base
        assert torch.equal(velocity_of(model), expected)
        stream.release()


def test_a_visited_layer_that_could_not_be_read_is_put_out(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _denoiser(checkpoint)
    stream = StreamedWeights(
        _blocks(model), WeightReader(checkpoint.denoiser_source, torch.float32)
    )

    def half(module: nn.Module, *given: object) -> None:
        fill(module, *given)  # pyright: ignore[reportArgumentType]
        raise MemoryError

    monkeypatch.setattr(residence, "fill", half)
    with pytest.raises(MemoryError), stream.visit(0):
        raise AssertionError("it is not there")
    assert _held(model) == 0
