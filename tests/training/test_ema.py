"""The moving average against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from petzval.training.ema import Ema


def set_weight(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_average_follows_its_recurrence() -> None:
    model = nn.Linear(1, 1, bias=False)
    set_weight(model, 4.0)
    ema = Ema(model, 0.8)
    expected = 4.0
    for number, value in enumerate([1.0, 2.0, -3.0, 5.0, 0.5] * 10):
        decay = min(0.8, (1 + number) / (10 + number))
        assert ema.current_decay() == pytest.approx(decay)
        expected = decay * expected + (1 - decay) * value
        set_weight(model, value)
        ema.update(model)
    assert float(ema.averages["weight"]) == pytest.approx(expected, rel=1e-5)


def test_a_constant_stays_what_it_is() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.99)
    for _ in range(5):
        ema.update(model)
    assert torch.allclose(ema.averages["weight"], model.weight, atol=1e-6)


def test_the_model_carries_the_averages_only_inside_the_block() -> None:
    model = nn.Linear(1, 1, bias=False)
    set_weight(model, 0.0)
    ema = Ema(model, 0.5)
    set_weight(model, 1.0)
    with ema.applied_to(model):
        assert float(model.weight.detach()) == 0.0
    assert float(model.weight.detach()) == 1.0
    with pytest.raises(RuntimeError), ema.applied_to(model):
        raise RuntimeError("a preview failed")
    assert float(model.weight.detach()) == 1.0
