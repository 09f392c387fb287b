from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from petzval.scoring.dual_encoder import (
    ConceptTower,
    DualEncoder,
    PictureHead,
    contrastive_loss,
)
from tests.scoring.shapes import PixelBackbone

NAMES = {f"c{i}": f"thing{i}" for i in range(40)} | {"cat": "cat", "cat-face": "cat face"}


def encoder() -> DualEncoder:
    table = F.normalize(torch.randn(42, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    head = PictureHead(144, 2, hidden=8, embedding=16)
    return DualEncoder(PixelBackbone(), head, NAMES, table, ("a", "b"))


def test_embeddings_have_unit_length() -> None:
    embeddings, styles = encoder().embed(torch.rand(3, 3, 48, 48))
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    assert styles.shape == (3, 2)


def test_standardised_features_are_centred() -> None:
    head = PictureHead(144, 2, hidden=8, embedding=16).eval()
    features = 5 + 3 * torch.randn(200, 144, generator=torch.Generator().manual_seed(0))
    head.standardise(features)
    scaled = (features - head.mean) / head.deviation
    assert float(scaled.mean().abs()) < 1e-5
    assert float(scaled.std()) == pytest.approx(1, abs=0.02)
    constant = PictureHead(144, 2, hidden=8, embedding=16).eval()
    constant.standardise(torch.ones(9, 144))
    assert bool(torch.isfinite(constant(torch.ones(2, 144))[0]).all())


def test_a_concepts_own_embedding_ranks_first() -> None:
    one = encoder()
    table = F.normalize(torch.randn(42, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    for index, concept in enumerate(NAMES):
        assert one.rank(table[index], concept, 30) == 1
    assert one.nearest(table[3]) == "thing3"


def test_the_opposite_of_a_concept_ranks_last() -> None:
    one = encoder()
    table = F.normalize(torch.randn(42, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert one.rank(-table[5], "c5", 30) == 31


def test_distractors_are_fixed_distinct_and_never_a_part_of_the_name() -> None:
    first, second = encoder().distractors("cat", 30), encoder().distractors("cat", 30)
    assert torch.equal(first, second)
    assert len(set(first.tolist())) == 30
    everything = encoder().distractors("cat", 1000).tolist()
    names = list(NAMES)
    assert "cat" not in {names[i] for i in everything}
    assert "cat-face" not in {names[i] for i in everything}
    assert len(everything) == 40


def test_shared_words_bring_concepts_together() -> None:
    torch.manual_seed(0)
    rows = [("fire", "engine"), ("fire",), ("soap",)]
    tower = ConceptTower(rows, 64)
    torch.nn.init.zeros_(tower.own.weight)
    table = tower().detach()
    assert float(table[0] @ table[1]) > 0.4 > float(table[0] @ table[2])


def test_the_loss_is_lowest_for_the_right_pairing() -> None:
    table = torch.eye(4)
    scale = torch.tensor(20.0)
    right = contrastive_loss(table, table, torch.arange(4), scale, smoothing=0.0)
    wrong = contrastive_loss(table, table, torch.tensor([1, 0, 3, 2]), scale, smoothing=0.0)
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx(20, rel=1e-3)
