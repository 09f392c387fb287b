"""Concepts: what a picture shows, named in twelve languages, and which are never trained on.

A concept is a CLDR English name. One in ten is held out by a hash of that name, so every vendor's
picture of it falls on the same side, and the split never moves when sets are added.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from petzval.data.assets import read_json
from petzval.data.core_names import CORE_NAMES, REWRITES, SHAPES
from petzval.data.languages import LANGUAGES
from petzval.errors import DataError

HELD_OUT_SHARE = 0.1
_SPLIT_SALT = "petzval concept split 1:"
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_WEIGHTS = {
    "animals-nature": 1.0,
    "food-drink": 1.0,
    "travel-places": 0.9,
    "activities": 1.0,
    "objects": 0.9,
    "smileys-emotion": 0.8,
    "people-body": 0.25,
    "symbols": 0.25,
    "flags": 0.15,
    "shapes": 4.0,
    "icons": 0.08,
    "portraits": 0.0,
}
_CORE_WEIGHT = 30.0
_DULL_SUBGROUPS = {
    "keycap", "alphanum", "skin-tone", "hair-style", "subdivision-flag", "av-symbol",
    "transport-sign", "zodiac", "punctuation", "family",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One thing that can be drawn.

    Attributes:
        id: stable slug of the CLDR English name.
        name: the English noun phrase a caption uses, without an article.
        names: name by language; always has "en", icons have no other.
        keywords: related words by language.
        group: broad class ("animals-nature", "food-drink", "shapes", ...).
        held_out: never trained on, whoever drew it.
        core: one of the plain concepts that are drawn more often.
        weight: how often it is drawn, relative to the others.
    """

    id: str
    name: str
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    group: str
    held_out: bool
    core: bool = False
    weight: float = 1.0


def slug(name: str) -> str:
    """Lower-case ASCII words joined by hyphens: "o’clock" -> "oclock", "piñata" -> "pinata"."""
    plain = unicodedata.normalize("NFKD", name.replace("&", " and "))
    plain = "".join(c for c in plain if not unicodedata.combining(c)).lower()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’“”\"]", "", plain)).strip("-")


