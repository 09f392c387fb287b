"""What lies beside `tokenizer.json` in a published folder, for other programs to read.

Our own needs `tokenizer.json` alone. Others take from its companions what the tokenizer is called
and which marker ends a text; they are copied where they are, and written where they are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petzval.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""The last is a text of its publisher's, which is copied and never made."""

_MARKERS: Mapping[str, str] = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|return|>",
    "pad_token": "<|endoftext|>",
}
_LONGEST_TEXT = 131_072


def published_tokenizer(content: bytes, beside: Path | None = None) -> dict[str, bytes]:
    """The files of a published tokenizer folder, by name.

    Args:
        content: of `tokenizer.json`, which goes along as it is.
        beside: the folder that it came from; companions in it go along as well.

    Raises:
        CheckpointError: `content` is no tokenizer, or a companion cannot be read.
    """
    files = {TOKENIZER_FILE: content}
    try:
        for name in COMPANIONS:
            if beside is not None and (beside / name).is_file():
                files[name] = (beside / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{beside}: cannot be read ({error.strerror or error})") from error
    return _made(content) | files


def _made(content: bytes) -> dict[str, bytes]:
    """Companions that say what `tokenizer.json` says, and which of its markers end a text."""
    try:
        added: list[dict[str, Any]] = [dict(each) for each in json.loads(content)["added_tokens"]]
        identifiers = [(int(token.pop("id")), token) for token in added]
        known = {token["content"] for token in added}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{TOKENIZER_FILE}: is not a tokenizer with markers of its own",
            "use the tokenizer that the checkpoint was published with",
        ) from error
    # A name of a marker that is not there would make others add one, behind the vocabulary.
    markers = {name: marker for name, marker in _MARKERS.items() if marker in known}
    config = {
        "added_tokens_decoder": {str(number): token for number, token in identifiers},
        **markers,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": _LONGEST_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    made = {"tokenizer_config.json": config, "special_tokens_map.json": markers}
    return {
        name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
        for name, value in made.items()
    }
