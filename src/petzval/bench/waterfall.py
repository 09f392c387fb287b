"""Measure every way of a setting, stage by stage, and what share of the floor the best one reaches.

Ways run in turn (A B C A B C …), so that a busy moment slows all of them; what is reported are
medians, and the median of the ratios within each round. Where only a part of a network is built,
the measured time is multiplied by the ratio of the work, and said to be extrapolated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from petzval.bench.ceilings import Ceilings, measure_ceilings, timed
from petzval.bench.floor import STAGES, denoiser_share, encoder_share, stage_costs
from petzval.bench.networks import make_scene
from petzval.bench.setting import Setting
from petzval.bench.ways import Studio, Way, ladder
from petzval.kernels import backends

Progress = Callable[[str], object]
Stages = dict[str, list[float]]

WHY = (
    "what the original's way costs on this device, what each technique takes off, "
    "and how far the rest is from the least that the arithmetic allows"
)


def waterfall(
    setting: Setting,
    device: torch.device,
    *,
    compile: bool = False,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """One row: all ways of a setting, as plain JSON values.

    Args:
        device: where everything runs.
        compile: measure compiled networks, too.
        progress: hears what is being done.
    """
    dtype: torch.dtype = getattr(torch, setting.dtype)
    if device.type == "cuda":
        torch.accelerator.reset_peak_memory_stats(device)
    progress(f"{setting.title}: making the networks")
    studio = Studio(make_scene(setting, device))
    ways = ladder(studio.scene, compile=compile)
    warm_ups: dict[str, float] = {}
    pictures: dict[str, Tensor] = {}
    for way in ways:
        progress(f"warming up: {way.name}")
        stages: Stages = {stage: [] for stage in STAGES}
        pictures[way.name] = _draw(studio, way, stages)
        warm_ups[way.name] = sum(values[0] for values in stages.values())
    measured = {way.name: {stage: list[float]() for stage in STAGES} for way in ways}
    for number in range(setting.rounds):
        for way in ways:
            progress(f"round {number + 1} of {setting.rounds}: {way.name}")
            _draw(studio, way, measured[way.name])
    shares = {"encode": encoder_share(setting), "denoise": denoiser_share(setting), "decode": 1.0}
    rows = [_row(way, measured, warm_ups, pictures, ways[0], shares) for way in ways]
    ceilings = measure_ceilings(device, dtype)
    floor = _floor(setting, ceilings)
    best = [row for row in rows if row["exact"]][-1]
    return {
        "case": setting.name,
        "kind": "waterfall",
        "title": setting.title,
        "why": WHY,
        "setting": asdict(setting),
        "dtype": setting.dtype,
        "ways": rows,
        "ceilings": {"flops": ceilings.flops, "bytes": ceilings.bytes},
        "floor": floor,
        "share_of_floor": sum(stage["ms"] for stage in floor.values()) / best["total_ms"],
        "extrapolated": {stage: share for stage, share in shares.items() if share != 1.0},
        "peak_mib": _peak(device) / 2**20,
        "rounds": setting.rounds,
        "threads": torch.get_num_threads(),
        "device": backends.product_name(device) or device.type,
    }


def _draw(studio: Studio, way: Way, stages: Stages) -> Tensor:
    """One picture; the seconds of each stage are added to its list."""
    device = studio.scene.device
    seconds, features = timed(lambda: studio.encode(way), device)
    stages["encode"].append(seconds)
    seconds, tokens = timed(lambda: studio.denoise(way, features), device)  # pyright: ignore[reportArgumentType]
    stages["denoise"].append(seconds)
    seconds, _ = timed(lambda: studio.decode(way, tokens), device)  # pyright: ignore[reportArgumentType]
    stages["decode"].append(seconds)
    assert isinstance(tokens, Tensor)
    return tokens


def _row(
    way: Way,
    measured: dict[str, Stages],
    warm_ups: dict[str, float],
    pictures: dict[str, Tensor],
    first: Way,
    shares: dict[str, float],
) -> dict[str, Any]:
    mine, theirs = _totals(measured[way.name], shares), _totals(measured[first.name], shares)
    stages = {
        stage: 1000 * shares[stage] * statistics.median(values)
        for stage, values in measured[way.name].items()
    }
    ordered = sorted(mine)
    return {
        "name": way.name,
        "exact": way.exact,
        "stages_ms": stages,
        "total_ms": 1000 * statistics.median(mine),
        "low_ms": 1000 * ordered[0],
        "high_ms": 1000 * ordered[-1],
        "ratio": statistics.median(a / b for a, b in zip(theirs, mine, strict=True)),
        "error": _relative(pictures[way.name], pictures[first.name]),
        "warm_up_seconds": warm_ups[way.name],
    }


def _totals(stages: Stages, shares: dict[str, float]) -> list[float]:
    """Seconds of a whole picture, round by round."""
    scaled = [[shares[stage] * each for each in values] for stage, values in stages.items()]
    return [sum(parts) for parts in zip(*scaled, strict=True)]


def _relative(tokens: Tensor, expected: Tensor) -> float:
    """Of the final latents: norm of the difference, relative to the norm."""
    expected = expected.float()
    return float((tokens.float() - expected).norm() / expected.norm())


def _floor(setting: Setting, ceilings: Ceilings) -> dict[str, dict[str, float]]:
    return {
        stage: {
            "flops": cost.flops,
            "bytes": cost.bytes,
            "ms": 1000 * ceilings.seconds(cost.flops, cost.bytes),
        }
        for stage, cost in stage_costs(setting).items()
    }


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.accelerator.max_memory_allocated(device)
    return backends.peak_resident_bytes()
