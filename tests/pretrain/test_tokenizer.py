"""The driver that cuts a vocabulary for a corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from petzval.errors import DataError
from petzval.pretrain import tokenizer
from tests.support import golden_ranks


class _Library:
    """Stands in for the sprites of a corpus."""

    @staticmethod
    def open(folder: Path) -> Path:
        return folder


def _texts(folder: Path) -> list[str]:
    return folder.read_text(encoding="utf-8").splitlines()


def test_a_corpus_decides_which_tokens_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "load_ranks", golden_ranks)
    monkeypatch.setattr(tokenizer, "SpriteLibrary", _Library)
    monkeypatch.setattr(tokenizer, "vocabulary_texts", _texts)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("A red fox sleeping under a birch tree\n" * 3, encoding="utf-8")
    built = tokenizer.build_mini_tokenizer(corpus, tmp_path / "all")
    fox = built.encode_text("A red fox sleeping under a birch tree")
    assert built.decode(fox) == "A red fox sleeping under a birch tree"
    assert len(built.encode_text("Äpfel auf einem blauen Teller")) > len(fox)
    fewer = tokenizer.build_mini_tokenizer(corpus, tmp_path / "fewer", num_ids=built.num_ids - 5)
    assert 300 < fewer.num_ids <= built.num_ids - 5
    assert len(fewer.encode_text("A red fox sleeping under a birch tree")) > len(fox)


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent holds no sprite library"):
        tokenizer.build_mini_tokenizer(tmp_path / "absent", tmp_path / "out")
