"""What is asked for and what comes out: the two values that the command line and Python share.

Nearly everything in a `GenerationRequest` is optional; `inference.plan` decides the rest. Nothing
in this file needs torch, so that a wrong request is answered before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from petzval.conditioning import template
from petzval.conditioning.tokenizer import DEFAULT_MAX_TOKENS, LARGEST_MAX_TOKENS
from petzval.errors import RequestError
from petzval.inference import image
from petzval.inference.mark import check_mark
from petzval.inference.parity import PARITIES, Markers, Truncate
from petzval.inference.paths import user_path
from petzval.inference.recipe import (
    MAX_GUIDANCE,
    MAX_MU,
    MAX_NOISE_ROW,
    MAX_SEED,
    MAX_STEPS,
    MIN_MU,
    Recipe,
)
from petzval.inference.variants import Defaults
from petzval.resolution import MAX_ROPE_POSITION, Resolution, resolve

MAX_PROMPTS = 10_000
MAX_IMAGES = 1024
"""Pictures per prompt."""

MAX_PROMPT_CHARACTERS = 131_072
"""Far beyond what any checkpoint reads (about 2,000 characters); more is taken for a mistake."""

SOLVERS = ("euler", "heun")

_WHOLE_NUMBERS = (
    ("steps", 1, MAX_STEPS),
    ("num_images", 1, MAX_IMAGES),
    ("max_tokens", 1, LARGEST_MAX_TOKENS),
    ("noise_row", 0, MAX_NOISE_ROW),
)
_REAL_NUMBERS = (("guidance", 0.0, MAX_GUIDANCE), ("mu", MIN_MU, MAX_MU))


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """What a person asks for. What is left out is decided by the checkpoint.

    Attributes:
        prompt: one prompt, or several that are drawn one after the other.
        negative_prompt: what to stay away from; one for all prompts, or one for each. Blank means
            none: the unconditional branch then has no text at all.
        aspect, size, height, width, base, allow_any_size: see `resolution.resolve`.
        steps: 1 to 1000.
        guidance: 0 to 100; 1 runs one branch instead of two.
        mu: shift of the schedule, -5 to 10; the exact empirical one where left out.
        solver: "euler", or "heun" with two calls of the network a step.
        seed: of each prompt's first picture, the next ones take the numbers that follow; or the
            seeds themselves, as many as `num_images`.
        num_images: pictures per prompt.
        parity: numerics mode, see `inference.parity`.
        template_date: the date in the chat template, YYYY-MM-DD or "today".
        truncate, markers: see `PromptTokenizer.encode`; left out, as `parity` has it.
        max_tokens: template and prompt together.
        allow_blank: accept a prompt without words, which is taken for a mistake otherwise.
        noise_row: microsoft mode: the row of the batch's noise that the first picture takes.
        mark: words in the corner of every picture, see `inference.mark`; blank for none.

    Raises:
        RequestError: a value is of the wrong kind or out of range.
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] = ""
    aspect: str | None = None
    size: str | None = None
    height: int | None = None
    width: int | None = None
    base: int | None = None
    allow_any_size: bool = False
    steps: int | None = None
    guidance: float | None = None
    mu: float | None = None
    solver: str = "euler"
    seed: int | Sequence[int] = 0
    num_images: int = 1
    parity: str = "default"
    template_date: str | None = None
    truncate: Truncate | None = None
    markers: Markers | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    allow_blank: bool = False
    noise_row: int = 0
    mark: str = ""

    def __post_init__(self) -> None:
        # Numbers of other libraries, such as NumPy's, are taken as Python's own from here on.
        for name, least, most in _WHOLE_NUMBERS:
            if name != "steps" or self.steps is not None:
                self._set(name, _whole(name, getattr(self, name), least, most))
        for name, least, most in _REAL_NUMBERS:
            if getattr(self, name) is not None:
                self._set(name, _real(name, getattr(self, name), least, most))
        for name in ("height", "width", "base"):  # their ranges are `resolution`'s
            value: object = getattr(self, name)
            if not isinstance(value, bool) and isinstance(value, Integral):
                self._set(name, int(value))
        _choice("solver", self.solver, SOLVERS)
        _choice("parity", self.parity, tuple(PARITIES))
        _choice("truncate", self.truncate, ("keep_tail", "reference"))
        _choice("markers", self.markers, ("neutralise", "reference"))
        if self.template_date is not None:
            template.resolve_date(_text("template_date", self.template_date))
        prompts, negatives = self.prompts, self.negative_prompts
        if not self.allow_blank and not all(prompt.strip() for prompt in prompts):
            raise RequestError(
                "the prompt is blank" if len(prompts) == 1 else "one of the prompts is blank",
                "say what to draw; or allow a blank prompt (allow_blank, --allow-blank)",
            )
        if len(negatives) not in (1, len(prompts)):
            raise RequestError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts",
                "give one for all, or one for each",
            )
        self._set("mark", check_mark(_text("mark", self.mark)))
        seeds = _seeds(self.seed, self.num_images)
        self._set("seed", seeds[0] if isinstance(self.seed, Integral) else seeds)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, each a text that UTF-8 can hold.

        Raises:
            RequestError: none or too many, or one is no text or too long.
        """
        prompts = _texts("prompt", self.prompt)
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise RequestError(f"expected 1 to {MAX_PROMPTS:,} prompts, got {len(prompts):,}")
        return prompts

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """One for all prompts, or one for each.

        Raises:
            RequestError: one is no text or too long.
        """
        return _texts("negative_prompt", self.negative_prompt)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of each prompt's pictures.

        Raises:
            RequestError: no whole numbers in range, or not as many as pictures.
        """
        return _seeds(self.seed, self.num_images)

    def resolution(self, defaults: Defaults) -> Resolution:
        """The size of the pictures.

        Raises:
            ResolutionError: it is not legal.
            RequestError: the prompt's positions would not fit behind so large a picture.
        """
        resolution = resolve(
            aspect=self.aspect,
            size=self.size,
            height=self.height,
            width=self.width,
            base=defaults.base if self.base is None else self.base,
            allow_any_size=self.allow_any_size,
        )
        text_end = max(resolution.grid) // 2 + max(0, self.max_tokens - template.PREFIX_LENGTH)
        if text_end > MAX_ROPE_POSITION:
            raise RequestError(
                f"{resolution} and {self.max_tokens} tokens need {text_end:,} rotary positions, "
                f"there are {MAX_ROPE_POSITION:,}",
                "lower max_tokens or the longer side",
            )
        return resolution


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GeneratedImage:
    """A finished picture.

    Attributes:
        pixels: 8-bit RGB.
        recipe: what makes it again; written into every file.
        seconds: time per stage ("encode", "denoise", "decode"), shared time divided evenly.
        index: place in the request.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    recipe: Recipe
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    index: int = 0

    def pil(self) -> Image.Image:
        """The picture for Pillow."""
        return Image.fromarray(self.pixels)

    def encode(self, format: str = "png") -> bytes:
        """The bytes of a file in "png", "jpeg" or "webp", recipe inside.

        Raises:
            RequestError: unknown format, or the recipe does not fit into it.
        """
        return image.encode(self.pil(), self.recipe, format)

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write a file whole or not at all; its suffix names the format unless `format` does.

        Returns:
            The path, with `~` filled in.

        Raises:
            RequestError: unknown format, or the file cannot be written.
        """
        path = user_path(path)
        image.write_atomically(path, self.encode(format or image.format_of(path)))
        return path


