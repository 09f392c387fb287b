"""A small sprite library of discs and boxes: nothing is fetched, nothing is drawn from SVG."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from petzval.data.concepts import Concept, is_held_out
from petzval.data.core_names import SHAPES
from petzval.data.pictures import Picture
from petzval.data.portraits import PORTRAIT
from petzval.data.prompt_concepts import prompt_concepts

COLOURS = {"fluent-3d": (220, 40, 40), "noto": (40, 90, 230), "openmoji": (30, 160, 70)}
OBJECTS = ("cat", "dog", "red-apple", "star", "lion", "penguin", "cactus")


def png(colour: tuple[int, int, int], shape: str = "disc", size: int = 64) -> bytes:
    """A PNG of one disc or one wide box on a transparent ground."""
    image = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(image)
    if shape == "disc":
        draw.ellipse((8, 8, size - 8, size - 8), fill=(*colour, 255))
    else:
        draw.rectangle((4, size // 4, size - 4, size // 2), fill=(*colour, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def small_concepts() -> dict[str, Concept]:
    """Seven real concepts (three of them held out), two shapes, an icon and the portrait."""
    known = {concept.id: concept for concept in prompt_concepts()}
    concepts = {
        key: Concept(
            id=key,
            name=known[key].names["en"],
            names=known[key].names,
            keywords={"en": ("thing", "small", "word"), "de": ("Ding",)},
            group="animals-nature",
            held_out=is_held_out(key),
            core=True,
        )
        for key in OBJECTS
    }
    for key in ("circle", "square"):
        names = {"en": key, **SHAPES[key]}
        concepts[key] = Concept(
            id=key, name=key, names=names, group="shapes", held_out=is_held_out(key)
        )
    icon = Concept(
        id="oil-lamp", name="oil lamp", names={"en": "oil lamp"}, group="icons", held_out=False
    )
    return concepts | {icon.id: icon, PORTRAIT.id: PORTRAIT}


def small_pictures() -> list[Picture]:
    """Every object in three styles, silhouettes of all, two shapes, one portrait."""
    pictures = [
        Picture(
            concept=concept, style=style, source="test", licence="CC0-1.0",
            key=f"{style}-{concept}", data=png(colour, "disc" if number % 2 else "box"),
        )
        for style, colour in COLOURS.items()
        for number, concept in enumerate(OBJECTS)
    ]  # fmt: skip
    masks = [("silhouette", key) for key in (*OBJECTS, "oil-lamp")]
    masks += [("shape", "circle"), ("shape", "square")]
    pictures += [
        Picture(
            concept=concept, style=style, source="test", licence="CC0-1.0",
            key=f"{style}-{concept}", data=png((255, 255, 255)), kind="mask",
        )
        for style, concept in masks
    ]  # fmt: skip
    portrait = Picture(
        concept="portrait", style="personas", source="test", licence="CC0-1.0", key="face",
        data=png((200, 150, 120)), kind="portrait", traits=("short brown hair", "glasses"),
    )  # fmt: skip
    return [*pictures, portrait]
