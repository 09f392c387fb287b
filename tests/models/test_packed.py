"""Packed samples against each by itself, forward and backward, and against the masked batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from petzval.kernels import dispatch
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.packed import PackedLayout, pack_layout

LIMIT = 1e-5
CONFIG = MMDiTConfig(
    num_layers=3,
    num_attention_heads=2,
    in_channels=8,
    out_channels=2,
    enc_hidden_dim=12,
    selected_layer_index=(0, 1),
    attention_head_dim=16,
    axes_dims_rope=(4, 6, 6),
)
GRIDS = ((3, 4), (5, 2), (1, 1), (4, 4), (2, 6))
TEXTS = ((5, 4, 1, 7, 3), (5, 0, 1, 7, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 9))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> MMDiT:
    made = MMDiT(CONFIG)
    for number, parameter in enumerate(made.parameters()):
        spread = 0.5 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
        parameter.data = spread * draw(*parameter.shape, seed=number)
    return made


class Samples:
    """Inputs of some samples; text of a sample is [length, width] for each layer."""

    def __init__(self, grids: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        self.grids, self.lengths = tuple(grids), tuple(lengths)
        sizes = [height * width for height, width in grids]
        self.tokens = [draw(n, 8, seed=100 + i).requires_grad_() for i, n in enumerate(sizes)]
        self.features = [
            [draw(n, 12, seed=200 + 10 * i + layer) for layer in range(2)]
            for i, n in enumerate(lengths)
        ]
        self.sigma = torch.linspace(0.1, 0.9, len(sizes))
        self.targets = [draw(n, 8, seed=300 + i) for i, n in enumerate(sizes)]

    def layout(self, pad_to: int | None = None) -> PackedLayout:
        return pack_layout(self.grids, self.lengths, CONFIG.axes_dims_rope, pad_to=pad_to)

    def packed(self, model: MMDiT, pad_to: int | None = None) -> list[Tensor]:
        layout = self.layout(pad_to)
        features = [torch.cat([f[layer] for f in self.features])[None] for layer in range(2)]
        tokens = layout.join(self.tokens)
        return layout.split(model.packed_velocity(tokens, features, self.sigma, layout))

    def one_by_one(self, model: MMDiT) -> list[Tensor]:
        return [
            model.velocity(
                self.tokens[i][None],
                [f[None] for f in self.features[i]] if self.lengths[i] else [],
                self.sigma[i : i + 1],
                self.grids[i],
            )[0]
            for i in range(len(self.grids))
        ]

    def gradients(self, model: MMDiT, out: list[Tensor]) -> dict[str, Tensor]:
        """Of the mean over samples of each sample's mean squared error."""
        errors = [(o - t).square().mean() for o, t in zip(out, self.targets, strict=True)]
        named = dict(model.named_parameters())
        inputs = [*named.values(), *self.tokens]
        found = torch.autograd.grad(torch.stack(errors).mean(), inputs, materialize_grads=True)
        return dict(zip([*named, *(f"tokens {i}" for i in range(9))], found, strict=False))


def assert_equal(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        scale = max(1.0, float(other.detach().abs().max()))
        assert (one - other).abs().max() <= LIMIT * scale


@pytest.mark.parametrize("lengths", TEXTS)
@pytest.mark.parametrize("pad_to", [None, 90])
def test_packed_equals_each_sample_by_itself(
    model: MMDiT, lengths: tuple[int, ...], pad_to: int | None
) -> None:
    samples = Samples(GRIDS, lengths)
    got, expected = samples.packed(model, pad_to), samples.one_by_one(model)
    assert_equal(got, expected)
    found, wanted = samples.gradients(model, got), samples.gradients(model, expected)
    assert found.keys() == wanted.keys()
    assert_equal(list(found.values()), list(wanted.values()))
    assert all(bool(wanted[f"tokens {i}"].abs().max() > 1e-3) for i in range(len(GRIDS)))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 8)), min_size=1, max_size=5
    )
)
def test_any_mix_of_sizes(model: MMDiT, sizes: list[tuple[int, int, int]]) -> None:
    samples = Samples([size[:2] for size in sizes], [size[2] for size in sizes])
    with torch.no_grad():
        assert_equal(samples.packed(model), samples.one_by_one(model))


def test_packed_equals_the_masked_batch(model: MMDiT) -> None:
    """Texts of 6, 0 and 3 tokens: the blank one is a row of the mask without a single token."""
    samples = Samples([(3, 4)] * 3, (6, 0, 3))
    mask = torch.arange(6)[None] < torch.tensor(samples.lengths)[:, None]
    features = [
        torch.stack(
            [torch.cat((f[layer], draw(6 - len(f[layer]), 12, seed=7))) for f in samples.features]
        )
        for layer in range(2)
    ]
    batch = torch.stack(samples.tokens)
    masked = list(model.velocity(batch, features, samples.sigma, (3, 4), mask))
    packed = samples.packed(model)
    assert_equal(packed, masked)
    found, wanted = samples.gradients(model, packed), samples.gradients(model, masked)
    assert_equal(list(found.values()), list(wanted.values()))


