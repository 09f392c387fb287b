"""A prompt as token ids, between the template's known prefix and suffix.

Two departures from the original; the value `"reference"` of `truncate` and of `markers` takes each
back:

  1. Long prompts lose their own end. The original cuts the rendered conversation on the right, so
     the template's suffix goes first.
  2. Markers that a user typed are ordinary text. The original reads `<|end|>` as the end of the
     turn and drops everything from `<|return|>` on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from petzval.conditioning import template
from petzval.conditioning.template import PREFIX_LENGTH, SUFFIX_LENGTH
from petzval.errors import CheckpointError, RequestError

DEFAULT_MAX_TOKENS = 512
"""As in the original: template and prompt together, which leaves 393 tokens for the prompt."""

LARGEST_MAX_TOKENS = 4096
"""The denoiser's position tables end there."""

_HINT = "copy the checkpoint's tokenizer folder again"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """A tokenised conversation.

    Attributes:
        ids: prefix, prompt and suffix; less than that after a reference truncation.
        text_offset: where the tokens begin whose features describe the picture.
        truncated: whether anything was dropped for want of room.
        num_dropped: how many tokens were.
    """

    ids: tuple[int, ...]
    text_offset: int = PREFIX_LENGTH
    truncated: bool = False
    num_dropped: int = 0

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The tokens behind the prefix; none when a reference truncation left fewer."""
        return self.ids[self.text_offset :]


class PromptTokenizer:
    """The tokenizer of a checkpoint, checked to fit the chat template.

    Args:
        place: a folder with `tokenizer.json`, in which `tokenizer_config.json` and
            `special_tokens_map.json` are read where they are there, and add nothing that the first
            file lacks; or that file itself, or its content.

    Raises:
        CheckpointError: when a file is missing, damaged or cuts the template differently.
    """

    def __init__(self, place: Path | str | bytes) -> None:
        if isinstance(place, bytes):
            self._path = Path("the encoder's tokenizer.json")
            self._tokenizer = _load(self._path, place.decode("utf-8", errors="replace"))
        else:
            whole = Path(place)
            self._path = whole if whole.is_file() else whole / "tokenizer.json"
            self._tokenizer = _load(self._path, _read(self._path))
            if self._path != whole:
                _check_companions(whole)
        self._check_added_tokens()
        self._suffix = self._ids(template.suffix_text())
        self._prefixes: dict[str, tuple[int, ...]] = {}
        prefix = self._ids(template.prefix_text(template.DEFAULT_DATE))
        if (len(prefix), len(self._suffix)) != (PREFIX_LENGTH, SUFFIX_LENGTH):
            raise CheckpointError(
                f"{self._path} cuts the chat template into {len(prefix)} + {len(self._suffix)} "
                f"tokens; expected {PREFIX_LENGTH} + {SUFFIX_LENGTH}",
                "use the tokenizer that the checkpoint was published with",
            )

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self._path.parent

    @property
    def num_ids(self) -> int:
        """One more than the largest id; the encoder's embedding must have as many rows."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def special_id(self, marker: str) -> int:
        """The id of a marker such as `<|endoftext|>`.

        Raises:
            CheckpointError: the vocabulary has no such marker.
        """
        identifier = self._tokenizer.token_to_id(marker)
        if identifier is None:
            raise CheckpointError(f"{self._path} has no token {marker}", _HINT)
        return identifier

    def prefix(self, date: str) -> tuple[int, ...]:
        """The 97 ids before every prompt, for an ISO date.

        Raises:
            RequestError: when this vocabulary cuts that date into more pieces than others.
        """
        if date not in self._prefixes:
            ids = self._ids(template.prefix_text(template.resolve_date(date)))
            if len(ids) != PREFIX_LENGTH:
                raise RequestError(
                    f"the template date {date} does not fit the vocabulary of {self._path.parent}",
                    f"use a date near the pinned {template.DEFAULT_DATE}",
                )
            self._prefixes[date] = ids
        return self._prefixes[date]

    def encode(
        self,
        prompt: str,
        *,
        date: str = template.DEFAULT_DATE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        truncate: str = "keep_tail",
        markers: str = "neutralise",
    ) -> PromptTokens:
        """Tokenise the conversation around a prompt.

        Args:
            prompt: any text; halves of surrogate pairs become U+FFFD.
            date: what the template prints, `YYYY-MM-DD` or `today`.
            max_tokens: room for prefix, prompt and suffix together.
            truncate: `"keep_tail"` shortens the prompt, `"reference"` the whole conversation.
            markers: `"neutralise"` or `"reference"`, what `<|...|>` in a prompt means.

        Raises:
            RequestError: when an argument is out of range.
            CheckpointError: when the ids before the prompt are not the known prefix.
        """
        _check_arguments(max_tokens, truncate, markers)
        date = template.resolve_date(date)
        prompt = prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if markers == "neutralise":
            prompt = template.neutralise_markers(prompt)
        ids = self._ids(template.cut_at_end_of_text(template.render(prompt, date)))
        if ids[:PREFIX_LENGTH] != self.prefix(date):
            raise CheckpointError(
                f"{self._path} lets a prompt change the {PREFIX_LENGTH} tokens before it",
                "use the tokenizer that the checkpoint was published with",
            )
        num_dropped = max(0, len(ids) - max_tokens)
        if num_dropped and truncate == "reference":
            ids = ids[:max_tokens]
        elif num_dropped:
            tail = self._suffix if ids[-SUFFIX_LENGTH:] == self._suffix else ()
            ids = ids[: max_tokens - len(tail)] + tail
        return PromptTokens(ids=ids, truncated=num_dropped > 0, num_dropped=num_dropped)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The ids of any text as it stands, markers recognised, no template around it."""
        return self._ids(text)

    def decode(self, ids: tuple[int, ...] | list[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _check_added_tokens(self) -> None:
        """Only markers may be matched before the text is cut: the rest cannot be neutralised."""
        for token in self._tokenizer.get_added_tokens_decoder().values():
            if not template.is_marker(token.content):
                raise CheckpointError(
                    f"{self._path}: the added token {token.content[:40]!r} is not of the form "
                    "<|name|>, so prompts could not be kept from writing it",
                    "use the tokenizer that the checkpoint was published with",
                )


def _check_arguments(max_tokens: int, truncate: str, markers: str) -> None:
    for name, value, known in (
        ("truncate", truncate, ("keep_tail", "reference")),
        ("markers", markers, ("neutralise", "reference")),
    ):
        if value not in known:
            raise RequestError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    least = PREFIX_LENGTH + SUFFIX_LENGTH if truncate == "keep_tail" else 1
    if not least <= max_tokens <= LARGEST_MAX_TOKENS:
        raise RequestError(
            f"max_tokens must be between {least} and {LARGEST_MAX_TOKENS}, got {max_tokens}",
            f"the template takes {PREFIX_LENGTH + SUFFIX_LENGTH} of them; the usual number is "
            f"{DEFAULT_MAX_TOKENS}",
        )


def _load(path: Path, content: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content)
        # A file must not cut or lengthen what we hand it behind our back.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a", add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library panics, outside `Exception`, on hostile files
        raise CheckpointError(f"{path} is not a tokenizer: {str(error)[:200]}", _HINT) from error
    return tokenizer


def _check_companions(folder: Path) -> None:
    """The other two JSON files decide nothing here, but must not be damaged."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            _parse(path, _read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", _HINT) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", _HINT) from error


def _parse(path: Path, content: str) -> Mapping[str, Any]:
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error)[:200]}", _HINT) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} must hold a JSON object", _HINT)
    return cast("Mapping[str, Any]", parsed)
