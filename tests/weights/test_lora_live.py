"""LoRAs beside the weights against LoRAs in them: the slow truth of what a change does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petzval.weights.lora import Kronecker, LayerChange, Lora, LowRank
from petzval.weights.lora_live import LiveLoras


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


PIECES = {
    "low rank": LayerChange(
        shape=(12, 6), pieces=((0, LowRank(down=random(2, 6), up=random(12, 2), scale=0.5)),)
    ),
    "thirds": LayerChange(
        shape=(12, 6),
        pieces=(
            (0, LowRank(down=random(1, 6), up=random(4, 1))),
            (8, LowRank(down=random(3, 6), up=random(4, 3), scale=2.0)),
        ),
    ),
    "kronecker": LayerChange(
        shape=(12, 6), pieces=((0, Kronecker(left=random(3, 2), right=random(4, 3), scale=0.7)),)
    ),
}


@pytest.mark.parametrize("name", sorted(PIECES))
def test_what_is_added_is_the_product_times_the_input(name: str) -> None:
    change, x = PIECES[name], random(2, 5, 6)
    assert torch.allclose(change.apply(x), x @ change.product().T, atol=1e-5)
    moved = change.to(torch.device("cpu"), torch.bfloat16)
    assert moved.apply(x.bfloat16()).dtype == torch.bfloat16


def lora(name: str, change: LayerChange) -> Lora:
    return Lora(path=Path(name), sha256="", changes={"0": change})


def test_strengths_change_without_the_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.SiLU())
    linear, x = network[0], random(4, 6)
    assert isinstance(linear, torch.nn.Linear)
    before, plain = linear.weight.clone(), network(x)
    first, second = PIECES["thirds"], PIECES["kronecker"]
    live = LiveLoras([lora("a", first), lora("b", second)], (0.0, 0.0))
    live.attach(network, torch.device("cpu"), torch.float32)
    assert torch.equal(network(x), plain)  # to the bit
    for strengths in ((1.0, 0.0), (0.3, -2.0)):
        live.set(strengths)
        weight = before + strengths[0] * first.product() + strengths[1] * second.product()
        expected = torch.nn.functional.silu(torch.nn.functional.linear(x, weight, linear.bias))
        assert torch.allclose(network(x), expected, atol=1e-5)
    assert torch.equal(linear.weight, before)
    with pytest.raises(ValueError, match="1 strengths for 2 LoRAs"):
        live.set((1.0,))
    live.detach()
    assert torch.equal(network(x), plain)


def test_where_memory_runs_out_the_old_network_keeps_its_loras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some layers with them and some without would draw something else, and say nothing."""
    cpu, x = torch.device("cpu"), random(4, 6)
    old, new = (torch.nn.Sequential(torch.nn.Linear(6, 12)) for _ in range(2))
    live = LiveLoras([lora("a", PIECES["thirds"])], (1.0,))
    live.attach(old, cpu, torch.float32)
    expected = old(x)

    def fail(*_: object) -> LayerChange:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LayerChange, "to", fail)
    with pytest.raises(torch.OutOfMemoryError):
        live.attach(new, cpu, torch.bfloat16)
    assert torch.equal(old(x), expected)
    live.attach(new, cpu, torch.float32)  # they are there already
    assert not torch.equal(old(x), expected)
