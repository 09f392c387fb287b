"""Both branches of guidance through each streamed block at once: read once, the same to the bit."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import DENOISER, Placement
from petzval.inference.planner import Planner
from petzval.models.mmdit import Pass
from petzval.models.rope import mmdit_rope
from petzval.weights import residence
from petzval.weights.checkpoint import Checkpoint
from tests.support import SPEEDS

SMALL: dict[str, Any] = {"size": "64x48", "steps": 3, "seed": 3}


def _streamed(pipeline: Pipeline, **options: Any) -> tuple[Pipeline, Placement]:
    planning = pipeline.planning
    assert planning is not None
    work = planning.work(pipeline.plan("two words", **SMALL, **options))
    planner = Planner(
        planning.checkpoint, torch.device("cpu"), torch.float32, work, SPEEDS, baseline=0
    )
    placement = next(
        each
        for each in planner.placements
        if each.of(DENOISER).strategy.residence == "streamed"
        and not any(one.strategy.kept_layers for one in each.networks)
    )
    fresh = Pipeline.load(planning.checkpoint.folder, device="cpu", dtype="float32")
    fresh.moving.adopt(planning.follow(placement))
    return fresh, placement


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part of a network was read, by the prefix of its names."""
    counts: Counter[str] = Counter()
    fill = residence.fill

    def counted(module: nn.Module, reader: Any, prefix: str = "", *more: Any, **named: Any) -> None:
        counts[prefix] += 1
        fill(module, reader, prefix, *more, **named)

    monkeypatch.setattr(residence, "fill", counted)
    return counts


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (["a red fox"], {"guidance": 2.0}),
        (["a red fox"], {"guidance": 2.0, "negative_prompt": "blurry and dark"}),
        (["a red fox", "two words of another length"], {"guidance": 2.0}),
        (["a red fox"], {"guidance": 1.0}),
    ],
)
def test_a_block_is_read_once_a_step_and_the_picture_is_the_same(
    pipeline: Pipeline, filled: Counter[str], prompts: list[str], options: dict[str, Any]
) -> None:
    batch = len(prompts)
    expected = pipeline.generate(prompts, batch_size=batch, **SMALL, **options)
    streamed, placement = _streamed(pipeline, **options)
    got = streamed.generate(prompts, batch_size=batch, **SMALL, **options)
    assert [each.encode() for each in got] == [each.encode() for each in expected]
    blocks = len(streamed.networks.denoiser.transformer_blocks)
    reads = [filled[f"transformer_blocks.{index}."] for index in range(blocks)]
    assert reads == [SMALL["steps"]] * blocks
    moved = placement.of(DENOISER).moved_bytes
    assert moved % SMALL["steps"] == 0
    denoiser = streamed.networks.denoiser
    assert all(weight.is_meta for weight in denoiser.transformer_blocks.parameters())


def test_passes_of_any_size_are_what_they_are_alone(golden_checkpoint: Path) -> None:
    model = Checkpoint.open(golden_checkpoint).load_denoiser(torch.float32)
    generator = torch.Generator().manual_seed(0)
    config, passes = model.config, []
    for grid, length in (((3, 4), 5), ((2, 2), 0)):
        tokens = torch.randn((1, grid[0] * grid[1], config.in_channels), generator=generator)
        text = torch.randn((1, length, config.hidden_size), generator=generator)
        with torch.no_grad():
            modulation = model.modulation(torch.tensor([0.3]))
        rope = mmdit_rope(grid, length, config.axes_dims_rope)
        passes.append(
            Pass(tokens=tokens, text=text if length else None, modulation=modulation, rope=rope)
        )
    visited: list[int] = []

    def visit(index: int) -> AbstractContextManager[None]:
        visited.append(index)
        return nullcontext()

    with torch.no_grad():
        together = model.side_by_side(passes, visit)
        alone = [model(each.tokens, each.text, each.modulation, each.rope) for each in passes]
    assert visited == list(range(len(model.transformer_blocks)))
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


def test_a_visit_that_fails_puts_the_layer_out(golden_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint)
    model = checkpoint.load_denoiser(torch.float32)
    blocks: list[tuple[str, nn.Module]] = [
        (f"transformer_blocks.{i}.", block) for i, block in enumerate(model.transformer_blocks)
    ]
    reader = residence.WeightReader(checkpoint.denoiser_source, torch.float32)
    stream = residence.StreamedWeights(blocks, reader)
    stream.release()
    with pytest.raises(RuntimeError, match="out of memory"), stream.visit(1):
        assert not any(weight.is_meta for weight in blocks[1][1].parameters())
        raise RuntimeError("out of memory")
    assert all(weight.is_meta for weight in blocks[1][1].parameters())
