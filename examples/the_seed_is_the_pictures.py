"""Four pictures together are the same four as one at a time: a seed belongs to a picture."""

from __future__ import annotations

import sys

import petzval

model = petzval.load(sys.argv[1] if len(sys.argv) > 1 else "mini-turbo")
together = model.generate("a blue fish", seed=10, num_images=4, size="128x128")
for picture in together:
    [alone] = model.generate("a blue fish", seed=picture.recipe.seed, size="128x128")
    assert (alone.pixels == picture.pixels).all()
print("equal:", [picture.recipe.seed for picture in together])
