"""Build the data of the small illustrator: fetch, join, draw; each stage once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from petzval.data import assets
from petzval.data.assets import OPENCLIPART_FOLDER, Progress
from petzval.data.concepts import Concept, read_concepts
from petzval.data.packages import PACKAGES
from petzval.data.pictures import (
    Picture,
    clipart_pictures,
    emoji_pictures,
    flag_pictures,
    icon_pictures,
    shape_pictures,
)
from petzval.data.portraits import PORTRAIT, draw_portraits
from petzval.data.sprites import FORMAT, SpriteLibrary, write_library

_REVISION = 3
"""Raised when the same archives would give other pictures, so that old folders are rebuilt."""


def build_mini(
    folder: str | Path,
    *,
    progress: Progress | None = None,
    num_processes: int = 2,
    num_portraits: int = 2000,
) -> SpriteLibrary:
    """Build the sprite library of mini in `folder`, or go on with it, and open it.

    A stage leaves a marker with a hash of what it was made from; a stage whose marker matches is
    not run again, so an interrupted build goes on where it stopped.

    Args:
        folder: where `cache/`, `sprites.u8`, `sprites.jsonl`, `concepts.jsonl`, `licences.json` and
            `NOTICE` go.
        progress: called with (stage, done, total).
        num_processes: processes that draw.
        num_portraits: parametric portraits over all styles.

    Raises:
        DataError: a package cannot be had or is not the pinned one; the hint says what to do.
    """
    folder = Path(folder)
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    pins = [f"{p.name}@{p.version}:{p.sha256}" for p in PACKAGES]
    clipart = OPENCLIPART_FOLDER.is_dir()
    drawing = [*pins, f"clipart={clipart}", f"portraits={num_portraits}", f"{FORMAT}.{_REVISION}"]

    def draw() -> None:
        pictures, concepts = gather(cache, num_portraits=num_portraits)
        write_library(folder, pictures, concepts, num_processes=num_processes, progress=progress)

    def licences() -> None:
        state = "present" if clipart else "not present"
        assets.write_licences(folder, {"OpenClipart (Public Domain, openclipart-png)": state})

    _stage(folder, "fetch", pins, lambda: assets.fetch(cache, progress=progress))
    _stage(folder, "draw", drawing, draw)
    _stage(folder, "licences", drawing, licences)
    return SpriteLibrary.open(folder)


def gather(cache: Path, *, num_portraits: int) -> tuple[list[Picture], dict[str, Concept]]:
    """All pictures of the fetched sets in a fixed order, and all concepts by id."""
    concepts, by_sequence = read_concepts(cache)
    pictures = list(emoji_pictures(cache, by_sequence))
    pictures += flag_pictures(cache, by_sequence)
    pictures += icon_pictures(cache, concepts)
    pictures += shape_pictures()
    pictures += clipart_pictures(concepts)
    concepts[PORTRAIT.id] = PORTRAIT
    pictures += draw_portraits(cache, num_per_style=num_portraits // 5)
    return pictures, concepts


PLAIN_HELD_OUT: tuple[str, ...] = (
    "bouquet", "brick", "compass", "computer-mouse", "crayon", "flashlight", "floppy-disk", "flute",
    "goose", "gorilla", "headphone", "house-with-garden", "jar", "mouse", "paintbrush", "parachute",
    "paw-prints", "rat", "screwdriver", "skis", "window", "two-hump-camel", "ox", "fuel-pump",
)  # fmt: skip
"""Held-out concepts beyond the core that are plain enough to be asked for in prompts."""


def write_prompt_concepts(library: SpriteLibrary, path: Path) -> None:
    """Write the concepts that evaluation prompts ask for, with their names in all languages.

    The result is packaged with the library, so that prompts need no built data.
    """
    silhouettes = {sprite.concept for sprite in library.sprites if sprite.style == "silhouette"}
    rows = [
        {
            "id": concept.id,
            "names": dict(sorted(concept.names.items())),
            "held_out": concept.held_out,
            "silhouette": concept.id in silhouettes,
        }
        for concept in sorted(library.concepts.values(), key=lambda concept: concept.id)
        if (concept.core and concept.group != "shapes") or concept.id in PLAIN_HELD_OUT
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _stage(folder: Path, name: str, made_from: list[str], run: Callable[[], None]) -> None:
    """Run a stage unless its marker says it was already run on the same inputs."""
    marker = folder / f"{name}.done.json"
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    if marker.is_file() and marker.read_text().strip() == json.dumps({"made_from": digest}):
        return
    marker.unlink(missing_ok=True)
    run()
    marker.write_text(json.dumps({"made_from": digest}) + "\n")
