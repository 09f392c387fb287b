"""The steps since the last row of the log, and the row that they make, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from petzval.errors import ConfigError
from petzval.kernels import backends
from petzval.models.flops import peak_bf16_flops
from petzval.training.ranks import Ranks
from petzval.training.state import RunState
from petzval.training.step import StepReport
from petzval.training.tallies import add_sums


def peak_flops(device: torch.device) -> float | None:
    """Peak bfloat16 operations a second of a GPU; None for the CPU and for unknown ones."""
    if device.type != "cuda":
        return None
    try:
        return peak_bf16_flops(backends.product_name(device))
    except ConfigError:
        return None


class Window:
    """Collects what steps report and what they waited for.

    Args:
        peak: operations a second of one rank's device; without it no MFU is shown.
    """

    def __init__(self, peak: float | None = None) -> None:
        self._peak = peak
        self._reports: list[StepReport] = []
        self._waited = 0.0

    def add(self, report: StepReport, waited: float) -> None:
        """One step, and the seconds that this rank waited for its data."""
        self._reports.append(report)
        self._waited += waited

    def row(self, seconds: float, rate: float, state: RunState) -> dict[str, float]:
        """Empty the window. All ranks must call it; each gets the same row.

        `loss`, `grad_norm` and the objective's parts are means over updates that were taken;
        `means` of the objective are their sums over their counts. `data_wait` is the share of the
        ranks' time in which the host waited for a batch. `mfu` counts the objective's operations
        against the devices' peak.

        Args:
            seconds: since the last row.
            rate: the learning rate.
        """
        reports = self._reports
        taken = [report for report in reports if not report.skipped] or reports
        seconds = max(seconds, 1e-9)
        row = {
            "loss": sum(report.loss for report in taken) / len(taken),
            "grad_norm": sum(report.grad_norm for report in taken) / len(taken),
            "learning_rate": rate,
            "images_per_second": sum(report.num_items for report in reports) / seconds,
            "tokens_per_second": sum(report.num_tokens for report in reports) / seconds,
            "seconds_per_step": seconds / len(reports),
            "data_wait": state.ranks.sum([self._waited])[0] / (seconds * state.ranks.size),
            "seconds": state.seconds,
            "num_items": float(state.num_items),
            "num_skipped": float(state.guard.num_skipped),
        }
        for name, part in state.others.items():
            row[f"num_skipped_{name}"] = float(part.guard.num_skipped)
        flops = [report.flops for report in reports]
        if self._peak is not None and None not in flops:
            done = sum(number for number in flops if number is not None)
            row["mfu"] = done / (seconds * self._peak * state.ranks.size)
        row.update(_means(taken, state.ranks))
        self._reports, self._waited = [], 0.0
        return row


def _means(taken: list[StepReport], ranks: Ranks) -> Mapping[str, float]:
    own = add_sums(
        [{name: (value, 1.0) for name, value in report.parts.items()} for report in taken]
        + [report.sums for report in taken]
    )
    sums = add_sums(ranks.gather(own))
    return {name: total / count for name, (total, count) in sorted(sums.items()) if count > 0}
