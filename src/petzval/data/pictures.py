"""Which pictures there are: every usable picture of the fetched sets, joined with its concept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from petzval.data.assets import OPENCLIPART_FOLDER, read_json, read_members
from petzval.data.concepts import Concept, bare, from_hex, icon_concept, slug
from petzval.data.packages import package
from petzval.data.rasterise import Pixels, draw_bitmap, draw_svg, iconify_svg

HELD_OUT_STYLES: frozenset[str] = frozenset({"openmoji", "emojione"})
"""Drawing styles that no model is ever trained on."""

_EMOJI_SETS = {
    "noto": "noto",
    "noto-v1": "noto-v1",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent-flat",
    "twemoji": "twemoji",
    "emojione": "emojione",
    "fxemoji": "fxemoji",
}
_ICON_SETS = {
    "fluent-color": "colour-icon",
    "flat-color-icons": "flat-icon",
    "meteocons": "weather-icon",
}
_FX_NAMES = {
    "catside": "cat", "cat": "cat-face", "dogside": "dog", "dog": "dog-face", "heart": "red-heart",
    "apple": "red-apple", "cup": "hot-beverage", "gift": "wrapped-gift", "tree": "deciduous-tree",
    "foxsmiling": "fox", "sunrays": "sun", "redapple": "red-apple", "hourglass": "hourglass-done",
    "crescentmoon": "crescent-moon", "bee": "honeybee", "flyingsaucer": "flying-saucer",
    "soccer": "soccer-ball", "present": "wrapped-gift", "lock": "locked", "car": "automobile",
    "pig": "pig-face", "sunglasses": "smiling-face-with-sunglasses",
}  # fmt: skip
_METEOCONS = {
    "clear-day-fill": "sun", "cloudy-fill": "cloud", "rainbow-fill": "rainbow",
    "snowflake-fill": "snowflake", "umbrella-fill": "umbrella", "tornado-fill": "tornado",
    "lightning-bolt-fill": "high-voltage", "moon-full-fill": "full-moon", "star-fill": "star",
    "raindrop-fill": "droplet", "snowman-fill": "snowman", "thermometer-fill": "thermometer",
    "rain-fill": "cloud-with-rain", "snow-fill": "cloud-with-snow", "compass-fill": "compass",
    "partly-cloudy-day-fill": "sun-behind-cloud", "thunderstorms-fill": "cloud-with-lightning",
}  # fmt: skip
_ICON_ALIASES = {
    "home": "house", "gift": "wrapped-gift", "heart": "red-heart", "lightbulb": "light-bulb",
    "idea": "light-bulb", "lock": "locked", "mail": "envelope", "book": "closed-book",
    "phone": "telephone", "apple": "red-apple", "bee": "honeybee", "umbrella": "umbrella",
    "bot": "robot", "planet": "ringed-planet", "car": "automobile", "clock": "mantelpiece-clock",
    "leaf": "fallen-leaf", "cake": "birthday-cake", "gem": "gem-stone",
    "tree": "deciduous-tree", "pine-tree": "evergreen-tree", "ladybug": "lady-beetle", "saucer": "flying-saucer",
    "ufo": "flying-saucer", "sun-flower": "sunflower", "truck": "delivery-truck", "hearts": "red-heart",
    "padlock": "locked", "cheese": "cheese-wedge", "hourglass": "hourglass-done", "diamond": "gem-stone",
    "rabbit-head": "rabbit-face", "pumpkin": "jack-o-lantern", "corn": "ear-of-corn", "globe": "globe-showing-americas",
    "magnifying-glass": "magnifying-glass-tilted-left", "plane": "airplane", "sea-turtle": "turtle",
    "sheep": "ewe", "orange": "tangerine", "glasses": "glasses",
    "coffee-cup": "hot-beverage", "shark": "shark", "sailboat": "sailboat", "castle": "castle",
}  # fmt: skip
_NOT_PICTURES = re.compile(r"\d|^(fluent|icons8|abstract|tarot)|logo|card-|dice-|hieroglyph|rune")
_FLAG = re.compile(r"[a-z]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that is still to be drawn.

    Attributes:
        concept: id of what it shows.
        style: drawing style, the same for a whole set.
        source: package it came from.
        licence: SPDX identifier.
        kind: "picture", "mask" (paint it in any colour) or "portrait".
        key: name inside its source.
        data: SVG text or the bytes of a bitmap.
        traits: words about a portrait ("short hair", "glasses").
    """

    concept: str
    style: str
    source: str
    licence: str
    key: str
    data: str | bytes
    kind: str = "picture"
    traits: tuple[str, ...] = field(default=())

    def draw(self) -> Pixels | None:
        """The picture as premultiplied RGBA [160, 160, 4], or None if it cannot be drawn."""
        return draw_svg(self.data) if isinstance(self.data, str) else draw_bitmap(self.data)


