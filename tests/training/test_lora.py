"""Adapters: exactly the base at the start, only their own numbers trained, the same when merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from petzval.errors import ConfigError
from petzval.models.mmdit import MMDiT
from petzval.training.checkpoint import load_checkpoint, save_checkpoint
from petzval.training.ema import Ema
from petzval.training.lora import DEFAULT_TARGETS, LoraAdapter, LoraConfig, chosen_layers
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import RunState
from petzval.weights.checkpoint import Checkpoint
from tests.support import TINY_CHECKPOINT

GRID = (4, 3)


def denoiser() -> MMDiT:
    return Checkpoint.open(TINY_CHECKPOINT).load_denoiser(torch.float32)


def drawn(model: MMDiT) -> Tensor:
    """The velocity as pictures are drawn with it; attention in training rounds differently."""
    with torch.no_grad():
        return velocity(model)


def velocity(model: MMDiT) -> Tensor:
    """Of fixed noise and words."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(2, GRID[0] * GRID[1], 128, generator=generator)
    features = [torch.randn(2, 5, 64, generator=generator) for _ in range(4)]
    return model.velocity(tokens, features, torch.tensor([0.3, 0.9]), GRID)


def stir(adapter: LoraAdapter) -> None:
    """Give every half a value, as if it had been trained."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_the_start_is_exactly_the_base() -> None:
    model = denoiser()
    before = drawn(model)
    adapter = LoraAdapter(model, LoraConfig(rank=4))
    assert len(adapter.halves()) == 3 * 10
    assert torch.equal(drawn(model), before)


@pytest.mark.parametrize("targets", [DEFAULT_TARGETS, ("*",), ("proj_out", "*img_mod.1")])
def test_merged_equals_wrapped(targets: tuple[str, ...]) -> None:
    model = denoiser()
    names = list(model.state_dict())
    base = drawn(model)
    adapter = LoraAdapter(model, LoraConfig(rank=3, alpha=6.0, targets=targets))
    stir(adapter)
    wrapped = drawn(model)
    adapter.merge(model)
    assert list(model.state_dict()) == names
    scale = float(wrapped.abs().max())
    assert float((drawn(model) - wrapped).abs().max()) <= 1e-6 * max(1.0, scale)
    assert float((wrapped - base).abs().max()) > 1e-3


def test_only_the_adapter_is_trained_averaged_and_saved(tmp_path: Path) -> None:
    model = denoiser()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = LoraAdapter(model, LoraConfig(rank=2))
    config = OptimizerConfig(learning_rate=1e-2)
    state = RunState(
        model=adapter, optimizers=build_optimizers(adapter, config), ema=Ema(adapter, 0.9)
    )
    for _ in range(2):
        velocity(model).square().mean().backward()
        state.optimizers[0].step()
        assert state.ema is not None
        state.ema.update(adapter)
    after = model.state_dict()
    for name, tensor in before.items():
        layer, _, last = name.rpartition(".")
        wrapped = f"{layer}.base.{last}"
        assert torch.equal(after[wrapped if wrapped in after else name], tensor)
    assert all(parameter.grad is None for parameter in denoiser().parameters())
    saved = save_checkpoint(tmp_path, state)
    stored = load_file(saved / "model.safetensors")
    assert len(stored) == 2 * 30
    assert all(name.endswith(("lora_A", "lora_B")) for name in stored)
    assert load_file(saved / "ema.safetensors").keys() == stored.keys()

    other = denoiser()
    again = LoraAdapter(other, LoraConfig(rank=2), seed=1)
    fresh = RunState(model=again, optimizers=build_optimizers(again, config), ema=Ema(again, 0.9))
    load_checkpoint(saved, fresh)
    assert torch.equal(drawn(other), drawn(model))


def test_a_base_in_bfloat16_is_trained_in_float32() -> None:
    """As on a GPU: frozen weights in bfloat16, products in bfloat16, halves in float32."""
    model = Checkpoint.open(TINY_CHECKPOINT).load_denoiser(torch.bfloat16)
    adapter = LoraAdapter(model, LoraConfig(rank=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = velocity(model)
    before.float().square().mean().backward()
    trained = {n: p for n, p in adapter.named_parameters() if p.grad is not None}
    assert len(trained) == 2 * (30 - 4)  # the last block's text is never read
    with torch.no_grad():
        for parameter in trained.values():
            assert parameter.dtype == torch.float32 and parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = velocity(model)
    assert after.float().square().mean() < before.float().square().mean()


def test_the_seed_decides_the_start() -> None:
    first, same, other = (
        LoraAdapter(denoiser(), LoraConfig(rank=2), seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_dropout_is_a_function_of_its_seed_and_acts_in_its_block_alone() -> None:
    model = denoiser()
    adapter = LoraAdapter(model, LoraConfig(rank=2, dropout=0.5))
    stir(adapter)
    plain = drawn(model)

    def dropped(*seeds: int) -> Tensor:
        with adapter.dropout(seeds):
            return drawn(model)

    both = dropped(3, 4)
    assert torch.equal(both, dropped(3, 4))
    assert not torch.equal(both, plain)
    # A row is a function of its own seed.
    other = dropped(3, 5)
    assert torch.equal(both[0], other[0]) and not torch.equal(both[1], other[1])
    assert torch.equal(drawn(model), plain)
    silent = LoraAdapter(denoiser(), LoraConfig(rank=2))
    with silent.dropout([1]):
        pass


def test_dropout_keeps_the_expectation() -> None:
    model = nn.Sequential(nn.Linear(64, 8, bias=False))
    adapter = LoraAdapter(model, LoraConfig(rank=4, dropout=0.25, targets=("0",)))
    stir(adapter)
    x = torch.ones(4000, 64)
    with torch.no_grad(), adapter.dropout(range(4000)):
        mean = model(x).mean(0)
    with torch.no_grad():
        assert torch.allclose(mean, model(x)[0], atol=5e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ("transformer_blocks.*.attn.img_kqv",)}, "img_kqv"),
        ({"targets": ("transformer_blocks.*.img_norm1",)}, "img_norm1"),
        ({"targets": ()}, "at least one"),
        ({"rank": 0}, "rank"),
        ({"rank": 10**6}, "rank"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraAdapter(denoiser(), LoraConfig(**changes))  # pyright: ignore[reportArgumentType]


def test_patterns_are_those_of_a_shell() -> None:
    layers = chosen_layers(denoiser(), ("transformer_blocks.[02].*_mlp.w1",))
    places = [(block, stream) for block in (0, 2) for stream in ("img", "txt")]
    assert list(layers) == [f"transformer_blocks.{b}.{stream}_mlp.w1" for b, stream in places]
