"""A tokenizer from merge ranks: the full one of GPT-OSS, or a small one cut from it.

The full vocabulary (o200k) has 199,998 byte-pair tokens. Captions of a small world use a few
thousand, and a small language model cannot afford rows for the rest. `prune` keeps

  1. the 256 single bytes, so that any text can be written;
  2. every token of the chat template, for any date from 1990 to 2099, so that the prefix has its
     97 tokens here too;
  3. the tokens that given texts use, by frequency, as many as fit;
  4. with each token the two it was merged from, theirs, and so on.

Rule 4 closes the set: the merges that the full tokenizer performs to build a kept token are all
still there, and in the same order. So a word is cut as the full tokenizer cuts it whenever the
tokens of that cut were kept.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from petzval.conditioning.template import DEFAULT_DATE, prefix_text, suffix_text
from petzval.errors import DataError

RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""Of the uncompressed `o200k_base.tiktoken`; the same hash stands in OpenAI's own tools."""

SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    "<|call|>",
    "<|reserved_200013|>",
    "<|reserved_200014|>",
    "<|reserved_200015|>",
    "<|reserved_200016|>",
    "<|reserved_200017|>",
    "<|endofprompt|>",
)
"""In the order of their ids, which follow the last byte-pair token (199998 to 200018 in full)."""

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLIT_PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How o200k cuts text into words before any merge."""

Ranks = Mapping[bytes, int]
"""Token -> its place in the order of merges; the 256 single bytes among them."""


def load_ranks(path: Path | None = None) -> dict[bytes, int]:
    """Read `o200k_base.tiktoken`, plain or `.xz`, by default the packaged one (about 0.3 s).

    Raises:
        DataError: when the file cannot be read or its contents are not the published ones.
    """
    try:
        if path is None:
            packaged = resources.files("petzval") / "assets" / "o200k_base.tiktoken.xz"
            content = lzma.decompress(packaged.read_bytes())
        else:
            content = path.read_bytes()
            content = lzma.decompress(content) if path.suffix == ".xz" else content
    except (OSError, lzma.LZMAError) as error:
        raise DataError(
            f"the vocabulary o200k_base cannot be read: {error}",
            "install petzval again, or name a copy of o200k_base.tiktoken",
        ) from error
    if hashlib.sha256(content).hexdigest() != RANKS_SHA256:
        raise DataError(
            f"{path or 'the packaged o200k_base'} is not the published vocabulary",
            f"its sha256 must be {RANKS_SHA256}",
        )
    pairs = (line.split() for line in content.splitlines())
    return {b64decode(token): int(rank) for token, rank in pairs}


def byte_pair_encode(piece: bytes, ranks: Ranks) -> list[bytes]:
    """Merge the bytes of one word, each time the neighbours whose union has the lowest rank."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        unions = [ranks.get(left + right) for left, right in pairwise(parts)]
        known = [(rank, i) for i, rank in enumerate(unions) if rank is not None]
        if not known:
            break
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def merged_from(token: bytes, ranks: Ranks) -> tuple[bytes, bytes]:
    """The two tokens whose merge makes `token`, given the merges of lower rank.

    Raises:
        DataError: when those merges do not lead to two tokens; o200k holds no such token.
    """
    limit = ranks[token]
    earlier = {
        token[i:j]: rank
        for i in range(len(token))
        for j in range(i + 1, len(token) + 1)
        if (rank := ranks.get(token[i:j])) is not None and rank < limit
    }
    parts = byte_pair_encode(token, earlier)
    if len(parts) != 2:
        raise DataError(f"no merge makes the token {token!r}", "use the published vocabulary")
    return parts[0], parts[1]


