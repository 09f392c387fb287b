"""What the engine is given and what it tells: a task, and its events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from petzval.inference.event import PicturePixels, Pixels
from petzval.inference.plan import GenerationPlan, PlannedImage
from petzval.inference.request import GeneratedImage
from petzval.inference.variants import Defaults

LOW, NORMAL, HIGH = -1, 0, 1
"""Priorities: order among the tasks of one owner."""

NamedLora: TypeAlias = tuple[str, float]
"""Name of a LoRA that the engine offers, and the weight it is applied with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferedModel:
    """A model that an engine draws with.

    Attributes:
        defaults: what requests leave open.
        loras: names of those that fit it.
    """

    name: str
    defaults: Defaults
    loras: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Pictures to draw for somebody.

    Attributes:
        id: unique among the tasks of an engine.
        model: name of one that the engine offers.
        owner: between whom the engine is fair.
        priority, weight: see `FairQueue.put`.
        wait_seconds: fail if the first picture has not begun after this time.
        draw_seconds: fail if the last picture has not ended this long after the first began.
        partials: pictures-so-far, in full size, per picture; they cost a decode each.
        previews: tell small pictures-so-far, as steps arrive.
    """

    id: str
    plan: GenerationPlan
    model: str
    loras: tuple[NamedLora, ...] = ()
    owner: str = ""
    priority: int = NORMAL
    weight: float = 1.0
    wait_seconds: float | None = None
    draw_seconds: float | None = None
    partials: int = 0
    previews: bool = True

    def cost_of(self, image: PlannedImage) -> float:
        """Network calls times tokens: what a picture takes, up to a factor."""
        del image  # all of a plan cost the same
        branches = 1 if self.plan.guidance == 1.0 else 2
        return float(self.plan.steps * branches * self.plan.resolution.num_tokens)

    @property
    def batch_key(self) -> object:
        """Pictures with equal keys may share a batch: same model, size, steps, guidance …"""
        return self.model, self.loras, replace(self.plan, images=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The first picture of a task is begun."""

    task: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stepped:
    """A step of one picture is done.

    Attributes:
        image: its index in the plan.
        preview: call it, soon, for a small picture-so-far; None where there is none.
        partial: a full-size picture-so-far, where the task asked for one at this step.
    """

    task: str
    image: int
    step: int
    num_steps: int
    preview: Callable[[], Pixels] | None = None
    partial: PicturePixels | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Finished:
    """A picture is finished."""

    task: str
    image: GeneratedImage


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The last event of a task.

    Attributes:
        how: all pictures are there; it was cancelled; it took too long; an error happened.
    """

    task: str
    how: Literal["done", "cancelled", "timeout", "failed"]
    error: BaseException | None = None


TaskEvent: TypeAlias = Started | Stepped | Finished | Ended
Listener: TypeAlias = Callable[[TaskEvent], None]
"""Called from the engine's threads, for one task never from two at a time."""
