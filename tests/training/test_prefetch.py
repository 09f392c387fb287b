"""Batches in order, errors in their place, frozen work done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from petzval.training.loop import LoopConfig, train
from petzval.training.optimizer import OptimizerConfig
from petzval.training.prefetch import Prefetcher, tensors_in
from tests.training.toy import LinearObjective, Pairs, same_state, toy_state

CPU = torch.device("cpu")


def makers(count: int, broken: int = -1) -> Iterator[Callable[[], int]]:
    def make(number: int) -> int:
        if number == broken:
            raise ValueError(f"batch {number} is broken")
        return number

    for number in range(count):
        yield lambda number=number: make(number)


def test_batches_come_in_order_prepared_once() -> None:
    prepared: list[int] = []

    def prepare(batch: int) -> int:
        prepared.append(batch)
        return batch * 10

    batches = Prefetcher(makers(4), prepare, CPU)
    assert next(batches) == 0
    assert prepared == [0], "nothing is prepared ahead where nothing overlaps"
    assert list(batches) == [10, 20, 30]
    assert prepared == [0, 1, 2, 3]
    assert list(Prefetcher(makers(3), None, CPU)) == [0, 1, 2]


@pytest.mark.parametrize("at", ["making", "preparing"])
def test_an_error_comes_through_at_its_own_batch(at: str) -> None:
    def prepare(batch: int) -> int:
        if at == "preparing" and batch == 2:
            raise ValueError("batch 2 is broken")
        return batch

    batches = Prefetcher(makers(5, broken=2 if at == "making" else -1), prepare, CPU)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2 is broken"):
        next(batches)
    assert next(batches) == 3


class _Event:
    def record(self, stream: Any) -> None: ...


class _Stream:
    def wait_event(self, event: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_work_ahead_keeps_order_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way of going, with its streams taken out."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: _Stream())  # type: ignore[misc]
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)  # type: ignore[misc]
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    prepared: list[int] = []

    def prepare(batch: int) -> int:
        prepared.append(batch)
        return batch

    batches = Prefetcher(makers(4, broken=2), prepare, torch.device("cuda"))
    assert next(batches) == 0 and prepared == [0, 1]
    assert next(batches) == 1 and prepared == [0, 1]
    with pytest.raises(ValueError, match="batch 2 is broken"):
        next(batches)
    assert next(batches) == 3
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.gpu
def test_work_on_a_side_stream_is_seen_by_the_main_one() -> None:
    device = torch.device("cuda")

    def slow(batch: Tensor) -> Tensor:
        value = batch.to(device)
        for _ in range(50):
            value = value @ torch.eye(512, device=device)
        return value

    made = [lambda n=n: torch.full((512, 512), float(n)) for n in range(6)]
    for number, batch in enumerate(Prefetcher(made, slow, device)):
        assert float(batch.mean()) == number


def test_tensors_are_found_wherever_they_are() -> None:
    @dataclass
    class Batch:
        first: Tensor
        rest: dict[str, Any]

    tensors = [torch.full((), float(n)) for n in range(4)]
    batch = Batch(
        first=tensors[0], rest={"a": [tensors[1], (tensors[2],)], "b": 5, "c": tensors[3]}
    )
    assert [float(tensor) for tensor in tensors_in(batch)] == [0, 1, 2, 3]


class PreparingObjective(LinearObjective):
    """Its frozen network turns the inputs round; the loss turns them back."""

    def prepare(self, batch: Pairs) -> Pairs:
        assert not torch.is_grad_enabled()
        return Pairs(inputs=-batch.inputs, targets=batch.targets)

    def loss(self, batch: Pairs) -> Any:
        return super().loss(Pairs(inputs=-batch.inputs, targets=batch.targets))


def test_an_objective_is_prepared_in_the_loop(tmp_path: Any) -> None:
    config = LoopConfig(optimizer=OptimizerConfig(), num_steps=5)
    plain, prepared = toy_state(config.optimizer), toy_state(config.optimizer)
    train(LinearObjective(plain.model), plain, config, tmp_path / "plain")
    train(PreparingObjective(prepared.model), prepared, config, tmp_path / "prepared")
    assert same_state(plain, prepared)
