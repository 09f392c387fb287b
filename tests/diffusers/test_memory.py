"""Decoding with less memory makes the same pictures; float16 is refused everywhere alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.diffusers import LensAutoencoder, LensPipeline, LensTransformer2DModel
from petzval.errors import RequestError
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.convert import convert_checkpoint
from tests.weights.formats import FILES, nvfp4, quantised_denoiser, saved
from tests.weights.support import copy_checkpoint, velocity_of


@pytest.fixture(scope="module")
def pipe(golden_checkpoint: Path) -> LensPipeline:
    loaded = LensPipeline.from_pretrained(golden_checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def latents(num_pictures: int) -> torch.Tensor:
    return torch.randn(num_pictures, 64, 128, generator=torch.Generator().manual_seed(3))


def test_tiling_decodes_in_strips_and_has_no_seams(
    pipe: LensPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petzval.diffusers.memory.DEFAULT_ROWS", 8)
    asked: list[int] = []
    from petzval.inference import decoding

    strips = decoding.decode_in_strips

    def watched(*args: Any, rows: int) -> torch.Tensor:
        asked.append(rows)
        return strips(*args, rows=rows)

    monkeypatch.setattr(decoding, "decode_in_strips", watched)
    whole = pipe.vae.decode_tokens(latents(1), (8, 8))
    assert asked == []
    pipe.enable_vae_tiling()
    tiled = pipe.vae.decode_tokens(latents(1), (8, 8))
    assert asked == [8]
    assert (tiled - whole).abs().max() <= 2e-6 * whole.abs().max()
    pipe.disable_vae_tiling()
    assert torch.equal(pipe.vae.decode_tokens(latents(1), (8, 8)), whole)


def test_slicing_decodes_one_picture_at_a_time(
    pipe: LensPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = pipe.vae.network.decode

    def watched(given: torch.Tensor) -> torch.Tensor:
        sizes.append(len(given))
        return decode(given)

    monkeypatch.setattr(pipe.vae.network, "decode", watched)
    together = pipe.vae.decode_tokens(latents(3), (8, 8))
    pipe.enable_vae_slicing()
    apart = pipe.vae.decode_tokens(latents(3), (8, 8))
    pipe.disable_vae_slicing()
    pipe.vae.decode_tokens(latents(3), (8, 8))
    assert sizes == [3, 1, 1, 1, 3]
    assert apart.shape == together.shape
    assert (apart - together).abs().max() <= 2e-6 * together.abs().max()


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.float16,), {}),
        (("cpu", torch.float16), {}),
        ((), {"dtype": torch.float16}),
        ((), {"torch_dtype": torch.float16}),
    ],
)
def test_to_float16_is_refused_in_the_words_of_from_pretrained(
    pipe: LensPipeline, golden_checkpoint: Path, args: Any, kwargs: Any
) -> None:
    with pytest.raises(RequestError) as loading:
        LensPipeline.from_pretrained(golden_checkpoint, torch_dtype=torch.float16)
    with pytest.raises(RequestError) as casting:
        pipe.to(*args, **kwargs)
    assert str(casting.value) == str(loading.value)
    assert pipe.dtype == torch.float32
    assert pipe.to("cpu") is pipe


def test_networks_alone_refuse_float16_too(golden_checkpoint: Path, tmp_path: Path) -> None:
    for part, kind in (("transformer", LensTransformer2DModel), ("vae", LensAutoencoder)):
        with pytest.raises(RequestError, match="float16 overflows") as caught:
            kind.from_pretrained(golden_checkpoint, subfolder=part, torch_dtype=torch.float16)
        assert "torch.bfloat16" in caught.value.hint
    convert_checkpoint(Checkpoint.open(golden_checkpoint), tmp_path / "half", dtype=torch.float16)
    stored = LensTransformer2DModel.from_pretrained(tmp_path / "half", subfolder="transformer")
    assert stored.dtype == torch.float32


def test_a_quantised_network_alone_has_one_type(tmp_path: Path) -> None:
    coded = copy_checkpoint(tmp_path)
    saved(coded / FILES["denoiser"], quantised_denoiser(nvfp4))
    network = LensTransformer2DModel.from_pretrained(coded, subfolder="transformer")
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    assert torch.isfinite(velocity_of(network.network)).all()
