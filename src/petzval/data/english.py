"""English words for what a scene holds: articles, plurals, counts, places, styles."""

from __future__ import annotations

from collections.abc import Mapping

from petzval.data.core_names import NO_ARTICLE, PLURALS
from petzval.data.palette import OBJECT_COLOURS

COUNT_WORDS: tuple[str, ...] = ("no", "one", "two", "three", "four", "five")

STYLES: Mapping[str, tuple[str, ...]] = {
    "fluent-3d": ("glossy 3D illustration", "3D render", "shiny 3D icon"),
    "fluent": ("soft gradient illustration", "smooth gradient drawing"),
    "fluent-flat": ("flat vector drawing", "flat illustration", "simple flat drawing"),
    "noto": ("shaded cartoon drawing", "cartoon illustration", "cartoon"),
    "noto-v1": ("rounded cartoon drawing", "soft blob cartoon"),
    "twemoji": ("bold flat emoji", "flat emoji", "plain emoji drawing"),
    "fxemoji": ("simple flat cartoon", "flat cartoon drawing"),
    "openmoji": ("outlined drawing", "line drawing with black outlines"),
    "emojione": ("rounded emoji drawing", "rounded flat emoji"),
    "colour-icon": ("colorful app icon", "glossy app icon"),
    "flat-icon": ("flat color icon", "flat office icon"),
    "weather-icon": ("weather icon", "soft weather icon"),
    "round-flag": ("round flag icon", "circular flag"),
    "clip-art": ("piece of clip art", "old clip art drawing"),
    "silhouette": ("silhouette",),
    "shape": ("plain shape",),
    "open-peeps": ("hand-drawn ink portrait", "sketched portrait"),
    "personas": ("minimal flat portrait", "simple avatar"),
    "adventurer": ("line-art cartoon portrait", "comic avatar"),
    "big-smile": ("big smiling cartoon portrait", "cheerful avatar"),
    "toon-head": ("toon portrait", "cartoon head"),
}
"""How each drawing style is called, the plainest phrase first."""

PLACES: Mapping[tuple[int, int], tuple[str, ...]] = {
    (0, 0): ("in the top left corner", "in the upper left", "at the top left"),
    (0, 1): ("at the top", "at the top center", "near the top edge"),
    (0, 2): ("in the top right corner", "in the upper right", "at the top right"),
    (1, 0): ("on the left side", "on the left", "at the left edge"),
    (1, 1): ("in the center", "in the middle", "at the center"),
    (1, 2): ("on the right side", "on the right", "at the right edge"),
    (2, 0): ("in the bottom left corner", "in the lower left", "at the bottom left"),
    (2, 1): ("at the bottom", "at the bottom center", "near the bottom edge"),
    (2, 2): ("in the bottom right corner", "in the lower right", "at the bottom right"),
}
"""(row, column) of a 3 x 3 grid -> how to say it."""

_COLOUR_WORDS = frozenset(OBJECT_COLOURS) | {"grey", "golden", "colored"}
_VOWEL_SOUND_EXCEPTIONS = ("uni", "eu", "ufo", "one", "usb", "utensil")
_JOINTS = (" of ", " with ", " without ", " showing ", " in ", " on ", " behind ", " pointing ")
_SINGULAR_ENDINGS = ("ss", "us", "is", "lens", "gas", "canvas", "atlas", "mars", "christmas", "'s")
_PROPER = ("Santa", "Mrs.", "Mx", "Tokyo", "mount fuji", "Statue of Liberty")


def with_article(phrase: str) -> str:
    """ "a cat", "an apple", "grapes", "the flag of Japan"."""
    if phrase in NO_ARTICLE or phrase.startswith(_PROPER):
        return phrase
    if phrase.startswith("flag of ") or phrase.endswith("face of"):
        return f"the {phrase}"
    if _is_plural(phrase):
        return phrase
    lower = phrase.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(_VOWEL_SOUND_EXCEPTIONS)
    return f"{'an' if vowel else 'a'} {phrase}"


def _is_plural(phrase: str) -> bool:
    """Whether the head of a phrase looks like a plural ("clinking glasses", "paw prints")."""
    head = phrase
    for joint in _JOINTS:
        head = head.partition(joint)[0]
    last = head.rpartition(" ")[2].lower()
    return last.endswith("s") and not last.endswith(_SINGULAR_ENDINGS)


def plural(name: str) -> str:
    """ "cats", "butterflies", "flags of Japan"."""
    if name in PLURALS:
        return PLURALS[name]
    if name in NO_ARTICLE:
        return name
    for joint in _JOINTS:
        head, found, tail = name.partition(joint)
        if found:
            return f"{plural(head)}{joint}{tail}"
    last = name.rpartition(" ")[2]
    if last in PLURALS:
        return name[: len(name) - len(last)] + PLURALS[last]
    if name.endswith(("s", "x", "ch", "sh", "z")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    if name.endswith("tomato") or name.endswith("potato"):
        return f"{name}es"
    return f"{name}s"


def counted(count: int, name: str) -> str:
    """ "one cat", "three cats"."""
    return f"{COUNT_WORDS[count]} {name if count == 1 else plural(name)}"


def has_colour_word(name: str) -> bool:
    """Whether a name already says a colour ("red apple"), so that a caption adds none."""
    return not _COLOUR_WORDS.isdisjoint(name.lower().split())


def listed(phrases: tuple[str, ...] | list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
