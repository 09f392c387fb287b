"""`/v1/models`: what can be drawn with."""

from __future__ import annotations

from fastapi import APIRouter

from petzval.inference.task import OfferedModel
from petzval.resolution import PRESETS
from petzval.server.errors import ApiError
from petzval.server.schemas import AspectOffered, BaseOffered, Model, ModelPage, ModelSettings
from petzval.server.settings import Limits
from petzval.server.state import TheCaller, TheStudio

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(studio: TheStudio, caller: TheCaller) -> ModelPage:
    """The models, the default one first."""
    models = studio.engine.models
    return ModelPage(
        data=tuple(_model(model, model is models[0], caller.limits) for model in models)
    )


@router.get("/{name:path}")
def get_model(name: str, studio: TheStudio, caller: TheCaller) -> Model:
    """One model."""
    for model in studio.engine.models:
        if model.name == name:
            return _model(model, model is studio.engine.models[0], caller.limits)
    raise ApiError(404, "there is no such model", param="model", code="model_not_found")


def _model(model: OfferedModel, default: bool, limits: Limits) -> Model:
    return Model(
        id=model.name,
        created=0,
        petzval=ModelSettings(
            default=default,
            steps=model.defaults.steps,
            guidance=model.defaults.guidance,
            base=model.defaults.base,
            bases=tuple(_base(base) for base in sorted(PRESETS)),
            loras=model.loras,
            max_pictures=limits.max_pictures,
            max_pixels=limits.max_pixels,
            max_steps=limits.max_steps,
        ),
    )


def _base(base: int) -> BaseOffered:
    return BaseOffered(
        base=base,
        aspects=tuple(
            AspectOffered(aspect=aspect, width=size.width, height=size.height)
            for aspect, size in PRESETS[base].items()
        ),
    )
