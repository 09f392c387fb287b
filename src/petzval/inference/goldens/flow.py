"""Rotary tables, schedule, guidance, noise and presets: what needs no network."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from petzval.flow.guidance import guide
from petzval.flow.noise import initial_noise
from petzval.flow.sampler import sample
from petzval.flow.schedule import empirical_mu, sigmas
from petzval.inference.goldens.case import (
    GUIDANCE_LIMIT,
    LARGE_ROPE_LIMIT,
    ROPE_LIMIT,
    SIGMA_LIMIT,
    CaseResult,
    absolute,
    differing,
    judge,
    relative,
    unchecked,
)
from petzval.inference.goldens.folder import GoldenFile, GoldenFolder, Subject, nothing_unread
from petzval.kernels import dispatch
from petzval.models.rope import mmdit_rope
from petzval.resolution import PRESETS

_GRID = re.compile(r"h(\d+)_w(\d+)_t(\d+)")
_SCHEDULE = re.compile(r"L(\d+)_N(\d+)")
_SEED = re.compile(r"seed(\d+)_h(\d+)_w(\d+)\.(float32|bfloat16)")
_SEED_LIST = re.compile(r"list((?:_\d+)+)_h(\d+)_w(\d+)\.float32")
_AXES = ("inv_freq_frame", "inv_freq_h", "inv_freq_w")


def check_rope(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """cos and sin of image and text tokens, and the frequencies behind them."""
    stored = golden.tensors("rope.safetensors")
    axes = subject.denoiser.config.axes_dims_rope
    for case in stored.cases("img_cos"):
        match = _GRID.fullmatch(case)
        if match is None:
            yield unchecked(f"rope/{case}", "the name does not say grid and text length")
            continue
        height, width, length = (int(number) for number in match.groups())
        tables = mmdit_rope((height, width), length, axes)
        num_image = height * width
        rows = slice(0, num_image)
        large = f"{case}.img_rows" in stored
        chosen = stored[f"{case}.img_rows"] if large else rows
        error = max(
            absolute(tables.cos[:num_image][chosen], stored[f"{case}.img_cos"]),
            absolute(tables.sin[:num_image][chosen], stored[f"{case}.img_sin"]),
            absolute(tables.cos[num_image:], stored[f"{case}.txt_cos"]),
            absolute(tables.sin[num_image:], stored[f"{case}.txt_sin"]),
        )
        yield judge(f"rope/{case}", error, LARGE_ROPE_LIMIT if large else ROPE_LIMIT)
    # On a 2 x 2 grid the first text token stands at position 1, where the angle is the frequency.
    first = mmdit_rope((2, 2), 1, axes)
    frequencies = torch.atan2(first.sin[4].double(), first.cos[4].double())
    for name, ours in zip(_AXES, frequencies.split([dim // 2 for dim in axes]), strict=True):
        if name in stored:
            yield judge(f"rope/{name}", absolute(ours, stored[name]), ROPE_LIMIT)
    yield from nothing_unread("rope", stored)


def check_rope_apply(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Queries rotated by a given table."""
    stored = golden.tensors("rope_apply.safetensors")
    for prefix in _prefixes(stored, "y"):
        x, cos, sin = (stored[f"{prefix}{name}"] for name in ("x", "cos", "sin"))
        got = dispatch.rotate_interleaved(x, cos, sin)
        yield judge(f"rope_apply/{prefix or 'y'}", absolute(got, stored[f"{prefix}y"]), ROPE_LIMIT)
    yield from nothing_unread("rope_apply", stored)


def check_scheduler(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """mu, sigmas and timesteps of every length and step count, and a recorded Euler run."""
    stored = golden.tensors("scheduler.safetensors")
    for case in stored.cases("mu"):
        match = _SCHEDULE.fullmatch(case)
        if match is None:
            yield unchecked(f"scheduler/{case}", "the name does not say tokens and steps")
            continue
        num_tokens, num_steps = int(match[1]), int(match[2])
        mu = empirical_mu(num_tokens, num_steps)
        levels = sigmas(num_steps, mu)
        error = max(
            absolute(torch.tensor([mu], dtype=torch.float64), stored[f"{case}.mu"]),
            absolute(levels, stored[f"{case}.sigmas"]),
            absolute(1000 * levels[:-1], stored[f"{case}.timesteps"]) / 1000,
        )
        yield judge(f"scheduler/{case}", error, SIGMA_LIMIT)
    for case in stored.cases("model_outputs"):
        outputs, levels = stored[f"{case}.model_outputs"], stored[f"{case}.sigmas"]
        error = _euler_error(stored[f"{case}.sample0"], outputs, levels, stored[f"{case}.samples"])
        yield judge(f"scheduler/{case}", error, SIGMA_LIMIT, "relative to the largest sample")
    yield from nothing_unread("scheduler", stored)


def _euler_error(start: Tensor, outputs: Tensor, levels: Tensor, samples: Tensor) -> float:
    def recorded(x: Tensor, sigma: float, call: int) -> Tensor:
        return outputs[call]

    steps = [step.tokens for step in sample(recorded, start, levels)]
    return relative(torch.stack(steps), samples)


def check_guidance(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Guided predictions at several scales, some rows of them zero."""
    stored = golden.tensors("cfg.safetensors")
    for prefix in _prefixes(stored, "cond"):
        cond, uncond = stored[f"{prefix}cond"], stored[f"{prefix}uncond"]
        for key in stored.keys:
            scale = key.removeprefix(f"{prefix}g")
            if key.startswith(f"{prefix}g") and re.fullmatch(r"\d+(\.\d+)?", scale):
                error = relative(guide(cond, uncond, float(scale)), stored[key])
                yield judge(f"cfg/{key}", error, GUIDANCE_LIMIT, "relative to the largest value")
    yield from nothing_unread("cfg", stored)


def check_noise(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Noise of single seeds and of a list of seeds, equal to the last bit."""
    stored = golden.tensors("noise.safetensors")
    for key in stored.keys:
        expected = stored[key]
        single, several = _SEED.fullmatch(key), _SEED_LIST.fullmatch(key)
        if single is not None:
            seeds, grid = [int(single[1])], (int(single[2]), int(single[3]))
            dtype = getattr(torch, single[4])
            got = initial_noise(seeds, grid, expected.shape[-1], mode="microsoft", dtype=dtype)
        elif several is not None:
            seeds = [int(seed) for seed in several[1].strip("_").split("_")]
            grid = (int(several[2]), int(several[3]))
            got = initial_noise(seeds, grid, expected.shape[-1])
        else:
            yield unchecked(f"noise/{key}", "the name does not say seed, grid and dtype")
            continue
        yield judge(f"noise/{key}", differing(got, expected), 0, "values that differ")


def check_presets(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Every recorded size has the same height and width here."""
    for base, sizes in golden.json("resolution_buckets.json").items():
        ours = PRESETS.get(int(base), {})
        wrong = [
            aspect
            for aspect, (height, width) in sizes.items()
            if aspect not in ours or (ours[aspect].height, ours[aspect].width) != (height, width)
        ]
        yield judge(f"resolution/{base}", len(wrong), 0, " ".join(wrong) or "sizes that differ")


def _prefixes(stored: GoldenFile, name: str) -> list[str]:
    """ "" for a bare `name`, and `case.` for every `case.name`."""
    bare = [""] if name in stored else []
    return bare + [f"{case}." for case in stored.cases(name)]