def test_reference_arithmetic_gives_the_same(model: MMDiT) -> None:
    samples = Samples(GRIDS, TEXTS[1])
    with torch.no_grad():
        fast = samples.packed(model)
        with dispatch.reference():
            assert_equal(samples.packed(model), fast)


def test_padding_meets_no_sample(model: MMDiT) -> None:
    """Whatever stands in the padding, even NaN, all samples stay as they are, bit by bit."""
    samples = Samples(GRIDS, TEXTS[0])
    layout = samples.layout(pad_to=100)
    assert layout.num_padding == 100 - 51 - 20
    features = [torch.cat([f[layer] for f in samples.features])[None] for layer in range(2)]
    tokens = layout.join(samples.tokens).detach()
    results: list[list[Tensor]] = []
    for filling in (0.0, 1e4, float("nan")):
        padded = tokens.clone()
        padded[:, -layout.num_padding :] = filling
        padded.requires_grad_()
        out = layout.split(model.packed_velocity(padded, features, samples.sigma, layout))
        results.append(out)
        if filling == 1e4:
            (gradient,) = torch.autograd.grad(torch.cat(out).square().sum(), padded)
            assert bool((gradient[:, -layout.num_padding :] == 0).all())
            assert bool((gradient[:, : -layout.num_padding].abs().sum(-1) > 0).all())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_samples_do_not_meet_each_other(model: MMDiT) -> None:
    samples = Samples(GRIDS, TEXTS[0])
    out = samples.packed(model)
    inputs = samples.tokens
    gradients = torch.autograd.grad(out[1].square().sum(), inputs, materialize_grads=True)
    assert [bool(g.abs().max() > 0) for g in gradients] == [False, True, False, False, False]


def test_means_are_those_of_the_samples() -> None:
    layout = Samples(((1, 2), (3, 1)), (4, 0)).layout(pad_to=12)
    values = torch.tensor([[1.0, 3.0, 6.0, 6.0, 0.0, 99.0, 99.0, 99.0]])
    assert layout.sample_means(values).tolist() == [2.0, 4.0]


def test_a_layout_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no layout"):
        pack_layout([], [])
    with pytest.raises(ValueError, match="1 grids and 2 text lengths"):
        pack_layout([(2, 2)], [1, 2])
    with pytest.raises(ValueError, match="no layout"):
        pack_layout([(2, 2)], [-1])
    with pytest.raises(ValueError, match="7 tokens are more than the 6"):
        pack_layout([(2, 2)], [3], pad_to=6)


def test_inputs_that_do_not_lie_as_the_layout_says(model: MMDiT) -> None:
    samples = Samples(((2, 2), (1, 3)), (2, 0))
    layout = samples.layout()
    features = [draw(1, 2, 12, seed=layer) for layer in range(2)]
    with pytest.raises(ValueError, match=r"samples of \[3, 4\] tokens do not lie"):
        layout.join(samples.tokens[::-1])
    tokens = layout.join(samples.tokens)
    with pytest.raises(ValueError, match=r"\(7, 2, 1\), but \(7, 2, 2\)"):
        model.packed_velocity(tokens, features, torch.tensor([0.5]), layout)
    with pytest.raises(ValueError, match=r"\(7, 3, 2\)"):
        long = [draw(1, 3, 12, seed=layer) for layer in range(2)]
        model.packed_velocity(tokens, long, samples.sigma, layout)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_on_a_gpu(model: MMDiT, dtype: torch.dtype) -> None:
    """Flash or flex attention, padding included, against the CPU in float32."""
    samples = Samples(GRIDS, TEXTS[1])
    layout = pack_layout(GRIDS, TEXTS[1], CONFIG.axes_dims_rope, pad_to=90, device="cuda")
    copy = MMDiT(CONFIG).to("cuda", dtype)
    copy.load_state_dict(model.state_dict())
    features = [torch.cat([f[layer] for f in samples.features])[None].cuda() for layer in range(2)]
    tokens = layout.join(samples.tokens).detach().cuda().requires_grad_()
    out = layout.split(copy.packed_velocity(tokens, features, samples.sigma.cuda(), layout))
    expected = samples.one_by_one(model)
    limit = 1e-4 if dtype == torch.float32 else 0.1
    for one, other in zip(out, expected, strict=True):
        assert (one.float().cpu() - other).abs().max() <= limit * other.abs().max()
    (gradient,) = torch.autograd.grad(torch.cat(out).float().square().sum(), tokens)
    inputs = [*samples.tokens]
    wanted = torch.autograd.grad(torch.cat(expected).square().sum(), inputs)
    difference = torch.cat(layout.split(gradient)).cpu() - torch.cat(wanted)
    assert difference.abs().max() <= limit * torch.cat(wanted).abs().max()


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_packed_block_is_one_graph(model: MMDiT) -> None:
    samples = Samples(GRIDS, TEXTS[1])
    expected = samples.packed(model)
    copy = MMDiT(CONFIG)
    copy.load_state_dict(model.state_dict())
    for block in copy.transformer_blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    got = samples.packed(copy)
    assert_equal(got, expected)
    wanted = samples.gradients(model, expected)
    assert_equal(list(samples.gradients(copy, got).values()), list(wanted.values()))