def emoji_pictures(cache: Path, by_sequence: Mapping[str, str]) -> Iterator[Picture]:
    """Pictures of the emoji sets, trained and held-out styles alike."""
    yield from _fluent_3d(cache, by_sequence)
    concepts = frozenset(by_sequence.values())
    fluent_names = _names_by_characters(cache, "fluent-emoji-flat", by_sequence)
    for prefix, style in _EMOJI_SETS.items():
        icons = read_json(cache, f"@iconify-json/{prefix}", "icons.json")
        if prefix in {"emojione", "fxemoji", "noto-v1"}:
            joined = _names_by_slug(icons["icons"], concepts, squashed=prefix == "fxemoji")
        elif prefix == "fluent-emoji":
            joined = fluent_names
        else:
            joined = _names_by_characters(cache, prefix, by_sequence)
        for icon, concept in joined.items():
            if icon in icons["icons"]:
                yield _iconify(prefix, style, icon, concept, icons)
    yield from _openmoji(cache, by_sequence)


def _fluent_3d(cache: Path, by_sequence: Mapping[str, str]) -> Iterator[Picture]:
    name = "@lobehub/fluent-emoji-3d"
    for path, data in read_members(cache, name, lambda path: path.endswith(".webp")):
        concept = by_sequence.get(from_hex(Path(path).stem))
        if concept is not None:
            yield Picture(
                concept=concept, style="fluent-3d", source=name, licence=package(name).licence,
                key=Path(path).stem, data=data,
            )  # fmt: skip


def _openmoji(cache: Path, by_sequence: Mapping[str, str]) -> Iterator[Picture]:
    def wanted(path: str) -> bool:
        return path.startswith("color/svg/") and path.endswith(".svg")

    for path, data in read_members(cache, "openmoji", wanted):
        stem = Path(path).stem
        if not re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", stem):
            continue
        concept = by_sequence.get(from_hex(stem))
        if concept is not None:
            yield Picture(
                concept=concept, style="openmoji", source="openmoji",
                licence=package("openmoji").licence, key=stem, data=data.decode(),
            )  # fmt: skip


def _names_by_characters(
    cache: Path, prefix: str, by_sequence: Mapping[str, str]
) -> dict[str, str]:
    table = read_json(cache, f"@iconify-json/{prefix}", "chars.json")
    joined: dict[str, str] = {}
    for code, icon in table.items():
        concept = by_sequence.get(from_hex(code))
        if concept is not None:
            joined.setdefault(icon, concept)
    return joined


def _names_by_slug(
    icons: Mapping[str, object], concepts: frozenset[str], *, squashed: bool
) -> dict[str, str]:
    by_name = {c.replace("-", ""): c for c in concepts} if squashed else {c: c for c in concepts}
    by_name |= {k: v for k, v in _FX_NAMES.items() if squashed and v in concepts}
    return {icon: by_name[icon] for icon in icons if icon in by_name}


def _iconify(
    prefix: str,
    style: str,
    icon: str,
    concept: str,
    icons: dict[str, object],
    kind: str = "picture",
) -> Picture:
    name = f"@iconify-json/{prefix}"
    return Picture(
        concept=concept, style=style, source=name, licence=package(name).licence, key=icon,
        data=iconify_svg(icons, icon), kind=kind,
    )  # fmt: skip


def flag_pictures(cache: Path, by_sequence: Mapping[str, str]) -> Iterator[Picture]:
    """Round flags, joined to the concepts of the country flags."""
    icons = read_json(cache, "@iconify-json/circle-flags", "icons.json")
    for icon in icons["icons"]:
        if _FLAG.fullmatch(icon):
            sequence = "".join(chr(0x1F1E6 + ord(letter) - ord("a")) for letter in icon)
            concept = by_sequence.get(bare(sequence))
            if concept is not None:
                yield _iconify("circle-flags", "round-flag", icon, concept, icons)


