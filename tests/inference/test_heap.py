"""Freed memory is kept where a plan leaves room for the holes in it, and given back elsewhere."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from petzval.inference.placement import NetworkPlacement, Placement, Strategy
from petzval.inference.residency import settle_heap
from petzval.inference.terms import Budget
from petzval.kernels import backends


def placed(device: str, weights: int) -> Placement:
    network = NetworkPlacement(
        network="denoiser",
        strategy=Strategy(residence="resident", device=device),
        stored=(),
        weight_bytes=weights,
        staying_bytes=weights,
        working_bytes=0,
        kept_bytes=0,
        host_bytes=weights,
        moved_bytes=0,
        seconds=1.0,
        further_seconds=1.0,
        other_seconds=1.0,
    )
    return Placement(
        device=device,
        dtype="float32",
        height=64,
        width=64,
        steps=1,
        text_tokens=1,
        batch=1,
        networks=tuple(replace(network, network=n) for n in ("encoder", "denoiser", "autoencoder")),
        baseline_bytes=0,
    )


@pytest.mark.parametrize(
    ("device", "limits", "expected"),
    [
        ("cpu", Budget(), [True]),
        ("cpu", Budget(memory=4_000_000_000), [True]),
        ("cpu", Budget(memory=3_700_000_000), [False]),
        ("cuda", Budget(memory=3_100_000_000), []),
        ("cuda", Budget(memory=3_100_000_000, ram=1_100_000_000), [False]),
    ],
)
def test_the_heap_is_kept_where_there_is_room_for_its_holes(
    device: str, limits: Budget, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = placed(device, 1_000_000_000)
    told = list[bool]()
    monkeypatch.setattr(backends, "keep_heap", lambda keep: told.append(keep))
    settle_heap(limits, placement.device, placement.ram_bytes)
    assert told == expected


def test_a_heap_that_is_kept_gives_back_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a quarter of what is used, and than 256 MB."""
    held, given_back, used = 0, list[int](), 2_000_000_000
    told = list[tuple[int, int]]()
    monkeypatch.setattr(backends.sys, "platform", "linux")
    library = SimpleNamespace(mallopt=lambda *given: told.append(given) or 1)
    monkeypatch.setattr(backends.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(backends, "_KeptHeap", type("_KeptHeap", (), {"kept": False, "used": 0}))
    monkeypatch.setattr(backends, "resident_bytes", lambda: held)

    def trim() -> None:
        nonlocal held
        given_back.append(held - used)
        held = used

    monkeypatch.setattr(backends, "trim_heap", trim)
    held = used + 400_000_000
    assert not backends.spare_heap()  # nobody keeps anything
    assert backends.keep_heap(True) and told
    for more in (400_000_000, 499_000_000, 501_000_000, 100_000_000):
        held = used + more
        backends.spare_heap()
    assert given_back == [400_000_000, 501_000_000]  # at first nobody knows what is used
    used = 300_000_000  # the networks are gone
    for more in (0, 255_000_000, 257_000_000):
        held = used + more
        backends.spare_heap()
    assert given_back[2:] == [257_000_000]
    backends.keep_heap(False)
    held = 10 * used
    assert not backends.spare_heap()
