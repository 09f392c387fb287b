"""What a server offers, and what a request asks of it: a model, LoRAs, a plan of pictures."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from petzval.errors import RequestError
from petzval.inference.plan import GenerationPlan, make_plan
from petzval.inference.request import GenerationRequest
from petzval.inference.task import OfferedModel
from petzval.server.errors import ApiError, api_error
from petzval.server.schemas import JobRequest, LoraAsked
from petzval.server.settings import ServerSettings


class Offers:
    """The models of an engine under the names that callers know.

    Args:
        models: the first is the default.
        settings: have aliases, and the mark that all pictures get.
    """

    def __init__(self, models: Sequence[OfferedModel], settings: ServerSettings) -> None:
        self._models = {model.name: model for model in models}
        self._settings = settings

    def model(self, name: str | None, loras: Sequence[LoraAsked] = ()) -> OfferedModel:
        """The model of that name or alias, or the default one, which has these LoRAs.

        Raises:
            ApiError: 404: there is no such model; 400: it has no such LoRA.
        """
        name = next(iter(self._models)) if name is None else self._settings.aliases.get(name, name)
        if name not in self._models:
            raise ApiError(
                404,
                f"there is no model {name[:80]!r}; models are {', '.join(self._models)}",
                param="model",
                code="model_not_found",
            )
        model = self._models[name]
        for lora in loras:
            if lora.name not in model.loras:
                known = ", ".join(model.loras) or "none"
                raise ApiError(
                    400,
                    f"there is no LoRA {lora.name[:80]!r} for {name}; there are: {known}",
                    param="loras",
                    code="invalid_value",
                )
        return model

    def decided(self, request: JobRequest) -> dict[str, Any]:
        """A request as it is kept: model and seed are decided, so that it can be drawn again.

        Raises:
            ApiError: as `model`.
        """
        asked = request.model_dump(mode="json", exclude_none=True)
        asked["model"] = self.model(request.model, request.loras).name
        if request.seed is None:
            asked["seed"] = secrets.randbelow(2**31)
        return asked

    def plan(self, asked: Mapping[str, Any]) -> GenerationPlan:
        """The pictures of a request that was decided.

        Raises:
            ApiError: as `model`; or 400: something is out of range.
        """
        request = JobRequest.model_validate(asked)
        model = self.model(request.model, request.loras)
        try:
            return make_plan(
                GenerationRequest(
                    prompt=request.prompt,
                    negative_prompt=request.negative_prompt,
                    aspect=request.aspect,
                    size=request.size,
                    base=request.base,
                    steps=request.steps,
                    guidance=request.guidance,
                    seed=0 if request.seed is None else request.seed,
                    num_images=request.n,
                    mark=self._settings.mark,
                ),
                model.defaults,
            )
        except RequestError as error:
            raise api_error(error) from error
