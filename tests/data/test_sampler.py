"""The same samples in the same order on any machine, each once an epoch, in both modes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petzval.config import from_mapping, to_mapping
from petzval.data.balance import lens_table
from petzval.data.bucket_sampler import LENS_BATCH_SIZES, BucketMode, batch_size_of
from petzval.data.packed_sampler import MAX_WAITING, PackedMode
from petzval.data.packing import CostModel
from petzval.data.sample_stream import GlobalStep, Sampler, SamplerState
from petzval.data.sample_table import SampleTable
from petzval.data.sampler import MODES, Mode, SamplerConfig, SampleSteps, build_sampler, steps
from petzval.errors import ConfigError, DataError, TrainingError

SMALL = PackedMode(token_budget=12288)
each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def corpus() -> SampleTable:
    """Some samples of each of the 27 sizes."""
    made = lens_table(700)
    assert len(made.counts) == 27
    assert min(made.counts) > 0
    return made


def sampler_of(corpus: SampleTable, mode: Mode, **changes: Any) -> Sampler:
    return build_sampler(corpus, SamplerConfig(mode=mode, packed=SMALL, **changes))


def run(sampler: Sampler, state: SamplerState, count: int) -> list[tuple[GlobalStep, SamplerState]]:
    return list(islice(steps(sampler, state), count))


def uses(sampler: Sampler, num_epochs: int) -> Counter[tuple[int, int]]:
    """How often each (epoch, id) is used until `num_epochs` epochs are over."""
    used: Counter[tuple[int, int]] = Counter()
    for step, _ in steps(sampler, sampler.start()):
        used.update((sample.epoch, sample.id) for sample in step.samples)
        if step.samples and min(sample.epoch for sample in step.samples) >= num_epochs:
            return used
    raise AssertionError("steps end")


@each_mode
def test_every_id_is_used_once_an_epoch(corpus: SampleTable, mode: Mode) -> None:
    used = uses(sampler_of(corpus, mode), num_epochs=2)
    for epoch in range(2):
        times = [used[epoch, sample] for sample in range(700)]
        assert times == [1] * 700
    assert max(used.values()) == 1


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    buckets=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    virtual_ranks=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    mode=st.sampled_from(MODES),
)
def test_any_small_corpus_is_used_once_an_epoch(
    buckets: list[int], virtual_ranks: int, seed: int, mode: Mode
) -> None:
    """Also one with less samples than a step takes, and in an index of any order."""
    column = np.array(buckets)
    sizes = np.array([968, 1064, 2304, 2400, 3888, 4232])[column]
    corpus = SampleTable.from_columns(column, sizes, np.arange(len(buckets)) % 300)
    config = SamplerConfig(
        seed=seed, num_virtual_ranks=virtual_ranks, mode=mode, packed=PackedMode(token_budget=9000)
    )
    used = uses(build_sampler(corpus, config), num_epochs=2)
    assert all(used[epoch, i] == 1 for epoch in range(2) for i in range(len(buckets)))


@each_mode
def test_an_epoch_has_an_order_of_its_own(corpus: SampleTable, mode: Mode) -> None:
    order: dict[int, list[int]] = {0: [], 1: []}
    for step, _ in run(sampler_of(corpus, mode), sampler_of(corpus, mode).start(), 20):
        for sample in step.samples:
            order.setdefault(sample.epoch, []).append(sample.id)
    first, second = order[0][:150], order[1][:150]
    assert len(second) == 150
    assert len(set(first) & set(second)) < 60  # 32 by chance
    other = run(sampler_of(corpus, mode, seed=1), sampler_of(corpus, mode, seed=1).start(), 1)
    assert [sample.id for sample in other[0][0].samples][:20] != first[:20]


@each_mode
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_any_world_size_consumes_the_same(corpus: SampleTable, mode: Mode, world_size: int) -> None:
    sampler = sampler_of(corpus, mode)
    for step, _ in run(sampler, sampler.start(), 12):
        shared = [step.of_rank(rank, world_size) for rank in range(world_size)]
        assert {len(batches) for batches in shared} == {8 // world_size}
        again = [shared[number % world_size][number // world_size] for number in range(8)]
        assert tuple(sample for batch in again for sample in batch) == step.samples


@each_mode
def test_a_run_resumes_at_any_step(corpus: SampleTable, mode: Mode) -> None:
    """Across the end of an epoch, from the text that a checkpoint keeps, in a new process."""
    whole = run(sampler_of(corpus, mode), sampler_of(corpus, mode).start(), 34)
    assert {sample.epoch for step, _ in whole for sample in step.samples} >= {0, 1, 2}
    for number in (0, 7, 13, 29):
        saved = SamplerState.from_json(whole[number][1].to_json())
        assert saved == whole[number][1]
        assert saved.step == number + 1
        resumed = run(sampler_of(corpus, mode), saved, 4)
        assert resumed == whole[number + 1 : number + 5]


def test_the_state_stays_below_a_kilobyte(corpus: SampleTable) -> None:
    """At its largest: 800 million samples a thousand times over, and all places taken."""
    stream = build_sampler(corpus, SamplerConfig()).start().stream
    bucket = SamplerState(stream=stream, step=10**9, taken=(8 * 10**11,) * 27)
    waiting = tuple(range(10**5, 10**5 + MAX_WAITING))
    packed = SamplerState(stream=stream, step=10**9, taken=(8 * 10**11,), waiting=waiting)
    assert len(bucket.to_json()) < 1000
    assert len(packed.to_json()) < 1000
    assert json.loads(packed.to_json())["step"] == 10**9


@pytest.mark.parametrize("num_virtual_ranks", [1, 16])
def test_few_samples_wait_and_none_waits_twice(corpus: SampleTable, num_virtual_ranks: int) -> None:
    sampler = sampler_of(corpus, "packed", num_virtual_ranks=num_virtual_ranks)
    before: set[int] = set()
    for _, state in run(sampler, sampler.start(), 6):
        waiting = {state.taken[0] - behind for behind in state.waiting}
        assert len(waiting) <= MAX_WAITING
        assert not waiting & before
        before = waiting


def test_a_batch_is_one_bucket_of_its_size(corpus: SampleTable) -> None:
    sampler = sampler_of(corpus, "bucket")
    sizes: set[tuple[int, int]] = set()
    for step, _ in run(sampler, sampler.start(), 4):  # before any bucket runs out
        for batch in step.batches:
            assert len({sample.bucket for sample in batch}) == 1
            assert len({sample.epoch for sample in batch}) == 1
            tokens = batch[0].image_tokens
            assert len(batch) <= batch_size_of(tokens, LENS_BATCH_SIZES)
            sizes.add((tokens, len(batch)))
            assert all(sample.text_tokens == corpus.text_tokens[sample.id] for sample in batch)
    assert {size for _, size in sizes} >= {24, 10, 6}


@pytest.mark.parametrize("tokens", [968, 1064, 2304, 2400, 3888, 4232])
def test_batch_sizes_balance_the_tokens_of_all_training_sizes(tokens: int) -> None:
    assert 23_000 <= tokens * batch_size_of(tokens, LENS_BATCH_SIZES) <= 25_600


def test_fixed_shares_are_kept_and_each_bucket_has_its_own_epochs() -> None:
    buckets = np.repeat([0, 1, 2], [40, 400, 50])
    corpus = SampleTable.from_columns(buckets, np.array([1024, 2304, 64])[buckets], buckets)
    mode = BucketMode(shares=(3.0, 1.0, 0.0))
    sampler = build_sampler(corpus, SamplerConfig(num_virtual_ranks=4, bucket=mode))
    drawn = run(sampler, sampler.start(), 100)
    batches = Counter(batch[0].bucket for step, _ in drawn for batch in step.batches)
    assert abs(batches[0] / 400 - 0.75) < 0.06
    assert batches[2] == 0
    used = Counter((sample.epoch, sample.id) for step, _ in drawn for sample in step.samples)
    assert max(used.values()) == 1
    full_epochs = max(epoch for epoch, sample in used if sample < 40)
    assert full_epochs > 50
    assert all(used[epoch, i] == 1 for epoch in range(full_epochs) for i in range(40))


def test_by_default_buckets_run_out_together() -> None:
    """Halfway through an epoch about half of every area is used."""
    corpus = lens_table(6000)
    sampler = sampler_of(corpus, "bucket")
    state = sampler.start()
    while sum(state.taken) < 3000:
        _, state = sampler.draw(state)
    areas = np.array([state.taken, corpus.counts]).reshape(2, 3, 9).sum(axis=2)
    assert (areas[0] / areas[1]).min() > 0.35
    assert (areas[0] / areas[1]).max() < 0.65


def test_settings_survive_a_file() -> None:
    config = SamplerConfig(mode="packed", packed=SMALL, bucket=BucketMode(shares=(1.0, 2.5)))
    stored = json.loads(json.dumps(to_mapping(config)))
    assert from_mapping(SamplerConfig, stored, where="recipe") == config


def test_a_state_of_another_stream_is_refused(corpus: SampleTable) -> None:
    state = sampler_of(corpus, "bucket").start()
    others = [
        sampler_of(corpus, "packed"),
        sampler_of(corpus, "bucket", seed=1),
        sampler_of(corpus, "bucket", num_virtual_ranks=4),
        sampler_of(lens_table(699), "bucket"),
        build_sampler(corpus, SamplerConfig(bucket=BucketMode(batch_sizes=((1024, 4),)))),
    ]
    for other in others:
        with pytest.raises(TrainingError, match="another corpus or to other settings"):
            other.draw(state)
    with pytest.raises(TrainingError, match="another corpus"):
        sampler_of(corpus, "packed").draw(state)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stream":"a","step":"1","taken":[0]}'])
def test_a_damaged_state_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="state cannot be read"):
        SamplerState.from_json(text)


def test_a_world_size_that_does_not_divide_is_refused(corpus: SampleTable) -> None:
    sampler = sampler_of(corpus, "bucket")
    step, _ = sampler.draw(sampler.start())
    for world_size in (0, 3, 16):
        with pytest.raises(ConfigError, match="start 1, 2, 4, 8 processes"):
            step.of_rank(0, world_size)
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        step.of_rank(2, 2)


@each_mode
def test_steps_by_number_are_those_in_turn(corpus: SampleTable, mode: Mode) -> None:
    sampler = sampler_of(corpus, mode)
    drawn = run(sampler, sampler.start(), 5)
    numbered = SampleSteps(sampler)
    assert [numbered.at(number) for number in (0, 3, 3, 1, 4)] == [
        drawn[number] for number in (0, 3, 3, 1, 4)
    ]
    later = SampleSteps(sampler, drawn[1][1])
    assert later.at(2) == drawn[2]
    with pytest.raises(ValueError, match="step 1 lies before step 2"):
        later.at(1)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (BucketMode(batch_sizes=()), "batch_sizes must be pairs"),
        (BucketMode(batch_sizes=((1024, 0),)), "both at least 1"),
        (BucketMode(shares=(1.0,)), "1 shares were given for 3 buckets"),
        (BucketMode(shares=(1.0, -1.0, 0.0)), "must not be negative"),
        (BucketMode(shares=(0.0, 0.0, 0.0)), "one must be above 0"),
        (BucketMode(shares=(1.0, 1.0, float("nan"))), "one must be above 0"),
        (BucketMode(shares=(1.0, 1.0, 1.0)), "bucket 1 has a share of 1.0 and no samples"),
    ],
)
def test_settings_that_do_not_fit_the_corpus(mode: BucketMode, message: str) -> None:
    column = np.array([0, 2])
    corpus = SampleTable.from_columns(column, np.array([64, 100]), np.array([5, 5]))
    with pytest.raises(ConfigError, match=message):
        build_sampler(corpus, SamplerConfig(bucket=mode))


def test_a_budget_below_the_largest_sample_is_refused(corpus: SampleTable) -> None:
    with pytest.raises(DataError, match="more than the budget of 4200"):
        build_sampler(corpus, SamplerConfig(mode="packed", packed=PackedMode(token_budget=4200)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SamplerConfig(num_virtual_ranks=0),
        lambda: PackedMode(token_budget=0),
        lambda: PackedMode(lookahead=0.9),
        lambda: PackedMode(cost_model=CostModel(linear_tokens=-5)),
    ],
)
def test_settings_out_of_range(make: Any) -> None:
    with pytest.raises(ConfigError, match="at (least|most)"):
        make()
