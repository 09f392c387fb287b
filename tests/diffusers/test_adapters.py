"""LoRAs by diffusers' names make the pictures that `petzval.Pipeline` makes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

import petzval
from petzval.diffusers import LensPipeline
from petzval.errors import CheckpointError, PetzvalError, RequestError
from tests.hub_server import serving
from tests.inference.test_loras import write_lora

Pixels = Any


@pytest.fixture(scope="module")
def styles(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("styles")
    first, second = (folder / f"{name}.safetensors" for name in ("ink", "chalk"))
    return write_lora(first, golden_checkpoint, 0), write_lora(second, golden_checkpoint, 1)


@pytest.fixture
def pipe(golden_checkpoint: Path) -> LensPipeline:
    loaded = LensPipeline.from_pretrained(golden_checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipe: LensPipeline) -> Pixels:
    generator = torch.Generator().manual_seed(7)
    options: dict[str, Any] = {"height": 64, "width": 48, "num_inference_steps": 2}
    result = pipe("a red fox", generator=generator, guidance_scale=4.0, **options)
    return np.asarray(cast("Any", result).images[0])


def ours(checkpoint: Path, loras: Any, *, live: bool = True, dtype: str = "float32") -> Pixels:
    pipeline = petzval.load(checkpoint, device="cpu", dtype=dtype, lora=loras, live_lora=live)
    [picture] = pipeline.generate("a red fox", seed=7, size="48x64", steps=2, guidance=4.0)
    return picture.pixels


def test_loaded_weighed_and_unloaded(
    pipe: LensPipeline, golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    plain = draw(pipe)
    pipe.load_lora_weights(styles[0], adapter_name="ink")
    first = draw(pipe)
    assert np.array_equal(first, ours(golden_checkpoint, styles[0]))
    assert not np.array_equal(first, plain)
    pipe.load_lora_weights(str(styles[1].parent), "chalk", weight_name=styles[1].name)
    assert pipe.get_active_adapters() == ["chalk"]
    assert pipe.get_list_adapters() == {"transformer": ["ink", "chalk"]}
    assert np.array_equal(draw(pipe), ours(golden_checkpoint, styles[1]))
    pipe.set_adapters(["ink", "chalk"], [0.5, -1.0])
    both = [(styles[0], 0.5), (styles[1], -1.0)]
    assert np.array_equal(draw(pipe), ours(golden_checkpoint, both))
    pipe.set_adapters("ink")
    assert np.array_equal(draw(pipe), first)
    pipe.disable_lora()
    assert np.array_equal(draw(pipe), plain)
    pipe.enable_lora()
    assert np.array_equal(draw(pipe), first)
    pipe.delete_adapters("ink")
    assert pipe.get_active_adapters() == []
    assert np.array_equal(draw(pipe), plain)
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    assert np.array_equal(draw(pipe), plain)


def test_tensors_in_place_of_a_file(
    pipe: LensPipeline, golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    pipe.load_lora_weights(load_file(styles[0]))
    assert pipe.get_active_adapters() == ["default_0"]
    assert np.array_equal(draw(pipe), ours(golden_checkpoint, styles[0]))


def test_a_cast_after_loading_casts_them_too(
    pipe: LensPipeline, golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    pipe.load_lora_weights(styles[0])
    pipe.to(torch.bfloat16)
    assert np.array_equal(draw(pipe), ours(golden_checkpoint, styles[0], dtype="bfloat16"))


def test_fused_and_back(
    pipe: LensPipeline, golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    before = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
    for style, name in zip(styles, ("ink", "chalk"), strict=True):
        pipe.load_lora_weights(style, name)
    pipe.set_adapters(["ink", "chalk"], [0.5, -1.0])
    live = draw(pipe)
    pipe.fuse_lora(lora_scale=0.5)
    assert pipe.num_fused_loras == 2
    both = [(styles[0], 0.25), (styles[1], -0.5)]
    assert np.array_equal(draw(pipe), ours(golden_checkpoint, both, live=False))
    with pytest.raises(RequestError, match="LoRAs are fused: ink, chalk"):
        pipe.set_adapters("ink")
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert np.array_equal(draw(pipe), live)
    pipe.fuse_lora(adapter_names=["chalk"])
    assert np.array_equal(draw(pipe), ours(golden_checkpoint, [(styles[1], -1.0)], live=False))
    pipe.unload_lora_weights()
    after = pipe.transformer.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_mistakes_are_told(pipe: LensPipeline, styles: tuple[Path, Path]) -> None:
    pipe.load_lora_weights(styles[0], "ink")
    mistakes: list[tuple[Any, str]] = [
        (lambda: pipe.load_lora_weights("absent"), "does not exist"),
        (lambda: pipe.load_lora_weights(styles[0], "ink"), "named 'ink' already"),
        (lambda: pipe.load_lora_weights(styles[0], hotswap=True), "no argument 'hotswap'"),
        (lambda: pipe.load_lora_weights({"a": 3}), "is no tensor"),
        (lambda: pipe.set_adapters("chalk"), "no LoRA is named 'chalk'"),
        (lambda: pipe.set_adapters(["ink"], [1.0, 2.0]), "2 weights for 1 LoRAs"),
        (lambda: pipe.set_adapters("ink", 1e6), "must be between"),
        (lambda: pipe.fuse_lora(["text_encoder"]), "into the transformer alone"),
        (lambda: pipe.fuse_lora(adapter_names=["chalk"]), "no LoRA is named 'chalk'"),
    ]
    for call, words in mistakes:
        with pytest.raises(RequestError, match=words):
            call()
    with pytest.raises(CheckpointError, match="^the LoRA's tensors: key 'a' belongs to nothing"):
        pipe.load_lora_weights({"a": torch.zeros(2, 2)})
    assert pipe.get_active_adapters() == ["ink"]


def test_from_a_repository_and_afterwards_from_the_cache(
    pipe: LensPipeline,
    styles: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(tmp_path, monkeypatch) as hub:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
        ink = styles[0].read_bytes()
        hub.files["someone/Ink"] = {"sub/ink.safetensors": ink, "sub/ink.bin": b"pickle"}
        place: dict[str, Any] = {"weight_name": "ink.safetensors", "subfolder": "sub"}
        with pytest.raises(PetzvalError, match="is not in"):
            pipe.load_lora_weights("someone/Ink", local_files_only=True, **place)
        pipe.load_lora_weights("someone/Ink", "ink", revision="main", **place)
        asked = len(hub.log)
        pipe.load_lora_weights("someone/Ink", "again", **place)
        assert len(hub.log) == asked and not hub.asked_for(".bin")
        assert pipe.get_list_adapters() == {"transformer": ["ink", "again"]}
        refused: list[tuple[dict[str, Any], str]] = [
            ({"weight_name": "ink.bin"}, "no plain path to a safetensors file"),
            ({"weight_name": "../ink.safetensors"}, "no plain path"),
            ({"weight_name": "*.safetensors"}, "no plain path"),
            ({}, "holds no pytorch_lora_weights.safetensors"),
            (place | {"revision": "../x"}, "neither a branch nor a commit"),
        ]
        for options, words in refused:
            with pytest.raises(PetzvalError, match=words) as caught:
                pipe.load_lora_weights("someone/Ink", **options)
            assert "petzval pull" not in caught.value.hint
        monkeypatch.setattr("petzval.diffusers.loading.LORA_LIMIT_BYTES", len(ink) - 1)
        hub.files["someone/Large"] = {"pytorch_lora_weights.safetensors": ink}
        with pytest.raises(RequestError, match="larger than any LoRA"):
            pipe.load_lora_weights("someone/Large")
        assert not hub.asked_for("pytorch_lora_weights.safetensors")


def test_the_strength_of_pefts_files_comes_with_them(
    pipe: LensPipeline,
    styles: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(tmp_path, monkeypatch) as hub:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
        plain = {key: t for key, t in load_file(styles[0]).items() if not key.endswith("alpha")}
        content = save(plain)
        file, settings = "adapter_model.safetensors", "adapter_config.json"
        hub.files["someone/Peft"] = {file: content, settings: b'{"r": 2, "lora_alpha": 8}'}
        hub.files["someone/Bare"] = {file: content}
        for name in ("Peft", "Bare"):
            pipe.load_lora_weights(f"someone/{name}", name, weight_name=file)
        layer = "transformer_blocks.0.attn.img_qkv"
        strong, bare = (pipe._adapters[name].changes[layer].product() for name in ("Peft", "Bare"))
        assert torch.allclose(strong, 4 * bare, atol=1e-5)
        # Another program may have fetched the one file alone.
        [beside] = tmp_path.rglob(settings)
        beside.unlink()
        pipe.load_lora_weights("someone/Peft", "again", weight_name=file)
        assert torch.equal(pipe._adapters["again"].changes[layer].product(), strong)
