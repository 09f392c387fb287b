"""The JSON of the API: what comes in, strictly, and what goes out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from petzval.inference.recipe import MAX_GUIDANCE, MAX_LORA_WEIGHT, MAX_SEED, MAX_STEPS
from petzval.inference.request import MAX_PROMPT_CHARACTERS

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Priority = Literal["low", "normal", "high"]

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]

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


class OwnFields(Asked):
    """What OpenAI's API has no word for."""

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    negative_prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)] = ""
    aspect: Aspect | None = None
    base: int | None = None
    model: Name | None = None
    loras: Annotated[tuple[LoraAsked, ...], Field(max_length=8, strict=False)] = ()
    priority: Priority = "normal"


class ImagesRequest(Asked):
    """`POST /v1/images/generations`, as OpenAI's API defines it, with our own fields apart."""

    prompt: Prompt
    model: Name | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Literal["auto"] | Size | None = None
    quality: Quality | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid", "natural"] | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=512)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    petzval: OwnFields = OwnFields()


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


class ImageAnswer(Told):
    """A picture of the Images API: inside the answer, or where it can be fetched."""

    b64_json: str | None = None
    url: str | None = None
    petzval: Picture


class InputTokens(Told):
    """Of the prompt; not counted here."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(Told):
    """Tokens of the pictures: squares of 16 pixels. Those of the prompt are not counted."""

    input_tokens: int = 0
    input_tokens_details: InputTokens = InputTokens()
    output_tokens: int
    total_tokens: int


class ImagesAnswer(Told):
    """The answer of the Images API."""

    created: int
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: str
    size: str
    data: tuple[ImageAnswer, ...]
    usage: Usage


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
