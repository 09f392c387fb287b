"""What the two modes promise of balance and padding, on the 27 training sizes."""

from __future__ import annotations

import pytest

from petzval.data.balance import Balance, lens_table, main, measure
from petzval.data.packed_sampler import PackedMode
from petzval.data.packing import CostModel
from petzval.data.sample_table import SampleTable
from petzval.data.sampler import MODES, Mode, SamplerConfig, build_sampler


@pytest.fixture(scope="module")
def corpus() -> SampleTable:
    return lens_table(30_000)


def balance(corpus: SampleTable, mode: Mode, num_ranks: int) -> Balance:
    sampler = build_sampler(corpus, SamplerConfig(num_virtual_ranks=num_ranks, mode=mode))
    budget = PackedMode().token_budget if mode == "packed" else None
    return measure(sampler, 160 // num_ranks, CostModel(), budget)


@pytest.mark.parametrize("num_ranks", [2, 8, 32])
def test_packed_ranks_cost_alike_and_are_full(corpus: SampleTable, num_ranks: int) -> None:
    packed = balance(corpus, "packed", num_ranks)
    assert 1 <= packed.imbalance <= packed.worst_imbalance <= 1.05
    assert 0 <= packed.padding <= 0.02


def test_bucket_ranks_do_not(corpus: SampleTable) -> None:
    bucket, packed = (balance(corpus, mode, 32) for mode in MODES)
    assert 1.10 <= bucket.imbalance <= 1.3
    assert bucket.imbalance > packed.imbalance + 0.08
    assert bucket.padding == 0  # it has no budget to fill


def test_the_program_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    main(num_samples=4000, rank_counts=(2,), num_batches=40)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["bucket", "packed"]