def request_from_recipe(recipe: Recipe) -> GenerationRequest:
    """The request that makes a picture again, with nothing left to decide."""
    return GenerationRequest(
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt,
        height=recipe.height,
        width=recipe.width,
        allow_any_size=recipe.allow_any_size,
        steps=recipe.steps,
        guidance=recipe.guidance,
        mu=recipe.mu,
        solver=recipe.solver,
        seed=[recipe.seed],
        parity=recipe.parity,
        template_date=recipe.template_date,
        truncate=recipe.truncate,
        markers=recipe.markers,
        max_tokens=recipe.max_tokens,
        allow_blank=True,
        noise_row=recipe.noise_row,
        mark=recipe.mark,
    )


def _texts(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_text(name, value),)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RequestError(f"{name} must be a text or a list of texts, got {_kind(value)}")
    items: Sequence[Any] = value
    return tuple(_text(name, each) for each in items)


def _text(name: str, value: object) -> str:
    """A text without halves of surrogate pairs, which no file could hold."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a text, got {_kind(value)}")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"{name} has {len(value):,} characters, at most {MAX_PROMPT_CHARACTERS:,} are accepted",
            "a checkpoint reads about 2,000; shorten it",
        )
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _seeds(value: object, num_images: int) -> tuple[int, ...]:
    """One seed a picture, from a first seed or a list."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        seeds: Sequence[Any] = value
        if len(seeds) != num_images:
            raise RequestError(
                f"{len(seeds)} seeds for {num_images} pictures per prompt",
                "give as many seeds as pictures, or one seed",
            )
        return tuple(_whole("seed", seed, 0, MAX_SEED) for seed in seeds)
    first = _whole("seed", value, 0, MAX_SEED - num_images + 1)
    return tuple(range(first, first + num_images))


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} must be a whole number, got {_kind(value)}")
    number = int(value)
    if not least <= number <= most:
        raise RequestError(f"{name} must be between {least} and {most}, got {str(number)[:40]}")
    return number


def _real(name: str, value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{name} must be a number, got {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not least <= number <= most:  # NaN is in no range
        raise RequestError(f"{name} must be between {least:g} and {most:g}, got {str(value)[:40]}")
    return number


def _choice(name: str, value: object, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise RequestError(f"unknown {name} {str(value)[:40]!r}", f"known are {', '.join(known)}")


def _kind(value: object) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
