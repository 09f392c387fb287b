"""float16 with scaled products: where plain float16 overflows, the block equals float32's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from petzval.kernels import dispatch, fast, reference
from petzval.kernels.fast import power_of_two_above
from petzval.models.half import ScaledLinear, use_scaled_float16
from petzval.models.mmdit import MMDiT
from petzval.weights.manifest import build_on_meta


def test_powers_of_two_are_exact_and_above() -> None:
    values = torch.tensor([0.0, 0.75, 1.0, 3.0, 65_504.0, 1e30, 1e-30])
    powers = power_of_two_above(values)
    assert powers.tolist()[:4] == [1.0, 1.0, 2.0, 4.0]
    assert (powers[1:] > values[1:]).all()
    assert (powers[1:] <= 2 * values[1:]).all()
    mantissas, _ = torch.frexp(powers)
    assert (mantissas == 0.5).all()


def _loaded(linear: nn.Linear) -> ScaledLinear:
    scaled = ScaledLinear(linear.in_features, linear.out_features, bias=True)
    tensors = {"weight": linear.weight.detach(), "bias": linear.bias.detach()}
    for name, tensor in scaled.prepared(lambda key, dtype, _: tensors[key].to(dtype)).items():
        scaled.register_buffer(name, tensor)
    return scaled


@torch.no_grad()
def test_the_largest_possible_result_fits() -> None:
    linear = nn.Linear(4096, 1)
    linear.weight.fill_(3e4)
    assert float(_loaded(linear)(torch.full((1, 4096), 1e9))) == pytest.approx(
        4096 * 3e13, rel=1e-3
    )


@torch.no_grad()
def test_a_scaled_product_holds_what_float16_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 64)
    x = torch.randn((1, 8, 256), generator=generator) * torch.logspace(-4, 7, 8)[:, None]
    expected, got = linear(x), _loaded(linear)(x)
    assert not torch.isfinite(copy.deepcopy(linear).half()(x.half())).all()
    error = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 1e-3  # every token by itself, the small ones as well as the large


@torch.no_grad()
def test_one_channel_of_thirty_million_does_not_silence_the_others() -> None:
    """The streams' largest channel is 3 x 10^7; what reads them has all but unlearnt that one."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 64)
    x = torch.randn((1, 8, 256), generator=generator)
    x[..., 5] = 3e7
    linear.weight[:, 5] = 0
    expected, got = linear(x), _loaded(linear)(x)
    assert (got - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("value", [1.9e4, 7.2e4, 1.4e5, 3.1e7])
@torch.no_grad()
def test_no_value_that_was_measured_overflows(value: float) -> None:
    """Largest |V| of three programs' measurements, and the stream behind the second block."""
    linear = nn.Linear(1536, 8)
    linear.weight.copy_(linear.weight.abs())  # all of one sign: the largest sum there can be
    x = torch.full((1, 2, 1536), value)
    assert torch.isfinite(_loaded(linear)(x)).all()
    assert float((_loaded(linear)(x) / linear(x) - 1).abs().max()) < 2e-3
    query, key = torch.randn(2, 1, 6, 1, 64).unbind(0)
    held = torch.full((1, 6, 1, 64), value)
    assert float((fast.scaled_attention(query, key, held) / held - 1).abs().max()) < 2e-3
    if value > 65_504:
        assert not torch.isfinite(held.half()).any()


def test_attention_with_values_beyond_float16() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn((3, 1, 12, 2, 16), generator=generator).unbind(0)
    value = value * 1e5
    expected = reference.attention(query, key, value)
    assert (fast.scaled_attention(query, key, value) - expected).norm() < 2e-3 * expected.norm()
    with dispatch.reference():
        assert torch.equal(dispatch.scaled_attention(query, key, value), expected)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[:, 9:] = False
    expected = reference.attention(query, key, value, mask)
    got = fast.scaled_attention(query, key, value, mask)
    assert (got - expected).norm() < 2e-3 * expected.norm()


def _velocity(model: MMDiT, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    config = model.config
    tokens = torch.randn((1, 12, config.in_channels), generator=generator).to(dtype)
    features = [
        torch.randn((1, 5, config.enc_hidden_dim), generator=generator).to(dtype)
        for _ in config.selected_layer_index
    ]
    with torch.no_grad():
        return model.velocity(tokens, features, torch.tensor([0.7]), (3, 4)).float()


@pytest.fixture
def inflated(denoiser: MMDiT) -> MMDiT:
    """The tiny denoiser with values and gated units as large as the published model's."""
    model = copy.deepcopy(denoiser)
    width = model.config.hidden_size
    for block in model.transformer_blocks:
        attention, mlp = block.get_submodule("attn"), block.get_submodule("img_mlp")
        attention.get_parameter("img_qkv.weight")[2 * width :] *= 2e5
        attention.get_parameter("to_out.0.weight").mul_(1e-3)
        mlp.get_parameter("w3.weight").mul_(1e5)
        mlp.get_parameter("w2.weight").mul_(1e-3)
    return model


def test_the_scaled_block_equals_float32_where_plain_float16_overflows(inflated: MMDiT) -> None:
    expected = _velocity(inflated, torch.float32)
    assert torch.isfinite(expected).all()
    assert not torch.isfinite(_velocity(copy.deepcopy(inflated).half(), torch.float16)).all()
    scaled = build_on_meta(inflated.config)
    assert isinstance(scaled, MMDiT)
    use_scaled_float16(scaled)
    state = inflated.state_dict()
    for name, module in scaled.named_modules():
        place = f"{name}." if name else ""
        if isinstance(module, ScaledLinear):

            def read(key: str, dtype: torch.dtype | None, _: object, place: str = place) -> Tensor:
                return state[place + key].to(dtype)

            for key, tensor in module.prepared(read).items():
                module.register_buffer(key, tensor)
        else:
            for key, _ in list(module.named_parameters(recurse=False)):
                weight = nn.Parameter(state[place + key], requires_grad=False)
                module.register_parameter(key, weight)
    got = _velocity(scaled, torch.float32)
    assert torch.isfinite(got).all()
    assert (got - expected).norm() < 5e-3 * expected.norm()
