"""The tiny networks of the golden checkpoint, in float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from safetensors.torch import load_file

from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.vae import Autoencoder, AutoencoderConfig
from tests.support import TINY_CHECKPOINT, golden_json


def settings(component: str, config: type) -> dict[str, Any]:
    """The fields of a published config that `config` knows, lists as tuples."""
    known = {field.name for field in dataclasses.fields(config)}
    stored: dict[str, Any] = golden_json(f"checkpoint/{component}/config.json")
    return {
        name: tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        for name, value in stored.items()
        if name in known
    }


@pytest.fixture(scope="session")
def denoiser() -> MMDiT:
    model = MMDiT(MMDiTConfig(**settings("transformer", MMDiTConfig)))
    file = TINY_CHECKPOINT / "transformer/diffusion_pytorch_model.safetensors"
    model.load_state_dict(load_file(file))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def encoder() -> GptOssEncoder:
    config = GptOssConfig.from_json(golden_json("checkpoint/text_encoder/config.json"))
    model = GptOssEncoder(config, (1, 2, 4, 5))
    state = load_file(TINY_CHECKPOINT / "text_encoder/model.safetensors")
    unused = {"lm_head.weight", "model.norm.weight"}
    model.load_state_dict({key: value for key, value in state.items() if key not in unused})
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def autoencoder() -> Autoencoder:
    model = Autoencoder(AutoencoderConfig(**settings("vae", AutoencoderConfig)))
    state = load_file(TINY_CHECKPOINT / "vae/diffusion_pytorch_model.safetensors")
    model.load_state_dict(state)
    return model.requires_grad_(False)
