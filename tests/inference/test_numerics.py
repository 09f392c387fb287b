from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import petzval
from petzval.errors import NumericsError, RequestError
from petzval.flow.noise import SharedNoise, initial_noise
from petzval.flow.schedule import sigmas
from petzval.inference.numerics import (
    NOISE_LIMIT,
    NoiseSource,
    check_finite,
    levels_seen,
    restore_statistics,
    to_pixels,
)
from petzval.inference.parity import PARITIES
from petzval.inference.plan import PlannedImage
from petzval.models.vae import TokenStatistics
from petzval.weights.verify import verify_checkpoint
from tests.support import golden_tensors
from tests.weights.support import copy_checkpoint

TURBO = sigmas(4, 2.291179894)[:-1]


def _image(seed: int, noise_row: int = 0) -> PlannedImage:
    return PlannedImage(index=0, prompt="x", negative_prompt="", seed=seed, noise_row=noise_row)


def test_default_noise_is_the_recorded_one_alone_and_in_company() -> None:
    images = [_image(0), _image(42)]
    drawn = NoiseSource((3, 5), 128, PARITIES["default"], torch.bfloat16).rows(images)
    goldens = golden_tensors("noise.safetensors")
    assert torch.equal(drawn[:1], goldens["seed0_h3_w5.float32"])
    assert torch.equal(drawn[1:], goldens["seed42_h3_w5.float32"])


def test_microsoft_noise_is_drawn_in_the_networks_dtype() -> None:
    drawn = NoiseSource((4, 4), 128, PARITIES["microsoft"], torch.bfloat16).rows([_image(42)])
    assert torch.equal(drawn, golden_tensors("noise.safetensors")["seed42_h4_w4.bfloat16"])


def test_microsoft_rows_are_those_of_one_draw_for_the_batch() -> None:
    generator = torch.Generator("cpu").manual_seed(5)
    batch = torch.randn((4, 15, 64), generator=generator)
    images = [_image(5, row) for row in (0, 3)]
    drawn = NoiseSource((3, 5), 64, PARITIES["microsoft"], torch.float32).rows(images)
    assert torch.equal(drawn, batch[[0, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_drawn_one_by_one_are_those_drawn_at_once(dtype: torch.dtype) -> None:
    at_once = initial_noise([9] * 5, (4, 4), 64, mode="microsoft", dtype=dtype)
    shared = SharedNoise(9, (4, 4), 64, dtype)
    for row in (0, 1, 4, 2, 2, 3):  # in order, with gaps, and back again
        assert torch.equal(shared.row(row)[0], at_once[row])


def test_a_batch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    randn = torch.randn

    def counted(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
        drawn.append(shape[0])
        return randn(shape, **options)

    monkeypatch.setattr(torch, "randn", counted)
    source = NoiseSource((4, 4), 64, PARITIES["microsoft"], torch.float32)
    for row in range(20):
        source.rows([_image(5, row)])
    assert sum(drawn) == 20


def test_a_row_behind_hours_of_others_is_refused_undrawn() -> None:
    forged = [_image(5, 1 << 20)]
    source = NoiseSource((16, 16), 64, PARITIES["microsoft"], torch.float32)
    with pytest.raises(RequestError, match="noise row 1,048,576") as caught:
        source.rows(forged)
    assert "seed" in caught.value.hint
    source.check([_image(5, NOISE_LIMIT // (256 * 64) - 1)])
    NoiseSource((16, 16), 64, PARITIES["default"], torch.float32).check(forged)


def test_comfyui_noise_has_channels_first() -> None:
    generator = torch.Generator("cpu").manual_seed(5)
    grid = torch.randn((1, 64, 3, 5), generator=generator)
    drawn = NoiseSource((3, 5), 64, PARITIES["comfyui"], torch.bfloat16).rows([_image(5)])
    assert torch.equal(drawn[0, 7], grid[0, :, 1, 2])


def test_the_network_is_told_the_level_that_each_program_rounds_to() -> None:
    def told(parity: str, dtype: torch.dtype) -> list[float]:
        return [1000 * level for level in levels_seen(TURBO, PARITIES[parity], dtype).tolist()]

    exact = [1000.0, 967.38404, 908.14394, 767.19993]
    for parity in PARITIES:
        assert told(parity, torch.float32) == pytest.approx(exact, abs=1e-3)
    assert told("default", torch.bfloat16) == pytest.approx(exact, abs=1e-3)
    assert told("microsoft", torch.bfloat16) == [1000.0, 968.75, 906.25, 769.53125]
    comfy = told("comfyui", torch.bfloat16)
    assert comfy == pytest.approx([1000.0, 968.0, 908.0, 764.0], abs=1e-3)


def test_statistics_are_exact_by_default_and_rounded_in_microsoft_mode() -> None:
    statistics = TokenStatistics(64, 1e-4)
    statistics.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    statistics.running_var.fill_(0.7)
    tokens = torch.randn((1, 4, 64), generator=torch.Generator().manual_seed(1))
    exact = tokens * (0.7001) ** 0.5 + statistics.running_mean
    ours = restore_statistics(tokens, statistics, PARITIES["default"], torch.float32)
    assert torch.allclose(ours, exact, atol=1e-6)
    rounded = restore_statistics(tokens, statistics, PARITIES["microsoft"], torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded, exact.bfloat16())
    assert torch.allclose(rounded.float(), exact, atol=0.05)


def test_pixels_are_clamped_and_truncated() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.003, 0.9999, 1.0, 7.0, -0.999])
    pixels = to_pixels(values.expand(1, 3, 1, 8))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 1, 8, 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 127, 127, 254, 255, 255, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_stops_with_a_next_step(value: float) -> None:
    with pytest.raises(NumericsError, match="picture 1, step 3 of 4") as caught:
        check_finite(torch.tensor([0.0, value]), "picture 1, step 3 of 4", torch.bfloat16)
    assert "float32" in caught.value.hint
    assert "run `petzval verify` on the model's folder" in caught.value.hint
    check_finite(torch.zeros(3), "picture 1", torch.bfloat16)


def _damaged(folder: Path, part: str, key: str) -> None:
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    state[key] = torch.full_like(state[key], float("nan"))
    save_file(state, file)


@pytest.mark.parametrize(
    ("part", "key", "where"),
    [
        ("transformer", "img_in.weight", "step 1 of 2"),
        ("vae", "decoder.conv_in.weight", "decoded picture"),
        (
            "text_encoder",
            "model.layers.0.input_layernorm.weight",
            "of the text encoder in .*encoder: a ",
        ),
    ],
)
def test_damaged_weights_are_named_where_a_picture_is_not_finite(
    tmp_path: Path, part: str, key: str, where: str
) -> None:
    folder = copy_checkpoint(tmp_path)
    _damaged(folder, part, key)
    whole = petzval.load(folder, device="cpu", dtype="float32")
    parts = petzval.load(
        None,
        denoiser=folder / "transformer",
        encoder=folder / "text_encoder",
        vae=folder / "vae",
        tokenizer=folder / "tokenizer",
        device="cpu",
        dtype="float32",
    )
    homes = " and ".join(str(folder / name) for name in ("transformer", "text_encoder", "vae"))
    for pipeline, places in ((whole, folder), (parts, homes)):
        with pytest.raises(NumericsError, match=where) as caught:
            pipeline.generate("a fox", size="64x48", steps=2, guidance=1.0)
        assert caught.value.hint.endswith(f"run `petzval verify` on {places}")
    assert not verify_checkpoint(folder).passed
