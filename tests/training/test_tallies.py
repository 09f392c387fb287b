"""Means that can be put together are not means of means."""

from __future__ import annotations

import pytest
import torch

from petzval.training.ranks import Ranks
from petzval.training.state import RunState
from petzval.training.step import StepReport
from petzval.training.tallies import add_sums, tally_by_decile, tally_by_label
from petzval.training.window import Window, peak_flops
from tests.training.toy import toy_model


def test_values_go_to_the_tenth_of_their_level() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True)
    sigmas = torch.tensor([0.0, 0.05, 0.1, 0.999, 1.0])
    tallies = tally_by_decile(values, sigmas)
    assert list(tallies) == [f"loss_t0.{n}" for n in range(10)]
    counted = {k: (float(t.total), float(t.count)) for k, t in tallies.items() if t.count > 0}
    assert counted == {"loss_t0.0": (3.0, 2.0), "loss_t0.1": (3.0, 1.0), "loss_t0.9": (9.0, 2.0)}
    assert not any(tally.total.requires_grad for tally in tallies.values())


def test_values_go_to_their_label() -> None:
    tallies = tally_by_label(torch.tensor([1.0, 2.0, 6.0]), ["8x8", "4x8", "8x8"])
    assert {k: (float(t.total), float(t.count)) for k, t in tallies.items()} == {
        "loss_bucket_4x8": (2.0, 1.0),
        "loss_bucket_8x8": (7.0, 2.0),
    }


def test_sums_are_added_by_name() -> None:
    assert add_sums([{"a": (1.0, 2.0)}, {}, {"a": (3.0, 4.0), "b": (5.0, 1.0)}]) == {
        "a": [4.0, 6.0],
        "b": [5.0, 1.0],
    }


def report(
    loss: float, count: float, *, skipped: bool = False, flops: float | None = 10.0
) -> StepReport:
    return StepReport(
        loss=loss,
        parts={"part": loss},
        grad_norm=1.0,
        skipped=skipped,
        num_items=4,
        num_tokens=8,
        sums={"mean": (loss * count, count), "empty": (0.0, 0.0)},
        flops=flops,
    )


def test_a_row_weighs_means_by_their_counts_and_leaves_out_what_was_skipped() -> None:
    state = RunState(model=toy_model(), optimizers=[], seconds=9.0, num_items=12)
    window = Window(peak=5.0)
    window.add(report(1.0, 1.0), waited=0.5)
    window.add(report(3.0, 3.0), waited=0.5)
    window.add(report(float("nan"), 5.0, skipped=True), waited=0.0)
    row = window.row(4.0, 1e-3, state)
    assert (row["loss"], row["part"], row["mean"]) == (2.0, 2.0, 2.5)
    assert "empty" not in row
    assert (row["images_per_second"], row["tokens_per_second"]) == (3.0, 6.0)
    assert (row["data_wait"], row["mfu"]) == (0.25, 30 / (4 * 5.0))
    window.add(report(7.0, 1.0, flops=None), waited=0.0)
    row = window.row(1.0, 1e-3, state)
    assert row["loss"] == 7.0 and "mfu" not in row


def test_the_peak_of_known_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    for name, peak in {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "X1": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)  # type: ignore[misc]
        assert peak_flops(torch.device("cuda")) == peak


def test_one_process_talks_to_itself() -> None:
    ranks = Ranks()
    ranks.wait()
    assert (ranks.sum([1.0, 2.0]), ranks.any(True), ranks.any(False)) == ([1.0, 2.0], True, False)
    assert (ranks.of_first(3.0), ranks.gather({"a": 1}), ranks.is_first) == (3.0, [{"a": 1}], True)
