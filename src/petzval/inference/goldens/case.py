"""One comparison: its error, its limit, and whether it passed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ROPE_LIMIT = 2e-6
LARGE_ROPE_LIMIT = 3e-5
"""For grids of more than 64 tokens: angles up to 32 radians and more round to 2e-6 each."""

CALL_LIMIT = 2e-5
"""One denoiser call; the original's own rounding noise is 2e-6."""

STATE_LIMIT = 5e-5
FEATURE_LIMIT = 1e-4
"""Relative to the largest value."""

SIGMA_LIMIT = 1e-6
IMAGE_LIMIT = 2e-5
LATENT_LIMIT = 1e-4
PIXEL_LIMIT = 1

NORM_LIMIT = 2e-6
"""Relative to the row's largest value. An epsilon e in place of 1e-6 moves a row of mean square m
by (e - 1e-6) / (2 m): 4.5e-6 for e = 1e-5 in a row of ordinary size, a factor of three in the
rows scaled by 1e-4. Rounding is below 4e-7."""

GUIDANCE_LIMIT = 1e-6
"""Relative to the largest value: a dozen roundings of 6e-8."""

SINUSOID_LIMIT = 1e-4
"""One unit in the last place of an angle of 1000 radians is 6.1e-5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseResult:
    """What one case gave.

    Attributes:
        name: file and case, such as `dit/b1_square`.
        error: in the unit of `limit`; infinite where shapes differ or a number is not finite.
        limit: the largest error that passes; 0 where values must be equal.
        passed: error <= limit. False where nothing was compared.
        skipped: why nothing was compared, where that is no fault. `absent`: the folder has no
            such file, and its index names none. `unchecked`: something in the folder that this
            version has nothing to compare with.
        detail: what was compared, or why not.
    """

    name: str
    error: float
    limit: float
    passed: bool
    detail: str = ""
    skipped: Literal["", "absent", "unchecked"] = ""

    @property
    def status(self) -> Literal["passed", "failed", "absent", "unchecked"]:
        """In a word; only `failed` is a fault."""
        return self.skipped or ("passed" if self.passed else "failed")


def judge(name: str, error: float | int, limit: float | int, detail: str = "") -> CaseResult:
    """A result from a measured error; NaN never passes."""
    return CaseResult(
        name=name,
        error=math.inf if math.isnan(error) else float(error),
        limit=float(limit),
        passed=error <= limit,
        detail=detail,
    )


def fault(name: str, detail: str) -> CaseResult:
    """A case that could not be compared, and should have been."""
    return CaseResult(name=name, error=math.inf, limit=0.0, passed=False, detail=detail)


def absent(name: str) -> CaseResult:
    """A file that this folder does not have, and that its index does not name."""
    return _skip(name, "absent", "not in this folder")


def unchecked(name: str, detail: str) -> CaseResult:
    """Something recorded that this version has nothing to compare with."""
    return _skip(name, "unchecked", detail)


def _skip(name: str, why: Literal["absent", "unchecked"], detail: str) -> CaseResult:
    return CaseResult(name=name, error=0.0, limit=0.0, passed=False, detail=detail, skipped=why)


def absolute(got: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite where shapes differ or a number is not finite."""
    if got.shape != expected.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    worst = float((got.double() - expected.double()).abs().max())
    return worst if math.isfinite(worst) else math.inf


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    if expected.numel() == 0:
        return 0.0 if got.shape == expected.shape else math.inf
    return absolute(got, expected) / max(float(expected.double().abs().max()), 1e-30)


def relative_by_row(got: Tensor, expected: Tensor) -> float:
    """The worst of `relative` over the rows (first axis)."""
    if got.shape != expected.shape:
        return math.inf
    return max(
        (relative(row, wanted) for row, wanted in zip(got, expected, strict=True)), default=0.0
    )


def differing(got: Tensor, expected: Tensor) -> float:
    """How many values are not equal; infinite where shapes or types differ."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    return float((got != expected).sum())


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """Zero where a token is padding: [B, T, D] by [B, T]."""
    return torch.where(mask.bool()[..., None], tensor, torch.zeros_like(tensor))
