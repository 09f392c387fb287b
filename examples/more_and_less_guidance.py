"""One prompt, one seed, from no guidance to much: rows of sizes, columns of guidance."""

from __future__ import annotations

import sys

from PIL import Image

import petzval

GUIDANCE = (1.0, 2.0, 4.0, 8.0)
SIZES = ("128x128", "96x176")

model = petzval.load(sys.argv[1] if len(sys.argv) > 1 else "mini")
sheet = Image.new("RGB", (136 * len(GUIDANCE), 184 * len(SIZES)), "white")
for row, size in enumerate(SIZES):
    for column, guidance in enumerate(GUIDANCE):
        request = petzval.GenerationRequest(
            prompt="two green apples", seed=1, size=size, steps=6, guidance=guidance
        )
        [picture] = model.generate(request)
        sheet.paste(picture.pil(), (136 * column, 184 * row))
sheet.save("guidance.png")
