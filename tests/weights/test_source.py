"""Views of a source: names, shapes and types without numbers, and files let go as they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petzval.errors import CheckpointError
from petzval.weights import source as module
from petzval.weights.source import (
    DerivedSource,
    Source,
    TensorDescription,
    changed,
    derived,
    joined,
    packings,
    total_bytes,
)
from petzval.weights.tensors import TensorSource
from tests.weights.formats import saved


@pytest.fixture
def base(tmp_path: Path) -> TensorSource:
    state = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3), "n": torch.tensor([7])}
    return TensorSource.open(saved(tmp_path / "x", state))


def test_a_view_is_a_source(base: TensorSource) -> None:
    view = DerivedSource(base, [derived(base, "a", "A"), derived(base, "n")])
    assert isinstance(base, Source)
    assert isinstance(view, Source)
    assert all(isinstance(info, TensorDescription) for info in view.infos.values())
    assert list(view) == ["A", "n"]
    assert len(view) == 2
    assert "a" not in view
    assert view.files == base.files
    assert view.digest() == base.digest()
    assert packings(view) == ()
    assert total_bytes(view) == 2 * 3 * 4 + 8
    assert view.read("A", torch.bfloat16).dtype == torch.bfloat16
    assert view.read("n", torch.bfloat16).dtype == torch.int64  # integers keep their type


def test_pieces_and_changes(base: TensorSource) -> None:
    stacked = joined(base, "ab", ["a", "b"], (4, 3), torch.cat)
    turned = changed(base, derived(base, "a", "t"), "a", (3, 2), lambda x: x.T)
    view = DerivedSource(base, [stacked, turned])
    assert view.read("ab").shape == view.infos["ab"].shape == (4, 3)
    assert view.infos["ab"].num_bytes == 48
    assert view.read("t").shape == view.infos["t"].shape == (3, 2)


def test_two_tensors_of_one_name(base: TensorSource) -> None:
    with pytest.raises(CheckpointError, match="key 'a' is there twice, under two names"):
        DerivedSource(base, [derived(base, "a"), derived(base, "b", "a")])


def test_files_are_mapped_anew_as_they_are_read(
    base: TensorSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMAP_BYTES", 40)
    closed: list[int] = []
    monkeypatch.setattr(base, "close", lambda: closed.append(1))
    view = DerivedSource(base, [derived(base, "a"), derived(base, "b")])
    for _ in range(2):
        view.read("a", torch.bfloat16)
        view.read("b", torch.bfloat16)
    assert len(closed) == 2
