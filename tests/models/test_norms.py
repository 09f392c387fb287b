"""Norms and the timestep embedding on recorded inputs small enough to show a wrong epsilon."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.layers import adaptive_layer_norm, timestep_sinusoid
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from tests.support import golden_tensors

BLOCK_NORMS = ("img_norm1", "img_norm2", "txt_norm1", "txt_norm2")
HEAD_NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")


def check(norm: nn.Module, name: str) -> None:
    stored = golden_tensors("norms.safetensors")
    got, expected = norm(stored[f"{name}.x"]), stored[f"{name}.y"]
    # Rows scaled 1e-4: an epsilon of 1e-5 in place of 1e-6 changes them by a factor of 3.
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", BLOCK_NORMS + HEAD_NORMS)
def test_block_norms(denoiser: MMDiT, name: str) -> None:
    check(denoiser.transformer_blocks[0].get_submodule(name), name)


def test_other_norms(denoiser: MMDiT, encoder: GptOssEncoder, autoencoder: Autoencoder) -> None:
    check(denoiser.txt_norm[0], "txt_norm.0")
    check(encoder.model.layers[0].get_submodule("input_layernorm"), "gpt_oss.input_layernorm")
    check(autoencoder.decoder.mid_block.resnets[0].get_submodule("norm1"), "vae.mid_resnet0_norm1")


def test_last_norm_removes_the_mean() -> None:
    stored = golden_tensors("norms.safetensors")
    zero: Tensor = torch.zeros(1, 128)
    got = adaptive_layer_norm(stored["norm_out.norm.x"][None], zero, zero)[0]
    assert torch.allclose(got, stored["norm_out.norm.y"], rtol=1e-4, atol=1e-6)


def test_timestep_embedding(denoiser: MMDiT) -> None:
    stored = golden_tensors("timestep.safetensors")
    assert (timestep_sinusoid(stored["t"]) - stored["sinusoid"]).abs().max() <= 1e-4
    assert (denoiser.time_text_embed(stored["t"]) - stored["temb"]).abs().max() <= 2e-5
