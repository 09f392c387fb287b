"""Petzval: an open, complete implementation of the Lens text-to-image system.

    import petzval

    mini = petzval.load()
    [picture] = mini.generate("a red fox under a birch tree", seed=7)
    picture.save("fox.png")

    for event in mini.steps("a red fox under a birch tree", seed=7):
        print(event.step, event.num_steps)

The names below are the whole public door, in the order in which one meets them. They are loaded
when first used: importing the package imports no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from petzval.errors import PetzvalError as PetzvalError
    from petzval.inference.event import StepEvent as StepEvent
    from petzval.inference.image import read_recipe as read_recipe
    from petzval.inference.pipeline import Pipeline as Pipeline
    from petzval.inference.pipeline import load as load
    from petzval.inference.recipe import Recipe as Recipe
    from petzval.inference.request import GeneratedImage as GeneratedImage
    from petzval.inference.request import GenerationRequest as GenerationRequest
    from petzval.resolution import PRESETS as PRESETS
    from petzval.resolution import Resolution as Resolution

_HOMES = {
    "load": "petzval.inference.pipeline",
    "Pipeline": "petzval.inference.pipeline",
    "GenerationRequest": "petzval.inference.request",
    "GeneratedImage": "petzval.inference.request",
    "StepEvent": "petzval.inference.event",
    "Recipe": "petzval.inference.recipe",
    "read_recipe": "petzval.inference.image",
    "Resolution": "petzval.resolution",
    "PRESETS": "petzval.resolution",
    "PetzvalError": "petzval.errors",
}

__all__ = [  # noqa: RUF022  the order of the story, not of the alphabet
    "load",
    "Pipeline",
    "GenerationRequest",
    "GeneratedImage",
    "StepEvent",
    "Recipe",
    "read_recipe",
    "Resolution",
    "PRESETS",
    "PetzvalError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'petzval' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
