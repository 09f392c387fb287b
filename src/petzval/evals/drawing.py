"""Draw the pictures that are asked for and not yet in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import petzval
from petzval.errors import RequestError
from petzval.evals.questions import Question
from petzval.evals.store import PictureStore, key_of
from petzval.inference.pipeline import Pipeline
from petzval.inference.request import GenerationRequest
from petzval.resolution import resolve

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@runtime_checkable
class Painter(Protocol):
    """Whatever turns a prompt and a seed into a picture, always the same one."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything but prompt and seed that its pictures depend on, as JSON values."""
        ...

    def paint(self, prompt: str, seed: int) -> bytes:
        """The PNG file of one picture."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One picture that a question needs; `key` names it in the store."""

    question: Question
    seed: int
    key: str


class PipelinePainter:
    """A loaded model that draws one picture at a time, so that none depends on its company.

    Args:
        size: "WIDTHxHEIGHT", or None for the model's own square.
        steps, guidance: None takes the model's own.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        size: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        self._pipeline = pipeline
        defaults = pipeline.defaults
        self._resolution = resolve(size=size, base=defaults.base)
        self._steps = defaults.steps if steps is None else steps
        self._guidance = defaults.guidance if guidance is None else guidance

    @property
    def identity(self) -> Mapping[str, Any]:
        """The program, the weights, the size, the sampler, the number format and the device."""
        return {
            "petzval": petzval.__version__,
            "checkpoint": self._pipeline.identity,
            "height": self._resolution.height,
            "width": self._resolution.width,
            "steps": self._steps,
            "guidance": self._guidance,
            "dtype": str(self._pipeline.dtype).removeprefix("torch."),
            "device": self._pipeline.device.type,
        }

    def paint(self, prompt: str, seed: int) -> bytes:
        """The PNG file of one picture, its recipe inside."""
        request = GenerationRequest(
            prompt=prompt,
            seed=seed,
            height=self._resolution.height,
            width=self._resolution.width,
            steps=self._steps,
            guidance=self._guidance,
        )
        return self._pipeline.generate(request)[0].encode("png")


def drawings(
    asked: Sequence[Question], identity: Mapping[str, Any], *, num_images: int = 1, seed: int = 0
) -> list[Drawing]:
    """The pictures that questions need, in their order; seeds count up from `seed`.

    Raises:
        RequestError: no picture is asked for.
    """
    if num_images < 1:
        raise RequestError(f"num_images must be at least 1, got {num_images}")
    return [
        Drawing(
            question=question,
            seed=one,
            key=key_of({"painter": dict(identity), "prompt": question.prompt, "seed": one}),
        )
        for question in asked
        for one in range(seed, seed + num_images)
    ]


def draw_missing(
    wanted: Sequence[Drawing],
    painter: Painter,
    store: PictureStore,
    progress: Progress | None = None,
) -> int:
    """Fill the store; returns how many pictures had to be made.

    It can be stopped and run again at any time: a picture is in the store whole or not at all.
    """
    missing = {one.key: one for one in wanted if one.key not in store}
    for done, (key, one) in enumerate(missing.items()):
        if progress is not None:
            progress("draw", done, len(missing))
        store.put(key, painter.paint(one.question.prompt, one.seed))
    if progress is not None:
        progress("draw", len(missing), len(missing))
    return len(missing)
