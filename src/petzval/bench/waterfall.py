"""Measure every way of a setting, stage by stage, and what share of the floor the best one reaches.

Ways run in turn (A B C A B C …), so that a busy moment slows all of them; what is reported are
medians, and the median of the ratios within each round. Where only a part of a network is built,
or a part of the steps drawn, the measured time is multiplied by the ratio of the work, and said to
be extrapolated. A way that fails is named with its reason, left out of those after it, and takes no
other with it; so is one that no time is left for.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from petzval.bench.ceilings import Ceilings, measure_ceilings, timed
from petzval.bench.floor import STAGES, denoiser_share, encoder_share, stage_costs
from petzval.bench.networks import make_scene
from petzval.bench.setting import Setting
from petzval.bench.table import fastest
from petzval.bench.ways import Arithmetic, Studio, Way, ladder, without
from petzval.errors import RequestError
from petzval.inference.compile import COLD_SECONDS
from petzval.kernels import backends

Progress = Callable[[str], object]
Stages = dict[str, list[float]]
Decoded = dict[tuple[Arithmetic, bool], float]

WHY = (
    "what the original's way costs on this device, what each technique takes off, "
    "and how far the rest is from the least that the arithmetic allows"
)


@dataclass(kw_only=True, slots=True)
class _Course:
    """What was measured so far, of the ways that still run.

    Attributes:
        deadline: moment, as `time.monotonic` counts, after which nothing new is begun.
        failed: name of a way → why it was not measured.
        decoded: seconds of this round's decoders, where a row of full width is extrapolated: there
            the decoder alone is whole, takes minutes, and several ways have the same.
    """

    studio: Studio
    deadline: float
    progress: Progress
    ways: list[Way] = field(default_factory=list[Way])
    warm_ups: dict[str, float] = field(default_factory=dict[str, float])
    pictures: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    measured: dict[str, Stages] = field(default_factory=dict[str, Stages])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    decoded: Decoded | None = None

    def warm_up(self, ways: list[Way]) -> None:
        """Draw once in every way, and keep those that can be drawn in."""
        left = list(ways)
        while left:
            way, left = left[0], left[1:]
            if self.ways and way == replace(self.ways[-1], name=way.name, exact=way.exact):
                continue  # all that was new in it has failed already
            self.progress(f"warming up: {way.name}")
            stages: Stages = {stage: [] for stage in STAGES}
            picture = self._tried(way, stages, first=True)
            if picture is not None:
                self.ways.append(way)
                self.pictures[way.name] = picture
                self.warm_ups[way.name] = sum(values[0] for values in stages.values())
            elif self.ways:
                left = without(left, way, self.ways[-1])

    def run(self, rounds: int) -> int:
        """All ways in turn, once at least, until the time is up; returns the number of rounds."""
        self.measured = {way.name: {stage: [] for stage in STAGES} for way in self.ways}
        for number in range(rounds):
            start = time.monotonic()
            if self.decoded is not None:
                self.decoded.clear()
            for way in list(self.ways):
                self.progress(f"round {number + 1} of {rounds}: {way.name}")
                if self._tried(way, self.measured[way.name]) is None:
                    self.ways.remove(way)
            now = time.monotonic()
            if now + (now - start) > self.deadline:
                return number + 1
        return rounds

    def _tried(self, way: Way, stages: Stages, *, first: bool = False) -> Tensor | None:
        device = self.studio.scene.device
        is_cold = first and way.compiled and not any(each.compiled for each in self.ways)
        needed = COLD_SECONDS.get(device.type, 0.0) if is_cold else 0.0
        if first and self.ways and time.monotonic() + needed > self.deadline:
            self.failed[way.name] = "no time was left"
            return None
        try:
            return _draw(self.studio, way, stages, self.decoded)
        except Exception as error:  # whatever a compiler or a driver may say
            self.failed[way.name] = f"{type(error).__name__}: {_first_line(error)}"
            self.progress(f"{way.name} failed: {self.failed[way.name]}")
            backends.give_back(device)
            return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def waterfall(
    setting: Setting,
    device: torch.device,
    *,
    compile: bool = False,
    seconds: float = math.inf,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """One row: all ways of a setting, as plain JSON values.

    Args:
        device: where everything runs.
        compile: measure compiled networks, too.
        seconds: after which no further round or way is begun; every way that was begun is measured
            once.
        progress: hears what is being done.

    Raises:
        RequestError: no way could be measured.
    """
    dtype: torch.dtype = getattr(torch, setting.dtype)
    deadline = time.monotonic() + seconds
    if device.type == "cuda":
        torch.accelerator.reset_peak_memory_stats(device)
    if device.type == "cpu":
        backends.keep_heap(True)  # for all ways alike; it has a case of its own
    progress(f"{setting.title}: making the networks")
    ceilings = measure_ceilings(device, dtype)
    studio = Studio(make_scene(setting, device))
    decoded = Decoded() if setting.blocks else None
    course = _Course(studio=studio, deadline=deadline, progress=progress, decoded=decoded)
    course.warm_up(ladder(studio.scene, compile=compile))
    rounds = course.run(setting.rounds)
    ways, measured = course.ways, course.measured
    if not ways:
        name, reason = next(iter(course.failed.items()))
        raise RequestError(f"nothing could be measured; {name}: {reason}")
    shares = {"encode": encoder_share(setting), "denoise": denoiser_share(setting), "decode": 1.0}
    rows = [_row(way, measured, course.warm_ups, course.pictures, ways[0], shares) for way in ways]
    floor = _floor(setting, ceilings)
    best = fastest(rows)
    return {
        "case": setting.name,
        "kind": "waterfall",
        "title": setting.title,
        "why": WHY,
        "setting": asdict(setting),
        "dtype": setting.dtype,
        "ways": rows,
        "failed": course.failed,
        "ceilings": {"flops": ceilings.flops, "bytes": ceilings.bytes},
        "floor": floor,
        "share_of_floor": sum(stage["ms"] for stage in floor.values()) / best["total_ms"],
        "extrapolated": {stage: share for stage, share in shares.items() if share != 1.0},
        "peak_mib": _peak(device) / 2**20,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": backends.product_name(device) or device.type,
    }


def _draw(studio: Studio, way: Way, stages: Stages, decoded: Decoded | None = None) -> Tensor:
    """One picture; the seconds of each stage are added to its list.

    Args:
        decoded: seconds of decoders that were timed in this round and are not timed again.
    """
    device = studio.scene.device
    seconds, features = timed(lambda: studio.encode(way), device)
    stages["encode"].append(seconds)
    seconds, tokens = timed(lambda: studio.denoise(way, features), device)  # pyright: ignore[reportArgumentType]
    stages["denoise"].append(seconds)
    assert isinstance(tokens, Tensor)
    if decoded is None or way.decoder not in decoded:
        seconds, _ = timed(lambda: studio.decode(way, tokens), device)
        if decoded is not None:
            decoded[way.decoder] = seconds
    else:
        seconds = decoded[way.decoder]
    stages["decode"].append(seconds)
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