def prune(
    ranks: Ranks, texts: Iterable[str], size: int, must_contain: Iterable[str] = ()
) -> dict[bytes, int]:
    """Choose `size` byte-pair tokens; see the top of this file for the four rules.

    Args:
        ranks: the full vocabulary.
        texts: what the small model will read; a token counts as often as it occurs in them.
        size: the most byte-pair tokens to keep, the 256 bytes among them.
        must_contain: texts whose every token is kept, whatever its frequency.

    Returns:
        ranks of the kept tokens, 0 to len - 1, in the full vocabulary's order.

    Raises:
        DataError: when the template and `must_contain` alone need more than `size`.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json(ranks))
    by_id = {rank: token for token, rank in ranks.items()}
    kept = {bytes([value]) for value in range(256)}
    for identifier, _ in _count(tokenizer, [*_template_texts(), *must_contain]):
        if identifier in by_id:
            kept |= _lineage(by_id[identifier], ranks)
    if len(kept) > size:
        raise DataError(
            f"{len(kept)} tokens are needed at least, and the vocabulary was to have {size}",
            "allow a larger vocabulary",
        )
    for identifier, _ in _count(tokenizer, texts):
        if len(kept) == size:
            break
        if identifier in by_id:
            missing = _lineage(by_id[identifier], ranks) - kept
            if len(kept) + len(missing) <= size:
                kept |= missing
    ordered = sorted(kept, key=lambda token: ranks[token])
    return {token: i for i, token in enumerate(ordered)}


def _lineage(token: bytes, ranks: Ranks) -> set[bytes]:
    """`token`, the two it was merged from, theirs, and so on down to bytes."""
    lineage: set[bytes] = set()
    waiting = [token]
    while waiting:
        each = waiting.pop()
        if each not in lineage:
            lineage.add(each)
            waiting.extend(merged_from(each, ranks) if len(each) > 1 else ())
    return lineage


def _template_texts() -> Iterator[str]:
    """The template, and every year, month and day a date can be made of."""
    yield prefix_text(DEFAULT_DATE) + suffix_text()
    for year in range(1990, 2100):
        yield f"Current date: {year}-{year % 12 + 1:02}-{year % 31 + 1:02}\n\n"


def _count(tokenizer: Tokenizer, texts: Iterable[str]) -> list[tuple[int, int]]:
    """(id, how often) over all texts, the most frequent first, older merges first among equals."""
    counts: Counter[int] = Counter()
    for batch in _batches(texts, 4096):
        for encoding in tokenizer.encode_batch_fast(list(batch), add_special_tokens=False):
            counts.update(encoding.ids)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _batches(texts: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def write_tokenizer(ranks: Ranks, folder: Path) -> None:
    """Write a tokenizer folder of the published form: three JSON files, byte-equal every time."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
    }
    config = {
        "added_tokens_decoder": {
            str(token.pop("id")): token for token in _added_tokens(len(ranks))
        },
        **names,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "tokenizer.json": tokenizer_json(ranks),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
        "special_tokens_map.json": json.dumps(names, indent=2, ensure_ascii=False),
    }
    for name, content in files.items():
        (folder / name).write_text(content + "\n", encoding="utf-8")


def tokenizer_json(ranks: Ranks) -> str:
    """The `tokenizers` form of a byte-level BPE with these ranks and the special tokens.

    Any two tokens whose union is a token may merge, at the union's rank; that is the rule of
    `byte_pair_encode`, written as the list of pairs that this form asks for.
    """
    letters = _byte_letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    ordered = sorted(ranks, key=lambda token: ranks[token])
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(len(ranks)),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**split, "behavior": "Isolated", "invert": False},
                {**byte_level, "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {**byte_level, "trim_offsets": False, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {names[token]: ranks[token] for token in ordered},
            "merges": [
                [names[left], names[right]]
                for token in ordered
                for left, right in _splits(token, ranks)
            ],
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False)


def _splits(token: bytes, ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """All ways to make `token` of two tokens, older ones first."""
    halves = ((token[:i], token[i:]) for i in range(1, len(token)))
    known = [(left, right) for left, right in halves if left in ranks and right in ranks]
    return sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _added_tokens(first_id: int) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": first_id + i, "content": content, **plain, "special": True}
        for i, content in enumerate(SPECIAL_TOKENS)
    ]


def _byte_letters() -> list[str]:
    """A printable letter for each byte, as byte-level BPE files spell them.

    Bytes that are printable in Latin-1 stand for themselves, the other 68 for U+0100 onwards.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
