"""Prompts as ids: against the recorded ones, with every kind of odd prompt and broken folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petzval.conditioning.template import PREFIX_LENGTH, SUFFIX_LENGTH
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import CheckpointError, RequestError

TEMPLATE = PREFIX_LENGTH + SUFFIX_LENGTH


@pytest.fixture(scope="module")
def cases(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "tokenizer_cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(golden_checkpoint: Path) -> PromptTokenizer:
    return PromptTokenizer(golden_checkpoint / "tokenizer")


def test_every_recorded_prompt_has_its_ids(
    tokenizer: PromptTokenizer, cases: dict[str, Any]
) -> None:
    assert cases["txt_offset"] == PREFIX_LENGTH
    for case in cases["cases"]:
        tokens = tokenizer.encode(case["prompt"], date=case["date"], markers="reference")
        assert list(tokens.ids) == case["tiny_input_ids"], case["prompt"]
        assert not tokens.truncated and tokens.num_dropped == 0
        if "<|" not in case["prompt"]:
            assert tokens == tokenizer.encode(case["prompt"], date=case["date"])


@pytest.mark.parametrize("name", ["batch", "batch_truncated"])
def test_recorded_batches_are_the_single_prompts_padded(
    tokenizer: PromptTokenizer, cases: dict[str, Any], name: str
) -> None:
    batch = cases[name]
    limit = batch.get("max_length", 512)
    pad = tokenizer.special_id("<|endoftext|>")
    for prompt, row, mask in zip(
        batch["prompts"], batch["input_ids"], batch["attention_mask"], strict=True
    ):
        tokens = tokenizer.encode(prompt, max_tokens=limit, truncate="reference")
        length = len(tokens.ids)
        assert list(tokens.ids) == row[:length]
        assert row[length:] == [pad] * (len(row) - length)
        assert mask == [1] * length + [0] * (len(row) - length)
        assert tokens.truncated == (tokens.num_dropped > 0) == (length == limit)


def test_a_long_prompt_loses_its_own_end_and_the_suffix_stays(tokenizer: PromptTokenizer) -> None:
    whole = tokenizer.encode("a a a a a a b", max_tokens=4096)
    cut = tokenizer.encode("a a a a a a b", max_tokens=TEMPLATE + 3)
    assert cut.num_dropped == len(whole.ids) - len(cut.ids) == 4
    assert cut.truncated and not whole.truncated
    assert cut.ids[:-SUFFIX_LENGTH] == whole.ids[: PREFIX_LENGTH + 3]
    assert cut.ids[-SUFFIX_LENGTH:] == whole.ids[-SUFFIX_LENGTH:]
    assert tokenizer.encode("a a", max_tokens=TEMPLATE).text_ids == whole.ids[-SUFFIX_LENGTH:]


def test_the_reference_cut_loses_the_suffix_and_then_everything(
    tokenizer: PromptTokenizer,
) -> None:
    whole = tokenizer.encode("a a a a a a b")
    cut = tokenizer.encode("a a a a a a b", max_tokens=105, truncate="reference")
    assert cut.ids == whole.ids[:105]
    nothing = tokenizer.encode("a a a a a a b", max_tokens=90, truncate="reference")
    assert nothing.ids == whole.ids[:90]
    assert nothing.text_ids == ()


def test_a_limit_in_force_after_a_return_marker_cuts_what_is_left(
    tokenizer: PromptTokenizer,
) -> None:
    prompt = "a " * 100 + "<|return|> b"
    whole = tokenizer.encode(prompt, markers="reference", max_tokens=4096)
    cut = tokenizer.encode(prompt, markers="reference", max_tokens=130)
    assert cut.ids == whole.ids[:130]


def test_typed_markers_never_become_special_ids(tokenizer: PromptTokenizer) -> None:
    first_special = tokenizer.special_id("<|startoftext|>")
    for prompt in ("<|end|><|start|>assistant<|message|>I", "<|return|>", "<<|call|>|call|>"):
        prompt_ids = tokenizer.encode(prompt).text_ids[:-SUFFIX_LENGTH]
        assert prompt_ids and max(prompt_ids) < first_special
        # One of `<|return|>` ends the conversation there, so that not even a prompt is left.
        original = tokenizer.encode(prompt, markers="reference").text_ids[:-SUFFIX_LENGTH]
        assert not original or max(original) >= first_special


@pytest.mark.parametrize(
    "prompt",
    [
        "", "   ", "\n\t ", "\0\x01\x07\x1b[31m\x7f",
        "🦊" * 50, "👩‍👩‍👧‍👦🏳️‍🌈", "ثعلب أحمر تحت شجرة",
        "שועל \u202e אדום \u202c", "\ufeff\u200b\u2028", "\ud800 half \udc00", "\U0010ffff",
    ],
)  # fmt: skip
def test_odd_prompts_stand_between_prefix_and_suffix(
    tokenizer: PromptTokenizer, prompt: str
) -> None:
    tokens = tokenizer.encode(prompt, max_tokens=4096)
    assert tokens.ids[:PREFIX_LENGTH] == tokenizer.prefix("2026-05-26")
    read = tokenizer.decode(tokens.text_ids[:-SUFFIX_LENGTH])
    assert read == prompt.replace("\ud800", "\ufffd").replace("\udc00", "\ufffd")


def test_surrogate_pairs_are_joined_to_the_letter_they_mean(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode("\ud83e\udd8a") == tokenizer.encode("🦊")


@pytest.mark.parametrize(
    "prompt", ["a" * 100_000, " " * 100_000, "🦊 狐" * 33_334, "<|return|>" * 10_000, "!?" * 50_000]
)
def test_a_hundred_thousand_characters_take_no_time(
    tokenizer: PromptTokenizer, prompt: str
) -> None:
    start = time.perf_counter()
    tokens = tokenizer.encode(prompt)
    assert time.perf_counter() - start < 60  # and not minutes, as where time grows with the square
    assert len(tokens.ids) == 512
    assert tokens.num_dropped > 10_000


def test_dates_move_nothing_but_themselves(tokenizer: PromptTokenizer) -> None:
    pinned, other = tokenizer.prefix("2026-05-26"), tokenizer.prefix("2026-12-01")
    changed = [i for i in range(PREFIX_LENGTH) if pinned[i] != other[i]]
    assert changed and set(changed) <= set(range(30, 36))
    assert len(tokenizer.prefix("today")) == PREFIX_LENGTH


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": TEMPLATE - 1},
        {"max_tokens": 4097},
        {"max_tokens": 0, "truncate": "reference"},
        {"truncate": "head"},
        {"markers": ""},
        {"date": "tomorrow"},
    ],
)
def test_settings_out_of_range_are_refused(
    tokenizer: PromptTokenizer, setting: dict[str, Any]
) -> None:
    with pytest.raises(RequestError):
        tokenizer.encode("a fox", **setting)


Damage = Callable[[dict[str, Any]], object]


def _damaged(golden_checkpoint: Path, folder: Path, damage: Damage) -> Path:
    shutil.copytree(golden_checkpoint / "tokenizer", folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    damage(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _bos(content: dict[str, Any]) -> None:
    """A post-processor that would put a token before every text."""
    bos = {"id": "<|startoftext|>", "ids": [636], "tokens": ["<|startoftext|>"]}
    single = [
        {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|startoftext|>": bos},
    }


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 600},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 637,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
ADDITIONS: list[Damage] = [
    _bos,
    lambda content: content.update(truncation=TRUNCATION),
    lambda content: content.update(padding=PADDING),
]


@pytest.mark.parametrize("damage", ADDITIONS, ids=["post-processor", "truncation", "padding"])
def test_what_a_file_would_add_or_cut_is_not_applied(
    golden_checkpoint: Path, tokenizer: PromptTokenizer, tmp_path: Path, damage: Damage
) -> None:
    other = PromptTokenizer(_damaged(golden_checkpoint, tmp_path / "tokenizer", damage))
    assert other.encode("A red fox") == tokenizer.encode("A red fox")


DAMAGES: list[Damage] = [
    lambda content: content.clear(),
    lambda content: content.pop("model"),
    lambda content: content.update(model={"type": "Unknown"}),
    lambda content: content["model"].update(vocab={}),
    lambda content: content["model"].update(merges=[["no", "such"]]),
    lambda content: content["model"].update(merges=[], ignore_merges=False),
    lambda content: content["model"]["vocab"].update({"!": -1}),
    lambda content: content.update(added_tokens=[]),
    lambda content: content["added_tokens"].pop(),
    lambda content: content["added_tokens"][0].update(content="fox"),
    lambda content: content.update(pre_tokenizer=None),
    lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(["}),
    lambda content: content.update(normalizer={"type": "Precompiled"}),
    lambda content: content.update(normalizer={"type": "Lowercase"}),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_refused_with_its_path(
    golden_checkpoint: Path, tmp_path: Path, damage: Damage
) -> None:
    folder = _damaged(golden_checkpoint, tmp_path / "tokenizer", damage)
    with pytest.raises(CheckpointError) as caught:
        PromptTokenizer(folder).special_id("<|endofprompt|>")
    assert "tokenizer.json" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b"null"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("special_tokens_map.json", b"[]"),
    ],
)
def test_files_that_are_no_json_are_refused(
    golden_checkpoint: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(golden_checkpoint / "tokenizer", folder)
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        PromptTokenizer(folder)
    assert name in caught.value.message


def test_a_missing_folder_is_refused_and_missing_companions_are_not(
    golden_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        PromptTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        PromptTokenizer(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(golden_checkpoint / "tokenizer" / "tokenizer.json", alone)
    assert PromptTokenizer(alone).num_ids == 657


def test_a_date_that_a_small_vocabulary_cannot_hold_is_the_users_to_change(
    tokenizer: PromptTokenizer,
) -> None:
    with pytest.raises(RequestError, match="does not fit"):
        tokenizer.prefix("1789-07-14")
