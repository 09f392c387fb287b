"""The denoiser's rotary tables against the recorded ones."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
import torch

from petzval.kernels import fast, reference
from petzval.models.rope import mmdit_rope
from tests.support import golden_cases, golden_tensors

GRIDS = [case for case in golden_cases("rope.safetensors") if case.startswith("h")]


@pytest.mark.parametrize("case", GRIDS)
def test_tables(case: str) -> None:
    stored = golden_tensors("rope.safetensors")
    height, width, num_text = (int(n) for n in re.findall(r"\d+", case))
    tables = mmdit_rope((height, width), num_text)
    rows = stored.get(f"{case}.img_rows", torch.arange(height * width))
    limit = 3e-5 if height * width > 64 else 2e-6
    split = tables.num_image_tokens
    assert split == height * width
    for name, table in (("cos", tables.cos), ("sin", tables.sin)):
        assert (table[:split][rows] - stored[f"{case}.img_{name}"]).abs().max() <= limit
        text = stored[f"{case}.txt_{name}"]
        assert table[split:].shape == text.shape
        if num_text:
            assert (table[split:] - text).abs().max() <= limit


def test_positions_beyond_the_table_are_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        mmdit_rope((4, 4), 4095)


@pytest.mark.parametrize("module", [fast, reference], ids=["fast", "reference"])
def test_rotation_of_recorded_inputs(module: ModuleType) -> None:
    stored = golden_tensors("rope_apply.safetensors")
    got = module.rotate_interleaved(stored["x"], stored["cos"], stored["sin"])
    assert (got - stored["y"]).abs().max() <= 2e-6