def is_held_out(cldr_name: str) -> bool:
    """Whether a concept is never trained on: one name in ten, by a hash that never changes.

    A thing and its face ("cat", "cat face") share their fate, as one would give the other away.
    """
    key = slug(cldr_name).removesuffix("-face")
    digest = hashlib.sha256((_SPLIT_SALT + key).encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64


def natural_name(cldr_name: str) -> str:
    """The English noun phrase for a CLDR name: "flag: Japan" -> "flag of Japan"."""
    if cldr_name in REWRITES:
        return REWRITES[cldr_name]
    head, colon, tail = cldr_name.partition(": ")
    if colon:
        if head == "flag":
            return f"flag of {tail}"
        return f"{head} {tail}" if tail.startswith("facing") else f"{head} with {tail}"
    if cldr_name.endswith(("o’clock", "-thirty")):
        return f"clock showing {cldr_name.replace('’', chr(39))}"
    return cldr_name.replace("’", "'")


def bare(sequence: str) -> str:
    """An emoji sequence without variation selectors: the key that all vendors agree on."""
    return sequence.replace("\ufe0f", "")


def from_hex(code: str) -> str:
    """Emoji sequence of a hyphenated list of code points ("1f431"); "" if it is not one."""
    if not re.fullmatch(r"[0-9a-fA-F]{2,5}(-[0-9a-fA-F]{2,5})*", code):
        return ""
    return bare("".join(chr(int(part, 16)) for part in code.split("-")))


def read_concepts(cache: Path) -> tuple[dict[str, Concept], dict[str, str]]:
    """Concepts of all emoji that a caption can name, out of the fetched name packages.

    Returns:
        concepts by id, and concept id by bare emoji sequence.

    Raises:
        DataError: a package is missing or damaged.
    """
    metadata = {
        from_hex(entry["hexcode"]): entry
        for entry in read_json(cache, "emojibase-data", "en/data.json")
    }
    levels = read_json(cache, "emojibase-data", "meta/groups.json")
    annotations = {language: _annotations(cache, language) for language in LANGUAGES}
    concepts: dict[str, Concept] = {}
    by_sequence: dict[str, str] = {}
    for sequence, entry in metadata.items():
        named = annotations["en"].get(sequence)
        if named is None or "group" not in entry or any(c in _SKIN_TONES for c in sequence):
            continue
        subgroup = levels["subgroups"][str(entry["subgroup"])]
        if subgroup in _DULL_SUBGROUPS:
            continue
        group = levels["groups"][str(entry["group"])]
        cldr_name = named[0]
        concept = _concept(cldr_name, group, sequence, annotations)
        concepts.setdefault(concept.id, concept)
        by_sequence[sequence] = concept.id
    for name, translated in SHAPES.items():
        concepts[slug(name)] = Concept(
            id=slug(name),
            name=name.removesuffix(" shape"),
            names={"en": name.removesuffix(" shape"), **translated},
            group="shapes",
            held_out=is_held_out(name),
            core=True,
            weight=_WEIGHTS["shapes"],
        )
    return concepts, by_sequence


def _concept(
    cldr_name: str, group: str, sequence: str, annotations: Mapping[str, Mapping[str, Any]]
) -> Concept:
    name = natural_name(cldr_name)
    names = {"en": name}
    keywords: dict[str, tuple[str, ...]] = {}
    for language, table in annotations.items():
        if sequence in table:
            translated, words = table[sequence]
            names.setdefault(language, translated)
            keywords[language] = tuple(words)
    core = cldr_name in CORE_NAMES
    return Concept(
        id=slug(cldr_name),
        name=name,
        names=names,
        keywords=keywords,
        group=group,
        held_out=is_held_out(cldr_name),
        core=core,
        weight=_CORE_WEIGHT if core else _WEIGHTS[group],
    )


def icon_concept(icon: str, held_out_slugs: frozenset[str]) -> Concept:
    """Concept of an icon that CLDR has no name for ("oil-lamp"), named by its slug.

    It is held out when its name contains a held-out concept's: "cat" takes "cat-skull" with it.
    """
    words = icon.split("-")
    spans = {"-".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    name = icon.replace("-", " ")
    return Concept(
        id=icon,
        name=name,
        names={"en": name},
        group="icons",
        held_out=is_held_out(icon) or not spans.isdisjoint(held_out_slugs),
        weight=_WEIGHTS["icons"],
    )


def _annotations(cache: Path, language: str) -> dict[str, tuple[str, list[str]]]:
    """(name, keywords) by bare sequence in one language, derived names included."""
    table: dict[str, tuple[str, list[str]]] = {}
    sources = (
        ("cldr-annotations-derived-full", "annotationsDerived"),
        ("cldr-annotations-full", "annotations"),
    )
    for name, key in sources:
        document = read_json(cache, name, f"{key}/{language}/annotations.json")
        for sequence, entry in document[key]["annotations"].items():
            if entry.get("tts"):
                table[bare(sequence)] = (entry["tts"][0], entry.get("default", []))
    return table


def write_concepts(path: Path, concepts: Mapping[str, Concept]) -> None:
    """Write one JSON object a line, in order of id."""
    with path.open("w", encoding="utf-8") as file:
        for key in sorted(concepts):
            file.write(json.dumps(asdict(concepts[key]), ensure_ascii=False) + "\n")


def load_concepts(path: Path) -> dict[str, Concept]:
    """Concepts by id, as written by `write_concepts`.

    Raises:
        DataError: the file is missing or a line of it is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "run: petzval data build mini") from error
    concepts: dict[str, Concept] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["keywords"] = {k: tuple(v) for k, v in row["keywords"].items()}
            concept = Concept(**row)
            if not concept.names["en"] or not 0 <= float(concept.weight) < 1e6:
                raise ValueError("no English name, or a weight out of range")
            concepts[concept.id] = concept
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path} line {number} is not a concept: {error}",
                "delete the file and run: petzval data build mini",
            ) from error
    return concepts
