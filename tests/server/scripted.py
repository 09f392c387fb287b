"""A drawer that follows a script in place of networks: pictures of one colour, at any speed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from petzval.errors import PlacementError
from petzval.inference.event import StepEvent
from petzval.inference.plan import GenerationPlan, MadeBy, PlannedImage
from petzval.inference.request import GeneratedImage
from petzval.inference.task import NamedLora, OfferedModel
from petzval.inference.variants import Defaults
from tests.support import PATIENCE

MODEL = OfferedModel(
    name="scripted", defaults=Defaults(steps=4, guidance=1.0, base=128), loras=("ink",)
)
OTHER_MODEL = OfferedModel(name="other", defaults=Defaults(steps=20, guidance=4.0, base=256))
_MADE_BY = MadeBy(
    petzval="0", model="scripted", checkpoint="c0", dtype="float32", device="cpu", torch="0"
)


@dataclass(kw_only=True, eq=False)
class ScriptedDrawer:
    """Draws pictures whose left half has the colour of their seed, the right one its noise.

    Attributes:
        seconds: of a step.
        gate: steps wait for it.
        fail: called before every step; raises what a network would.
        most_tokens: larger pictures have no room.
        drawn: seeds in the order in which their first step was made.
    """

    seconds: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    fail: Callable[[PlannedImage, int], None] | None = None
    leave_decoding: bool = False
    most_tokens: int = 1 << 30
    drawn: list[int] = field(default_factory=list[int])
    batches: list[int] = field(default_factory=list[int])
    prepared: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def models(self) -> tuple[OfferedModel, ...]:
        return (MODEL, OTHER_MODEL)

    def check(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> None:
        if plan.resolution.num_tokens > self.most_tokens:
            raise PlacementError(f"{plan.resolution} does not fit", "ask for a smaller size")

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        self.prepared += [image.prompt for image in plan.images]

    def draw(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> Generator[StepEvent, None, None]:
        self.drawn += [image.seed for image in plan.images]
        self.batches.append(len(plan.images))
        for step in range(1, plan.steps + 1):
            self.gate.wait(PATIENCE)
            time.sleep(self.seconds)
            if self.fail is not None:
                for image in plan.images:
                    self.fail(image, step)
            yield self._event(plan, step)

    def _event(self, plan: GenerationPlan, step: int) -> StepEvent:
        pixels = np.stack([_pixels(plan, image) for image in plan.images])
        is_last = step == plan.steps

        def finish() -> tuple[GeneratedImage, ...]:
            return tuple(plan.pictures(plan.images, pixels, _MADE_BY, {}))

        return StepEvent(
            indices=tuple(range(len(plan.images))),
            step=step,
            num_steps=plan.steps,
            sigma=1 - step / plan.steps,
            images=finish() if is_last and not self.leave_decoding else (),
            preview=lambda: pixels,
            small_preview=lambda: pixels[:, ::16, ::16],
            finish=finish if is_last and self.leave_decoding else None,
        )


def _pixels(plan: GenerationPlan, image: PlannedImage) -> np.ndarray:
    height, width = plan.resolution.height, plan.resolution.width
    pixels = np.full((height, width, 3), image.seed % 256, np.uint8)
    grain = np.random.default_rng(image.seed).integers(0, 256, (height, width // 2, 3), np.uint8)
    pixels[:, width // 2 :] = grain[:, : width - width // 2]
    return pixels
