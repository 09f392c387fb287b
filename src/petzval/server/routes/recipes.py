"""`/v1/recipes/read`: ask a picture how it was made."""

from __future__ import annotations

import io
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict

from petzval.errors import PetzvalError
from petzval.inference.image import recipe_in
from petzval.server.errors import ApiError
from petzval.server.state import TheCaller

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {f"image/{kind}": _PICTURE for kind in ("png", "jpeg", "webp")},
}


class RecipeRead(BaseModel):
    """What is in a picture."""

    model_config = ConfigDict(frozen=True)

    recipe: dict[str, Any]


@router.post("/read", openapi_extra={"requestBody": _BODY})
async def read(request: Request, caller: TheCaller) -> RecipeRead:
    """The recipe in a picture that was made here or anywhere else with petzval.

    The file is forgotten with the answer, and its pixels are never decoded. 422 where there is no
    recipe in it, or no picture.
    """
    del caller  # whoever may draw may ask
    content = await request.body()
    try:
        recipe = await run_in_threadpool(recipe_in, io.BytesIO(content), "the file")
    except PetzvalError as error:
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        raise ApiError(422, message, code="no_recipe") from error
    return RecipeRead(recipe=recipe.to_mapping())
