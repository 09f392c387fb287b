"""Read the recipe out of a file, change one thing, draw again."""

from __future__ import annotations

import sys

import petzval

model = petzval.load(sys.argv[1] if len(sys.argv) > 1 else "mini")
[first] = model.generate("a house beside a tree", seed=5, size="128x128", steps=6)
first.save("house.png")

recipe = petzval.read_recipe("house.png")
[second] = model.generate(
    recipe.prompt, seed=recipe.seed, size=f"{recipe.width}x{recipe.height}", steps=2 * recipe.steps
)
second.save("house-more-steps.png")
print(recipe.steps, "→", second.recipe.steps)
