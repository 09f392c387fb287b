"""What a dry run says is what happens: bytes alive, and operations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from petzval.models.dry_run import NOTHING, Footprint, dry_run
from petzval.models.flops import forward_flops
from petzval.models.mmdit import MMDiT
from petzval.models.rope import mmdit_rope
from petzval.models.sizes import LENS_MMDIT
from petzval.weights.manifest import build_on_meta

META = torch.device("meta")


def test_bytes_are_counted_while_they_are_alive() -> None:
    def work() -> torch.Tensor:
        first = torch.empty(1000, device=META)  # 4 kB
        second = first + 1  # 8 kB alive
        del first
        third = second.view(10, 100).sum(0)  # a view is nothing new
        del second
        return third * 2

    assert dry_run(work).peak_bytes == 8000


def test_a_weight_was_there_before() -> None:
    weight = torch.empty(64, 64, device=META)
    found = dry_run(lambda: torch.nn.functional.linear(torch.empty(2, 64, device=META), weight))
    assert found.peak_bytes == 2 * 2 * 64 * 4
    assert found.flops == 2 * 2 * 64 * 64


def test_scratch_adds_the_operands_once() -> None:
    weight = torch.empty(64, 64, device=META)

    def work() -> torch.Tensor:
        return torch.nn.functional.linear(torch.empty(2, 64, device=META), weight)

    extra = dry_run(work, scratch=True).peak_bytes - dry_run(work).peak_bytes
    assert extra == (64 * 64 + 2 * 64) * 4


def test_attention_lays_out_no_scores() -> None:
    def work() -> torch.Tensor:
        query = torch.empty(1, 2, 4096, 64, device=META)
        return torch.nn.functional.scaled_dot_product_attention(query, query, query)

    found = dry_run(work)
    assert found.peak_bytes == 2 * 2 * 4096 * 64 * 4
    assert found.flops == 4 * 2 * 4096 * 4096 * 64


def test_bytes_that_are_moved_are_those_of_all_but_products_and_views() -> None:
    weight = torch.empty(512, 512, device=META)

    def work() -> torch.Tensor:
        rows = torch.empty(512, 512, device=META)
        return (rows @ weight).view(-1) * 2

    for found in (dry_run(work), dry_run(work)):  # the second time all shapes are known
        assert found == Footprint(
            peak_bytes=3 * 2**20,
            flops=2 * 512**3,
            moved_bytes=2 * 2**20,
            made_bytes=3 * 2**20,
        )


def test_what_shares_memory_without_saying_so_is_nothing_new() -> None:
    """A product of three axes is one of two, and a view that is not declared as one."""
    weight = torch.empty(512, 512, device=META)

    def work() -> torch.Tensor:
        return torch.empty(2, 256, 512, device=META) @ weight

    for found in (dry_run(work), dry_run(work)):
        assert (found.peak_bytes, found.moved_bytes) == (2 * 2**20, 0)


def test_what_is_remembered_of_operations_is_what_they_gave() -> None:
    """Also of several results, of other strides, of other types, and where memory is shared."""

    def work(x: torch.Tensor) -> list[torch.Tensor]:
        variance, mean = torch.var_mean(x, dim=1)
        best, where = x.topk(2)
        x.add_(1.0)
        return [variance, mean, best, where, x.half(), x.T * 2, torch.cat([x, x]), x[1:], x > 0]

    def described(x: torch.Tensor) -> list[object]:
        results: list[torch.Tensor] = []
        dry_run(lambda: results.extend(work(x)))
        return [(each.shape, each.stride(), each.dtype) for each in results]

    here = work(torch.zeros(4, 6))
    for _ in range(2):
        assert described(torch.empty(4, 6, device=META)) == [
            (each.shape, each.stride(), each.dtype) for each in here
        ]


def test_one_after_the_other_takes_the_larger_and_all_operations() -> None:
    first, second = Footprint(peak_bytes=5, flops=1), Footprint(peak_bytes=3, flops=2)
    assert first.then(second).times(4) == Footprint(peak_bytes=5, flops=12)
    assert NOTHING.then(first) == first


@pytest.mark.parametrize("num_text", [0, 128])
def test_the_denoiser_has_the_operations_of_the_formula(num_text: int) -> None:
    config = dataclasses.replace(LENS_MMDIT, num_layers=2)
    model = build_on_meta(config)
    assert isinstance(model, MMDiT)

    def work() -> torch.Tensor:
        tokens = torch.empty(1, 1024, 128, device=META)
        features = [torch.empty(1, num_text, 2880, device=META) for _ in range(4)]
        rope = mmdit_rope((32, 32), num_text, config.axes_dims_rope, device=META)
        text = model.embed_text(features) if num_text else None
        return model(tokens, text, model.modulation(torch.empty(1, device=META)), rope)

    assert dry_run(work).flops == forward_flops(config, [1024], [num_text])
