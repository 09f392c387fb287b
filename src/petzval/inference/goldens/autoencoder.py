"""The autoencoder: tokens to pixels, pixels to tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from petzval.inference.goldens.case import (
    IMAGE_LIMIT,
    PIXEL_LIMIT,
    STATE_LIMIT,
    CaseResult,
    absolute,
    judge,
)
from petzval.inference.goldens.folder import GoldenFile, GoldenFolder, Subject, nothing_unread
from petzval.inference.numerics import to_pixels
from petzval.models.latents import denormalise, normalise, patchify, unpatchify
from petzval.models.vae import Autoencoder


def check_autoencoder(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Decoding with its states, 8-bit pixels, and encoding."""
    stored = golden.tensors("vae.safetensors")
    for case in stored.cases("hw"):
        yield from _check_decoding(stored, case, subject.autoencoder)
    for case in stored.cases("mode"):
        yield from _check_encoding(stored, case, subject.autoencoder)
    yield from nothing_unread("vae", stored)


def _check_decoding(stored: GoldenFile, case: str, vae: Autoencoder) -> Iterator[CaseResult]:
    height, width = (int(side) for side in stored[f"{case}.hw"])
    statistics = (vae.bn.running_mean, vae.bn.running_var, vae.bn.eps)
    tokens = denormalise(stored[f"{case}.tokens"], *statistics)
    latents = unpatchify(tokens, (height, width))
    states = {"latent_denorm": latents}
    handles = [
        vae.post_quant_conv.register_forward_hook(_keeper(states, "post_quant")),
        vae.decoder.mid_block.register_forward_hook(_keeper(states, "mid_block")),
    ]
    try:
        image = vae.decode(latents)
    finally:
        for handle in handles:
            handle.remove()
    for name, got in states.items():
        if f"{case}.{name}" in stored:
            error = absolute(got, stored[f"{case}.{name}"])
            yield judge(f"vae/{case}.{name}", error, STATE_LIMIT)
    yield judge(f"vae/{case}.image", absolute(image, stored[f"{case}.image"]), IMAGE_LIMIT)
    if f"{case}.image_u8" in stored:
        pixels = torch.from_numpy(to_pixels(image))
        error = absolute(pixels, stored[f"{case}.image_u8"])
        yield judge(f"vae/{case}.image_u8", error, PIXEL_LIMIT, "steps of 255")


def _check_encoding(stored: GoldenFile, case: str, vae: Autoencoder) -> Iterator[CaseResult]:
    mode = vae.encode(stored[f"{case}.image"])
    yield judge(f"vae/{case}.mode", absolute(mode, stored[f"{case}.mode"]), IMAGE_LIMIT)
    tokens = normalise(patchify(mode), vae.bn.running_mean, vae.bn.running_var, vae.bn.eps)
    yield judge(f"vae/{case}.tokens", absolute(tokens, stored[f"{case}.tokens"]), IMAGE_LIMIT)


def _keeper(states: dict[str, Tensor], name: str) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        states[name] = output

    return keep
