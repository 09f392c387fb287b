"""The JSON of the API: what comes in, strictly, and what goes out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from petzval.inference.recipe import MAX_GUIDANCE, MAX_LORA_WEIGHT, MAX_SEED, MAX_STEPS
from petzval.inference.request import MAX_PROMPT_CHARACTERS

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Priority = Literal["low", "normal", "high"]

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Size = Annotated[str, StringConstraints(pattern=r"^\d{1,5}x\d{1,5}$")]
Aspect = Annotated[str, StringConstraints(pattern=r"^\d{1,2}:\d{1,2}$")]


class Asked(BaseModel):
    """Base of what comes in: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Told(BaseModel):
    """Base of what goes out."""

    model_config = ConfigDict(frozen=True)


class LoraAsked(Asked):
    """A LoRA by its name, as `GET /v1/models` lists it."""

    name: Name
    weight: Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)] = 1.0


class JobRequest(Asked):
    """Pictures of one prompt. What is left out is decided by the model."""

    prompt: Prompt
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    size: Size | None = None
    aspect: Aspect | None = None
    base: int | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    negative_prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)] = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    model: Name | None = None
    loras: Annotated[tuple[LoraAsked, ...], Field(max_length=8, strict=False)] = ()
    priority: Priority = "normal"


class PictureChange(Asked):
    """What can be changed about a picture."""

    favourite: bool | None = None


class Progress(Told):
    """How far a job is: which of its pictures, and which step of it."""

    image: int
    step: int
    steps: int


class Picture(Told):
    """A finished picture."""

    id: str
    job: str
    index: int
    created: float
    width: int
    height: int
    seed: int
    prompt: str
    negative_prompt: str
    model: str
    steps: int
    guidance: float
    favourite: bool
    deleted: bool
    url: str
    thumbnail_url: str
    recipe: dict[str, Any]


class ErrorDetail(Told):
    """What went wrong, for a person and for a program."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Told):
    """The answer to what cannot be done."""

    error: ErrorDetail


class Job(Told):
    """A job as it stands; `position` counts from 1 while it waits."""

    id: str
    status: Status
    priority: Priority
    position: int | None = None
    created: float
    started: float | None = None
    finished: float | None = None
    request: dict[str, Any]
    progress: Progress | None = None
    images: tuple[Picture, ...] = ()
    error: ErrorDetail | None = None


class JobPage(Told):
    """Jobs, newest first."""

    data: tuple[Job, ...]
    has_more: bool


class PicturePage(Told):
    """Pictures, newest first."""

    data: tuple[Picture, ...]
    next_cursor: str | None = None


class AspectOffered(Told):
    """A preset size."""

    aspect: str
    width: int
    height: int


class BaseOffered(Told):
    """A family of preset sizes."""

    base: int
    aspects: tuple[AspectOffered, ...]


class ModelSettings(Told):
    """What a model does by itself, and what it can do."""

    default: bool
    steps: int
    guidance: float
    base: int
    bases: tuple[BaseOffered, ...]
    loras: tuple[str, ...]
    max_pictures: int
    max_pixels: int
    max_steps: int


class Model(Told):
    """A model in OpenAI's list, with our own fields."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "petzval"
    petzval: ModelSettings


class ModelPage(Told):
    """All models."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]
