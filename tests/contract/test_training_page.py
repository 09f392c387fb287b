"""docs/training.md names tests that exist, and counts what the product counts."""

from __future__ import annotations

import re

import pytest
from docs import training_cost

from petzval.models.flops import forward_flops
from petzval.models.sizes import LENS_MMDIT
from tests.contract.tree import REPOSITORY

PAGE = REPOSITORY / "docs" / "training.md"
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))


def test_the_page_names_its_proofs() -> None:
    assert len(NAMED) > 25


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_proof_that_is_named_exists(file: str, name: str) -> None:
    source = (REPOSITORY / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)


def test_a_forward_pass_is_what_the_paper_says() -> None:
    found = [float(number) for number in re.findall(r"(\d+\.\d+) ", training_cost.forward_line())]
    assert found[0] == round(forward_flops(LENS_MMDIT, [4096], [0]) / 1e12, 1) == 16.1
    assert 17.05 <= found[1] <= found[2] <= 17.15


def test_the_published_run_reached_an_eighth_of_its_hardware() -> None:
    """2.7e22 operations by a count of our own beside the code; 12.7 % of 192,000 A100 hours."""
    assert sum(training_cost.run_flops()) == pytest.approx(2.7e22, rel=0.05)
    published = training_cost.run_table().splitlines()[2]
    share = re.search(r"([\d.]+)%", published)
    assert share is not None and float(share[1]) == pytest.approx(12.7, abs=0.5)


def test_tokens_of_ranks_are_balanced_and_work_is_not() -> None:
    rows = training_cost.ranks_table().splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    tokens = [int(row[3].replace(",", "")) for row in cells]
    work = [float(row[7]) for row in cells]
    assert max(tokens) / min(tokens) < 1.07 < max(work) / min(work) < 1.25


def test_packing_waits_less_than_buckets() -> None:
    rows = training_cost.idle_table(num_samples=20_000, num_batches=128).splitlines()[2:]
    waiting = [float(row.split("|")[3].strip(" %")) for row in rows]
    for bucket, packed in zip(waiting[::2], waiting[1::2], strict=True):
        assert packed < 4 < bucket < 20