def icon_pictures(cache: Path, concepts: dict[str, Concept]) -> Iterator[Picture]:
    """Colour icons and silhouettes.

    Silhouettes also show things that CLDR has no name for; those are added to `concepts`.
    """
    held_out = frozenset(
        part
        for concept in concepts.values()
        if concept.held_out and concept.group not in {"flags", "shapes"}
        for part in (concept.id, slug(concept.name))
    )
    for prefix, style in _ICON_SETS.items():
        icons = read_json(cache, f"@iconify-json/{prefix}", "icons.json")
        for icon, name in _icon_names(prefix, icons["icons"]).items():
            known = _ICON_ALIASES.get(name, name)
            # Names that CLDR does not know are user-interface talk here: "approve", "template".
            if known in concepts:
                yield _iconify(prefix, style, icon, known, icons)
    icons = read_json(cache, "@iconify-json/game-icons", "icons.json")
    for icon in icons["icons"]:
        if icon.count("-") > 1 or _NOT_PICTURES.search(icon):
            continue
        known = _ICON_ALIASES.get(icon, icon)
        if "-" in icon and known not in concepts:
            continue
        concept = _icon_concept_id(icon, concepts, held_out)
        yield _iconify("game-icons", "silhouette", icon, concept, icons, kind="mask")


def _icon_names(prefix: str, icons: Mapping[str, object]) -> dict[str, str]:
    """Concept-like name of each icon worth having: one size of each, no user-interface glyphs."""
    if prefix == "meteocons":
        return {icon: name for icon, name in _METEOCONS.items() if icon in icons}
    best: dict[str, tuple[int, str]] = {}
    for icon in icons:
        match = re.fullmatch(r"(.+?)-(\d+)", icon)
        name, size = (match[1], int(match[2])) if match else (icon, 0)
        if name.count("-") > 1 or _NOT_PICTURES.search(name):
            continue
        if name not in best or best[name][0] < size:
            best[name] = (size, icon)
    return {icon: name for name, (_, icon) in best.items()}


def _icon_concept_id(name: str, concepts: dict[str, Concept], held_out: frozenset[str]) -> str:
    name = _ICON_ALIASES.get(name, name)
    if name not in concepts:
        concepts[name] = icon_concept(name, held_out)
    return name


def shape_pictures() -> Iterator[Picture]:
    """Simple shapes, drawn by this project, to be painted in any colour."""
    bodies = {
        "circle": '<circle cx="50" cy="50" r="48"/>',
        "square": '<rect x="4" y="4" width="92" height="92"/>',
        "triangle": '<path d="M50 6 98 92H2Z"/>',
        "star-shape": '<path d="M50 2l14.5 31.6 34.5 4-25.600 23.500 6.900 34L50 78 19.700 95.100'
        ' 26.600 61.100 1 37.600l34.500-4z"/>',
        "heart-shape": '<path d="M50 92C20 68 2 52 2 30 2 14 14 5 27 5c10 0 18 5 23 14C55 10 63 5'
        ' 73 5c13 0 25 9 25 25 0 22-18 38-48 62z"/>',
        "diamond-shape": '<path d="M50 2 90 50 50 98 10 50Z"/>',
    }
    for concept, body in bodies.items():
        yield Picture(
            concept=concept, style="shape", source="petzval", licence="Apache-2.0", key=concept,
            kind="mask",
            data=f'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100" '
            f'viewBox="0 0 100 100" fill="#fff">{body}</svg>',
        )  # fmt: skip


_CLIPART_FOLDERS = ("animals", "food", "people", "plants", "recreation", "tools", "transportation")


def clipart_pictures(
    concepts: Mapping[str, Concept], folder: Path = OPENCLIPART_FOLDER
) -> Iterator[Picture]:
    """Public-domain clip art whose file name is exactly a known concept's name.

    Only the folders of things are read. Without the package there are no pictures; the build
    writes that down.
    """
    known = {slug(c.name): c.id for c in concepts.values() if c.group not in {"icons", "shapes"}}
    for top in _CLIPART_FOLDERS:
        for path in sorted((folder / top).rglob("*.png")):
            stem = re.sub(r"(-?\d+|-[a-z]+\.[a-z]+)$", "", slug(path.stem))
            if stem in known and not path.is_symlink():
                yield Picture(
                    concept=known[stem], style="clip-art", source="openclipart-png",
                    licence="Public-Domain", key=str(path.relative_to(folder)),
                    data=path.read_bytes(),
                )  # fmt: skip
