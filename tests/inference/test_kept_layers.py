"""Streamed layers of which some stay: the same picture, and what was predicted of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from petzval.inference import stage
from petzval.inference.footprint import Footprints
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    NETWORKS,
    Residence,
    Strategy,
)
from petzval.inference.planner import Planner, with_kept_layers
from petzval.inference.residency import Residency, denoiser_blocks, encoder_layers
from petzval.inference.terms import Budget
from petzval.weights.checkpoint import Checkpoint
from tests.inference.test_placement import FOX, SMALL, WORK, placed
from tests.support import SPEEDS

STREAMED = Strategy(residence="streamed", device="cpu")
STRATEGIES = (
    Strategy(residence="streamed", device="cpu", kept_layers=4),
    Strategy(residence="streamed", device="cpu", folded=True, kept_layers=2),
    Strategy(residence="staged", device="cpu"),
)


@pytest.fixture(scope="module")
def checkpoint(golden_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(golden_checkpoint)


def _there(network: nn.Module) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_meta)


def _where(layers: list[nn.Module]) -> list[bool]:
    return [_there(layer) > 0 for layer in layers]


@pytest.mark.parametrize("count", [1, 3, 24, 48])
def test_those_that_stay_are_spread_evenly(count: int) -> None:
    for number in range(count + 1):
        kept = Strategy(residence="streamed", device="cpu", kept_layers=number).kept_of(count)
        assert len(kept) == number
        bounds = [-1, *(each for each in range(count) if each not in kept), count]
        between = [after - before - 1 for before, after in zip(bounds, bounds[1:], strict=False)]
        if number < count:
            assert max(between) <= -(-number // (count - number))
    assert STREAMED.kept_of(count) == ()


def test_in_words() -> None:
    assert str(STRATEGIES[1]) == "streamed, 2 layers kept, folded"


def test_the_picture_is_the_resident_one(pipeline: Pipeline, checkpoint: Checkpoint) -> None:
    [expected] = pipeline.generate(FOX, negative_prompt="blurry", **SMALL)
    assert pipeline.planning is not None
    other = Pipeline.load(checkpoint.folder, device="cpu", dtype="float32")
    other.moving.adopt(pipeline.planning.follow(placed(checkpoint, STRATEGIES)))
    for _ in range(2):
        [got] = other.generate(FOX, negative_prompt="blurry", **SMALL)
        # A streamed encoder reads prefix and prompt in one pass: the same to rounding.
        assert np.abs(got.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1
        other.text.cache.clear()
    fast = (Strategy(residence="resident", device="cpu"), *STRATEGIES[1:])
    other.moving.adopt(pipeline.planning.follow(placed(checkpoint, fast)))
    [got] = other.generate(FOX, negative_prompt="blurry", **SMALL)
    assert np.array_equal(got.pixels, expected.pixels)


def test_what_stays_is_what_was_predicted(checkpoint: Checkpoint) -> None:
    placement = placed(checkpoint, STRATEGIES)
    residency = Residency.follow(checkpoint, placement)
    networks = residency.networks
    layers = [layer for _, layer in encoder_layers(networks.encoder)]
    blocks = [block for _, block in denoiser_blocks(networks.denoiser)]
    residency.bring(ENCODER)
    assert _where(layers) == [index in STRATEGIES[0].kept_of(6) for index in range(6)]
    residency.bring(DENOISER)
    assert _there(networks.encoder) == placement.of(ENCODER).staying_bytes > 0
    assert _where(blocks) == [index in STRATEGIES[1].kept_of(3) for index in range(3)]
    assert not any(_there(block.get_submodule("img_mod")) for block in blocks)  # folded
    first = [weight.data_ptr() for weight in layers[-1].parameters()]
    residency.bring(AUTOENCODER)
    assert _there(networks.denoiser) == placement.of(DENOISER).staying_bytes > 0
    residency.bring(ENCODER)
    assert [weight.data_ptr() for weight in layers[-1].parameters()] == first  # not read again
    residency.put_out()
    assert _there(networks.encoder) == _there(networks.denoiser) == 0
    residency.bring(ENCODER)  # and again
    assert _where(layers) == [index in STRATEGIES[0].kept_of(6) for index in range(6)]
    residency.release()
    assert _there(networks.encoder) == 0


def _strategies(encoder: str, denoiser: str, decoder: str) -> tuple[Strategy, ...]:
    """Of names as "streamed 2", two layers of it kept."""

    def strategy(name: str, **more: Any) -> Strategy:
        residence, _, kept = name.partition(" ")
        return Strategy(
            residence=cast("Residence", residence),
            device="cpu",
            kept_layers=int(kept or 0),
            **more,
        )

    folded = denoiser != "resident"
    return strategy(encoder), strategy(denoiser, folded=folded), strategy(decoder)


@pytest.mark.parametrize("decoder", ["resident", "staged"])
@pytest.mark.parametrize("denoiser", ["resident", "staged", "streamed", "streamed 2"])
@pytest.mark.parametrize("encoder", ["resident", "staged", "streamed", "streamed 4"])
def test_nothing_is_there_that_was_not_counted(
    pipeline: Pipeline, checkpoint: Checkpoint, encoder: str, denoiser: str, decoder: str
) -> None:
    """Whoever computes, of the others only what stays: predicted peaks count on it."""
    placement = placed(checkpoint, _strategies(encoder, denoiser, decoder))
    assert pipeline.planning is not None
    other = Pipeline.load(checkpoint.folder, device="cpu", dtype="float32")
    other.moving.adopt(pipeline.planning.follow(placement))
    networks = other.networks
    every = dict(
        zip(NETWORKS, (networks.encoder, networks.denoiser, networks.autoencoder), strict=True)
    )
    computing: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def check(*_: object) -> None:
            computing.append(name)
            for each, network in every.items():
                placed = placement.of(each)
                # Rows of the encoder's table of embeddings lie in the file.
                table = getattr(getattr(network, "model", None), "embed_tokens", None)
                there = _there(network) - (0 if table is None else _there(table))
                allowed = placed.weight_bytes if each == name else placed.staying_bytes
                assert there <= allowed, (each, name)

        return check

    networks.encoder.model.layers[-1].register_forward_hook(watch(ENCODER))
    networks.denoiser.transformer_blocks[-1].register_forward_hook(watch(DENOISER))
    networks.autoencoder.decoder.mid_block.register_forward_hook(watch(AUTOENCODER))
    [expected, _] = pipeline.generate([FOX, "two words"], negative_prompt="blurry", **SMALL)
    for event in other.steps([FOX, "two words"], negative_prompt="blurry", **SMALL):
        event.preview()
        for image in event.images:
            if image.index == 0:
                assert np.abs(image.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1
    assert set(computing) == set(NETWORKS)


def test_layers_that_could_not_be_read_leave_nothing(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = Residency.follow(checkpoint, placed(checkpoint, STRATEGIES))
    fill = stage.fill

    def fail(network: nn.Module, *arguments: Any, **options: Any) -> None:
        fill(network, *arguments, **options)
        if network is residency.networks.denoiser.transformer_blocks[2]:
            raise MemoryError

    monkeypatch.setattr(stage, "fill", fail)
    with pytest.raises(MemoryError):
        residency.bring(DENOISER)
    assert _there(residency.networks.denoiser) == 0
    monkeypatch.setattr(stage, "fill", fill)
    residency.bring(DENOISER)
    assert _there(residency.networks.denoiser) > 0


def test_more_layers_take_more_memory_and_less_time(checkpoint: Checkpoint) -> None:
    slow = replace(SPEEDS, read=1e6)
    footprints = Footprints(checkpoint, torch.bfloat16, WORK, slow)
    for network, layers, folded in ((ENCODER, 6, False), (DENOISER, 3, True)):
        plain = Strategy(residence="streamed", device="cpu", folded=folded)
        every = [footprints.of(network, each) for each in with_kept_layers(plain, layers)]
        assert [each.strategy.kept_layers for each in every] == list(range(layers - 1, -1, -1))
        for more, fewer in zip(every, every[1:], strict=False):
            assert more.staying_bytes > fewer.staying_bytes
            assert (
                more.weight_bytes - fewer.weight_bytes == more.staying_bytes - fewer.staying_bytes
            )
            assert more.other_seconds <= fewer.other_seconds
            if network == DENOISER:  # a request's words are encoded once
                assert more.moved_bytes < fewer.moved_bytes
        assert every[-1].staying_bytes == 0
        assert every[0].other_seconds < every[-1].other_seconds
    stays = Strategy(residence="resident", device="cpu")
    assert with_kept_layers(stays, 6) == [stays]


def test_room_that_is_left_is_used(checkpoint: Checkpoint) -> None:
    planner = Planner(checkpoint, torch.device("meta"), torch.float32, WORK, SPEEDS, baseline=0)
    least = min(each.peak_bytes for each in planner.placements)
    most = max(each.peak_bytes for each in planner.placements)
    seen: set[int] = set()
    for limit in range(least, most, (most - least) // 40):
        chosen = planner.choose(Budget(memory=limit))
        assert chosen.peak_bytes <= limit
        seen |= {each.strategy.kept_layers for each in chosen.networks}
    assert len(seen) > 2
