"""Draw a scene: paste its pictures over its background."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from petzval.data.ground_truth import Background, Scene, SceneObject
from petzval.data.layout import Box
from petzval.data.palette import OBJECT_COLOURS, RGB
from petzval.data.sprites import SpriteLibrary
from petzval.resolution import Resolution

Image8 = NDArray[np.uint8]


def render_scene(library: SpriteLibrary, scene: Scene) -> Image8:
    """The picture of a scene, uint8 RGB [height, width, 3]."""
    canvas = _background(scene.background, scene.resolution)
    for thing in scene.objects:
        _paste(canvas, _scaled(library, thing), thing.box)
    if scene.word is not None:
        box = scene.word.box
        mask = _word_mask(scene.word.text, box.height, box.width)
        _paste(canvas, _painted(mask, OBJECT_COLOURS[scene.word.colour]), box)
    return canvas


def _background(background: Background, resolution: Resolution) -> Image8:
    shape = (resolution.height, resolution.width, 3)
    if background.kind == "plain":
        return np.full(shape, background.rgb[0], np.uint8)
    length = resolution.height if background.direction == "vertical" else resolution.width
    ramp = np.linspace(background.rgb[0], background.rgb[1], length)
    stripes = ramp[:, None] if background.direction == "vertical" else ramp[None]
    return np.ascontiguousarray(np.broadcast_to(stripes.round().astype(np.uint8), shape))


def _scaled(library: SpriteLibrary, thing: SceneObject) -> Image8:
    """The visible part of a picture at the size of its box, premultiplied RGBA."""
    top, left, height, width = library.sprites[thing.sprite].box
    visible = library.pixels(thing.sprite)[top : top + height, left : left + width]
    # Mode "RGBa" is premultiplied, so Pillow scales the four channels alike.
    image = Image.frombytes("RGBa", (width, height), np.ascontiguousarray(visible).tobytes())
    resized = image.resize(
        (thing.box.width, thing.box.height), Image.Resampling.BILINEAR, reducing_gap=2.0
    )
    pixels = np.frombuffer(resized.tobytes(), np.uint8).reshape(*thing.box[2:], 4)
    if thing.painted and thing.colour is not None:
        return _painted(pixels[..., 3], OBJECT_COLOURS[thing.colour])
    return pixels


def _painted(mask: Image8, colour: RGB) -> Image8:
    """A mask [height, width] filled with one colour, premultiplied RGBA."""
    filled = np.empty((*mask.shape, 4), np.uint8)
    filled[..., :3] = (mask[..., None].astype(np.uint16) * np.array(colour, np.uint16)) // 255
    filled[..., 3] = mask
    return filled


def _paste(canvas: Image8, pixels: Image8, box: Box) -> None:
    """Lay premultiplied pixels over the canvas, in place; what sticks out is cut off."""
    area = canvas[box.top : box.top + box.height, box.left : box.left + box.width]
    pixels = pixels[: area.shape[0], : area.shape[1]]
    through = 255 - pixels[..., 3:].astype(np.uint16)
    below = (area.astype(np.uint16) * through + 127) // 255
    area[...] = np.minimum(below + pixels[..., :3], 255).astype(np.uint8)


@lru_cache(maxsize=4096)
def _word_mask(text: str, height: int, width: int) -> Image8:
    """Letters as large as fit into [height, width], centred, as coverage 0 to 255."""
    size = height
    font = ImageFont.load_default(size)
    stroke = max(1, size // 28)
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
    scale = min(width / (right - left), height / (bottom - top), 1.0)
    size = max(6, int(size * scale))
    font, stroke = ImageFont.load_default(size), max(1, size // 28)
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text(
        (width / 2, height / 2), text, 255, font, anchor="mm", stroke_width=stroke
    )
    return np.asarray(image)
