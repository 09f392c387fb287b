"""Placements on an accelerator: the exact picture, and peaks under a hard limit of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.random_checkpoint import write_random_checkpoint
from petzval.inference.pipeline import Pipeline
from petzval.kernels import backends
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE

GIGABYTE = 10**9
FOX = "A red fox sleeping under a birch tree"

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published sizes with random numbers, 21 GB on the disk."""
    folder = tmp_path_factory.mktemp("weights") / "full"
    write_random_checkpoint(folder, LENS_MMDIT, LENS_GPT_OSS, LENS_VAE)
    return folder


def test_streams_and_pinned_memory_draw_the_resident_picture(golden_checkpoint: Path) -> None:
    options: dict[str, Any] = {"size": "64x48", "steps": 3, "guidance": 2.0}
    device = str(backends.default_device())
    plain = Pipeline.load(golden_checkpoint, device=device, dtype="float32")
    [expected] = plain.generate(FOX, **options)
    planning = plain.planning
    assert planning is not None
    planner = planning.planner(planning.work(plain.plan(FOX, **options)))
    smallest = min(planner.placements, key=lambda each: each.peak_bytes)
    assert "streamed" in str(smallest)
    plain.moving.adopt(planning.follow(smallest))
    [got] = plain.generate(FOX, **options)
    assert np.abs(got.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("limit", [4, 6, 8, 12, 16, 24])
def test_turbo_at_a_megapixel_stays_within_a_card_of(limit: int, full_size: Path) -> None:
    device = backends.default_device()
    _, whole = backends.memory_info(device)
    module: Any = torch.get_device_module(device)
    if whole < limit * GIGABYTE:
        pytest.skip(f"the card has less than {limit} GB")
    backends.give_back(device)
    module.set_per_process_memory_fraction(limit * GIGABYTE / whole)
    torch.accelerator.reset_peak_memory_stats(device)
    try:
        pipeline = Pipeline.load(full_size, device=str(device), memory=f"{limit}GB", request=FOX)
        placement = pipeline.placement
        assert placement is not None
        assert placement.exact
        pipeline.generate(FOX, size="1024x1024", steps=4, guidance=1.0)
        measured = torch.accelerator.max_memory_allocated(device)
        assert measured <= limit * GIGABYTE
        assert placement.peak_bytes == pytest.approx(measured, rel=0.1)
    finally:
        module.set_per_process_memory_fraction(1.0)
        backends.give_back(device)


def test_memory_that_runs_out_for_good_is_one_line(full_size: Path) -> None:
    device = backends.default_device()
    module: Any = torch.get_device_module(device)
    _, whole = backends.memory_info(device)
    backends.give_back(device)
    module.set_per_process_memory_fraction(6 * GIGABYTE / whole)
    try:
        # Planned for more than there is: the smaller plan is found on the way.
        pipeline = Pipeline.load(full_size, device=str(device), memory="12GB", request=FOX)
        with pytest.warns(UserWarning, match="memory ran out"):
            [image] = pipeline.generate(FOX, size="1024x1024", steps=2, guidance=1.0)
        assert image.pixels.std() > 0
    finally:
        module.set_per_process_memory_fraction(1.0)
        backends.give_back(device)
