"""What float8 does to mini: the error that the documentation states, as a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from petzval.inference.pipeline import Pipeline
from petzval.kernels import dispatch, reference
from petzval.models.mmdit import MMDiT
from petzval.models.quantised import BLOCK_LINEARS, quantised

SMALL: dict[str, Any] = {"size": "128x128", "steps": 4, "guidance": 1.0, "seed": 1}


def _in_float8(denoiser: MMDiT) -> None:
    for block in denoiser.transformer_blocks:
        for name in BLOCK_LINEARS:
            linear = block.get_submodule(name)
            assert isinstance(linear, torch.nn.Linear)
            block.set_submodule(name, quantised(linear, "float8"))


def _psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    error = np.mean((ours.astype(float) - theirs.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


@torch.no_grad()
def test_error_of_the_velocity_and_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = Pipeline.load("mini", device="cpu", dtype="float32")
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: Any, output: Any) -> None:
        seen.append(output)

    def first_velocity() -> Tensor:
        seen.clear()
        hook = drawer.denoiser.register_forward_hook(keep)
        picture = drawer.generate("a red apple on a white background", **SMALL)[0]
        hook.remove()
        pictures.append(picture.pixels)
        return seen[0]

    pictures: list[np.ndarray] = []
    exact = first_velocity()
    _in_float8(drawer.denoiser)
    products: dict[str, Callable[..., Tensor]] = {
        "weights": dispatch.float8_linear,  # a CPU decodes them
        "both": reference.float8_linear,  # what a GPU with float8 products does, emulated
    }
    limits = {"weights": (0.03, 36.0), "both": (0.04, 33.0)}
    for name, product in products.items():
        monkeypatch.setattr(dispatch, "float8_linear", product)
        got = first_velocity()
        error, psnr = float((got - exact).norm() / exact.norm()), _psnr(pictures[-1], pictures[0])
        most, least = limits[name]
        assert 1e-4 < error < most
        assert psnr > least
