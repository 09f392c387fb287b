"""The full vocabulary against published ids, and small ones cut from it."""

from __future__ import annotations

import json
import random
from datetime import date as Date
from datetime import timedelta
from pathlib import Path

import pytest

from petzval.conditioning import template, vocabulary
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import DataError
from tests.support import golden_json, golden_ranks

# Ids of the published tokenizer around a prompt, for the date 2026-05-26.
PUBLISHED_PREFIX = """
    200006 17360 200008 3575 553 17554 162016 11 261 4410 6439 2359 22203 656 7788 17527 558 87447
    100594 25 220 1323 19 12 3218 198 6576 3521 25 220 1323 21 12 2922 12 2109 279 30377 289 25
    14093 279 2 13888 18403 25 8450 11 49159 11 1721 13 21030 2804 413 7360 395 1753 3176 13 200007
    200006 77944 200008 2 68406 279 61443 290 3621 656 69091 290 3089 11 9591 11 2349 11 17788 11
    17245 11 2201 11 44273 14321 328 290 11736 326 6357 364 200007 200006 1428 200008
"""
PUBLISHED_SUFFIX = """
    200007 200006 173781 200005 35644 200008 23483 316 10419 1001 3621 7065 316 290 6496 13 200007
    200006 173781 200005 17196 200008
"""

SIZE = 745  # all of TEXTS and the template need a few more
TEXTS = [
    "A red fox sleeping under a birch tree in the snow, soft morning light",
    "three blue umbrellas to the left of a yellow house, watercolour",
    "Zwei Äpfel und eine Birne auf einem blauen Teller",
    "Ein roter Fuchs schläft unter einer Birke",
    "一只戴着帽子的猫坐在窗台上",
    "雪の中で眠る赤い狐",
    "ثعلب أحمر ينام تحت شجرة",
    "बर्फ में सोती हुई लोमड़ी",
    "рыжая лиса спит под берёзой",
]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return vocabulary.load_ranks()


@pytest.fixture(scope="module")
def full(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    folder = tmp_path_factory.mktemp("full")
    vocabulary.write_tokenizer(ranks, folder)
    return PromptTokenizer(folder)


@pytest.fixture(scope="module")
def small(ranks: dict[bytes, int]) -> dict[bytes, int]:
    return vocabulary.prune(ranks, TEXTS * 3, SIZE, ["tourmaline"])


@pytest.fixture(scope="module")
def pruned(small: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    folder = tmp_path_factory.mktemp("small")
    vocabulary.write_tokenizer(small, folder)
    return PromptTokenizer(folder)


def test_the_full_tokenizer_gives_the_published_ids(full: PromptTokenizer, goldens: Path) -> None:
    assert full.num_ids == 200_019
    assert full.special_id("<|start|>") == 200_006
    assert full.prefix("2026-05-26") == tuple(map(int, PUBLISHED_PREFIX.split()))
    assert full.encode("").text_ids == tuple(map(int, PUBLISHED_SUFFIX.split()))
    cases = json.loads((goldens / "tokenizer_cases.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        tokens = full.encode(case["prompt"], date=case["date"], markers="reference")
        assert list(tokens.ids) == case["gpt_oss_input_ids"]


def test_the_prefix_has_97_tokens_on_any_day(
    full: PromptTokenizer, pruned: PromptTokenizer
) -> None:
    day = Date(2024, 1, 1)
    while day.year <= 2040:
        for tokenizer in (full, pruned):
            assert len(tokenizer.prefix(day.isoformat())) == template.PREFIX_LENGTH
        day += timedelta(days=13)
    for day in (Date(1990, 12, 31), Date(2099, 11, 29)):
        assert len(pruned.prefix(day.isoformat())) == template.PREFIX_LENGTH


def test_the_recorded_tiny_tokenizer_is_written_alike(ranks: dict[bytes, int]) -> None:
    ours = golden_ranks()
    assert sorted(ours, key=lambda token: ranks[token]) == list(ours)
    recorded = golden_json("checkpoint/tokenizer/tokenizer.json")
    assert json.loads(vocabulary.tokenizer_json(ours)) == recorded


def test_every_kept_token_is_made_by_the_merges_that_remain(small: dict[bytes, int]) -> None:
    assert sorted(small.values()) == list(range(SIZE))
    assert {bytes([value]) for value in range(256)} <= small.keys()
    for token in small:
        assert vocabulary.byte_pair_encode(token, small) == [token]


def test_the_library_merges_as_the_simulation_does(
    small: dict[bytes, int], pruned: PromptTokenizer
) -> None:
    by_id = {identifier: token for token, identifier in small.items()}
    for word in ("tourmaline", "umbrella", "foxes", "Birkenwald", "狐狸", "лисица", "لومड़ी"):
        cut = [by_id[identifier] for identifier in pruned.encode_text(word)]
        assert cut == vocabulary.byte_pair_encode(word.encode(), small)


def test_known_texts_are_cut_as_the_full_tokenizer_cuts_them(
    full: PromptTokenizer, pruned: PromptTokenizer, ranks: dict[bytes, int], small: dict[bytes, int]
) -> None:
    whole = {identifier: token for token, identifier in ranks.items()}
    num_alike = 0
    for text in [*TEXTS, "tourmaline"]:
        cut = [whole[identifier] for identifier in full.encode_text(text)]
        if all(token in small for token in cut):
            num_alike += 1
            assert list(pruned.encode_text(text)) == [small[token] for token in cut]
    assert num_alike >= 5


def test_any_text_can_be_written_and_read_back(pruned: PromptTokenizer) -> None:
    random_letters = random.Random(0)
    for length in (1, 10, 200):
        for _ in range(50):
            codes = (random_letters.randrange(0x11_0000) for _ in range(length))
            text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
            assert pruned.decode(pruned.encode_text(text)) == text


def test_rare_tokens_go_first(small: dict[bytes, int]) -> None:
    fox, birch = ["fox"] * 5, ["birch"]
    bare = vocabulary.prune(small, [], SIZE)
    frequent = vocabulary.prune(small, fox, SIZE)
    both = vocabulary.prune(small, fox + birch, SIZE)
    assert bare.keys() < frequent.keys() < both.keys()
    assert vocabulary.prune(small, birch + fox, len(frequent)) == frequent


def test_folders_are_written_the_same_every_time(small: dict[bytes, int], tmp_path: Path) -> None:
    for name in ("one", "two"):
        vocabulary.write_tokenizer(small, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_vocabulary_too_small_for_the_template_is_refused(small: dict[bytes, int]) -> None:
    with pytest.raises(DataError, match="at least"):
        vocabulary.prune(small, TEXTS, 300)


def test_ranks_of_another_file_are_refused(ranks: dict[bytes, int], tmp_path: Path) -> None:
    other = tmp_path / "o200k_base.tiktoken"
    other.write_bytes(b"IQ== 0\n")
    with pytest.raises(DataError, match="not the published"):
        vocabulary.load_ranks(other)
    with pytest.raises(DataError, match="cannot be read"):
        vocabulary.load_ranks(tmp_path / "absent.xz")
    torn = tmp_path / "torn.xz"
    torn.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        vocabulary.load_ranks(torn)
    assert len(ranks) == 199_998


def test_a_token_without_a_merge_is_refused() -> None:
    single = {bytes([value]): value for value in range(256)}
    with pytest.raises(DataError, match="no merge"):
        vocabulary.merged_from(b"abc", {**single, b"abc": 256})
