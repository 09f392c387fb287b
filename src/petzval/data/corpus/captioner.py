"""Who can say what is in a picture: the Protocol, and a captioner that reads what a source knew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from petzval.data.corpus.answers import Judged, judge
from petzval.data.decode import Decoded

Length: TypeAlias = Literal["dense", "brief"]
Mode: TypeAlias = Literal["dense", "brief", "mixed"]

MAX_OWN_WORDS = 500
"""A source's longer captions end with their last sentence within it, as the model's do."""

_LENGTH_SALT = b"caption length"
_WORDS_OF: Mapping[str, tuple[str, ...]] = {
    "dense": ("dense", "medium"),
    "brief": ("brief", "short", "tag"),
}
"""Which captions of a source's own serve as which length, the best first."""


def length_of(picture_id: str, mode: Mode) -> Length:
    """How long a picture's caption is; in the mixed mode half of them are brief, by a hash."""
    if mode != "mixed":
        return mode
    digest = hashlib.sha256(_LENGTH_SALT + picture_id.encode()).digest()
    return "brief" if digest[0] % 2 else "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a captioner says, and what it cost.

    Attributes:
        judged: a caption, or what it was instead; status "failed" may be asked again.
        prompt_tokens, completion_tokens: over all attempts; 0 where nothing is paid.
    """

    judged: Judged
    prompt_tokens: int = 0
    completion_tokens: int = 0


@runtime_checkable
class Captioner(Protocol):
    """Describes pictures. Many calls may be under way at once, in one thread."""

    @property
    def model(self) -> str:
        """Whom the caption is by, as the ledger and the data card name it."""
        ...

    @property
    def needs_pictures(self) -> bool:
        """Whether `describe` wants to see the picture, or only its row."""
        ...

    def instruction(self, length: Length) -> str:
        """What it is told; its hash is a part of what is never asked twice."""
        ...

    async def describe(
        self, row: Mapping[str, Any], picture: Decoded | None, length: Length
    ) -> Answer:
        """A caption of a picture.

        Raises:
            BudgetSpent: the budget does not allow it.
            DataError: nothing can be asked at all: no such model, no permission, no credit.
        """
        ...

    async def close(self) -> None:
        """Called once after the last question."""
        ...


class MetadataCaptioner:
    """The captions that came with the import, for sources that know what they show.

    Composed illustrations and rendered texts bring several, under `captions` in their metadata;
    other sources one, which is taken for either length.
    """

    model = "metadata"
    needs_pictures = False

    def instruction(self, length: Length) -> str:
        return f"the {length} caption of the source"

    async def describe(
        self, row: Mapping[str, Any], picture: Decoded | None, length: Length
    ) -> Answer:
        del picture
        return Answer(judged=judge(_own_caption(row, length), max_words=MAX_OWN_WORDS))

    async def close(self) -> None:
        pass


def _own_caption(row: Mapping[str, Any], length: Length) -> str:
    try:
        metadata: Any = json.loads(row["metadata"] or "{}")
    except ValueError:
        metadata = {}
    captions: Any = metadata.get("captions") if isinstance(metadata, dict) else None
    if isinstance(captions, dict):
        for name in _WORDS_OF[length]:
            if isinstance(captions.get(name), str) and captions[name].strip():
                return str(captions[name])
    return str(row["caption"])
