"""How a picture comes out of noise: what each step takes the finished picture to be, in a row."""

from __future__ import annotations

import sys

from PIL import Image

import petzval

model = petzval.load(sys.argv[1] if len(sys.argv) > 1 else "mini")
previews = [
    Image.fromarray(event.preview()[0])
    for event in model.steps("a yellow star in the night sky", seed=2, size="128x128", steps=6)
]
strip = Image.new("RGB", (128 * len(previews), 128))
for column, preview in enumerate(previews):
    strip.paste(preview, (128 * column, 0))
strip.save("steps.png")
