"""Parametric portraits, each with words for what its parameters say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from petzval.data.concepts import Concept
from petzval.data.packages import package
from petzval.data.palette import OBJECT_COLOURS, name_pixels
from petzval.data.pictures import Picture
from petzval.errors import DataError

STYLES: tuple[str, ...] = ("open-peeps", "personas", "adventurer", "big-smile", "toon-head")
PORTRAIT = Concept(
    id="portrait",
    name="portrait of a person",
    names={
        "en": "portrait of a person", "de": "Porträt einer Person", "fr": "portrait d’une personne",
        "es": "retrato de una persona", "pt": "retrato de uma pessoa",
        "it": "ritratto di una persona", "zh": "人物肖像", "ja": "人物の肖像", "ko": "인물 초상화",
        "ru": "портрет человека", "ar": "صورة شخص", "hi": "व्यक्ति का चित्र",
    },
    group="portraits",
    held_out=False,
    weight=0.0,
)  # fmt: skip

_HAIR_WORDS = (
    ("bald", "a bald head"), ("noHair", "a bald head"), ("shavedHead", "a shaved head"),
    ("mohawk", "a mohawk"), ("afro", "an afro"), ("hijab", "a headscarf"), ("turban", "a turban"),
    ("cap", "a cap"), ("beanie", "a beanie"), ("hatBeanie", "a beanie"),
    ("hat", "a hat"), ("bear", "a bear hood"), ("pigtails", "pigtails"), ("braids", "braids"),
    ("cornrows", "cornrows"), ("dreads", "dreadlocks"), ("twists", "twisted hair"),
    ("bun", "{hair} in a bun"), ("curlyBun", "{hair} in a bun"), ("straightBun", "{hair} in a bun"),
    ("froBun", "{hair} in a bun"), ("extraLong", "very long {hair}"), ("long", "long {hair}"),
    ("medium", "medium-length {hair}"), ("straightHair", "long straight {hair}"),
    ("curly", "curly {hair}"), ("wavy", "wavy {hair}"), ("bob", "a {hair} bob"),
    ("spiky", "spiky {hair}"), ("short", "short {hair}"), ("gray", "gray hair"),
)  # fmt: skip


def draw_portraits(cache: Path, *, num_per_style: int) -> Iterator[Picture]:
    """Portraits in each style, the same ones every time.

    Raises:
        DataError: node is missing or a style cannot be drawn.
    """
    modules = _unpack(cache)
    script = Path(__file__).with_name("portraits.mjs")
    for style in STYLES:
        command = ["node", str(script), str(modules), style, str(num_per_style)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, timeout=600)
        except FileNotFoundError as error:
            raise DataError(
                "node is not installed; portraits are drawn by a node program",
                "install Node.js (Debian: apt-get install nodejs)",
            ) from error
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise DataError(
                f"portraits in the style {style} cannot be drawn",
                f"see whether this works: {' '.join(command)}",
            ) from error
        pinned = package(f"@dicebear/{style}")
        for line in done.stdout.decode().splitlines():
            row = json.loads(line)
            yield Picture(
                concept=PORTRAIT.id, style=style, source=pinned.name, licence=pinned.licence,
                key=row["key"], data=row["svg"], kind="portrait", traits=traits(row["extra"]),
            )  # fmt: skip


def traits(extra: Mapping[str, object]) -> tuple[str, ...]:
    """Words for a portrait's parameters: ("short brown hair", "glasses", "a red top")."""
    words: list[str] = []
    hair = str(extra.get("hair") or extra.get("head") or "")
    colour = _colour(extra.get("hairColor") or extra.get("headContrastColor"))
    described = _hair(hair, f"{colour} hair" if colour else "hair")
    if described:
        words.append(described)
    glasses = " ".join(str(extra.get(key, "")) for key in ("glasses", "accessories", "eyes"))
    if "sunglasses" in glasses:
        words.append("sunglasses")
    elif "glasses" in glasses.lower() or extra.get("glasses"):
        words.append("glasses")
    face_hair = " ".join(str(extra.get(key, "")) for key in ("facialHair", "beard", "accessories"))
    if re.search(r"moustache|mustache|walrus|pyramid", face_hair) and "beard" not in face_hair:
        words.append("a moustache")
    elif extra.get("facialHair") or extra.get("beard"):
        words.append("a beard")
    clothing = _colour(extra.get("clothingColor") or extra.get("clothesColor"))
    if clothing:
        words.append(f"a {clothing} top" if clothing != "orange" else "an orange top")
    return tuple(words)


def _hair(name: str, hair: str) -> str:
    for part, phrase in _HAIR_WORDS:
        if part.lower() in name.lower():
            return phrase.format(hair=hair)
    return hair if name else ""


def _colour(value: object) -> str:
    text = str(value or "").lstrip("#")
    if not re.fullmatch(r"[0-9a-fA-F]{6}", text):
        return ""
    rgb = np.array([[int(text[i : i + 2], 16) for i in (0, 2, 4)]], np.uint8)
    return list(OBJECT_COLOURS)[int(name_pixels(rgb)[0])]


def _unpack(cache: Path) -> Path:
    """Unpack the portrait packages where node finds them; returns the folder to resolve from."""
    folder = cache / "portraits"
    for name in ("@dicebear/core", *(f"@dicebear/{style}" for style in STYLES)):
        pinned = package(name)
        target = folder / "node_modules" / name
        marker = target / f".{pinned.sha256[:16]}"
        if marker.is_file():
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with tarfile.open(cache / pinned.archive, "r:gz") as archive:
            for member in archive:
                member.name = member.name.partition("/")[2]
                if member.name:
                    archive.extract(member, target, filter="data")
        marker.touch()
    return folder
