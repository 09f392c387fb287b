"""Noise levels at which a student's picture is judged, and the one place that knows which way.

Here sigma 1 is noise and sigma 0 is data, as everywhere in Petzval. Decoupled-DMD
(arXiv:2511.22677) writes time the other way round: its "tau > t" for guidance augmentation, with
t = 1 as *data*, is sigma_CA < sigma_k here, **less** noise than the step that is being taught. Read
the other way, the student is pushed by guidance at levels where nothing of its picture is left,
prompt-following looks the same, and the distribution falls apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from petzval.config import check_ranges, setting

Guidance = Literal["below", "coupled", "above"]
"""Levels of guidance augmentation: below the step's (right), those of distribution matching (plain
DMD2 with guidance), or above the step's (wrong); the last two are there to be compared with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenoiseConfig:
    """Settings of the levels.

    Attributes:
        lowest, highest: distribution matching is uniform between them.
        guidance: where guidance augmentation looks; see `Guidance`.
    """

    lowest: float = setting(0.02, minimum=0, maximum=1)
    highest: float = setting(0.98, minimum=0, maximum=1)
    guidance: Guidance = "below"

    def __post_init__(self) -> None:
        check_ranges(self, where="re-noising")


@dataclass(frozen=True, kw_only=True, slots=True)
class RenoiseLevels:
    """Noise levels [B]: of distribution matching and of guidance augmentation."""

    matching: Tensor
    guidance: Tensor


def renoise_levels(
    step_sigma: float, num_samples: int, generator: torch.Generator, config: RenoiseConfig
) -> RenoiseLevels:
    """Draw the levels for pictures that the student predicted from `step_sigma`.

        sigma_DM ~ U(lowest, highest),   sigma_CA ~ U(lowest, sigma_k),   sigma_CA < sigma_k

    Args:
        step_sigma: sigma_k of the student's last call, in (0, 1].
        num_samples: levels of each kind.
    """
    first, second = torch.rand(2, num_samples, generator=generator)
    matching = config.lowest + (config.highest - config.lowest) * first
    if config.guidance == "coupled":
        return RenoiseLevels(matching=matching, guidance=matching)
    if config.guidance == "above":
        top = max(config.highest, step_sigma)
        return RenoiseLevels(matching=matching, guidance=step_sigma + (top - step_sigma) * second)
    floor = min(config.lowest, 0.5 * step_sigma)
    guidance = floor + (step_sigma - floor) * second
    ceiling = torch.nextafter(torch.tensor(step_sigma), torch.tensor(0.0))
    return RenoiseLevels(matching=matching, guidance=guidance.minimum(ceiling))
