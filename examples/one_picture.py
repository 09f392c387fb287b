"""A sentence in, a picture out."""

from __future__ import annotations

import sys

import petzval

model = petzval.load(sys.argv[1] if len(sys.argv) > 1 else "mini-turbo")
[picture] = model.generate("a red apple on a blue background", seed=7, size="128x128")
print(picture.save("apple.png"), picture.recipe.model, picture.seconds)
