"""A small folder of captioned pictures of several shapes, drawn here."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

SHAPES = {"red": (200, 200), "blue": (200, 210), "green": (240, 160), "orange": (300, 150)}
"""Colour → width and height: two square pictures, two wide ones of different buckets."""


def draw_rings(folder: Path, captions: bool = True) -> Path:
    """One picture a colour, `red.png` … `orange.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour, (width, height) in SHAPES.items():
        picture = Image.new("RGB", (width, height), "white")
        canvas = ImageDraw.Draw(picture)
        for inset in range(0, min(width, height) // 2 - 10, 25):
            box = (inset, inset, width - inset, height - inset)
            canvas.ellipse(box, outline=colour, width=8)
        picture.save(folder / f"{colour}.png")
        if captions:
            (folder / f"{colour}.txt").write_text(f"{colour} rings, zorp style\n")
    return folder
