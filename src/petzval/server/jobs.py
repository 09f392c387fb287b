"""A job from its acceptance to its end: kept first, then drawn, and told of on the way."""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from petzval.errors import PetzvalError, PlacementError, QueueFullError, RequestError
from petzval.inference.engine import Engine
from petzval.inference.event import Pixels
from petzval.inference.mark import marked
from petzval.inference.plan import GenerationPlan, make_plan
from petzval.inference.request import GeneratedImage, GenerationRequest
from petzval.inference.task import (
    HIGH,
    LOW,
    NORMAL,
    Ended,
    Finished,
    OfferedModel,
    Started,
    Stepped,
    Task,
    TaskEvent,
)
from petzval.server.checks import ContentCheck, refuse_picture, refuse_prompt
from petzval.server.errors import ApiError, api_error, error_body, not_found
from petzval.server.events import Hub
from petzval.server.formats import Format, convert, thumbnail
from petzval.server.journal import LOGGER, note
from petzval.server.keys import Caller
from petzval.server.limits import RateLimit, check_size
from petzval.server.metrics import Metrics
from petzval.server.provenance import Provenance
from petzval.server.schemas import ErrorDetail, Job, JobRequest, LoraAsked, Picture, Progress
from petzval.server.settings import ServerSettings
from petzval.server.store import UNFINISHED, Store, new_id
from petzval.server.tables import JobRow, PictureRow

_PRIORITIES = {"low": LOW, "normal": NORMAL, "high": HIGH}
_PRIORITY_NAMES = {value: name for name, value in _PRIORITIES.items()}


class Jobs:
    """All jobs of a server: accepted here, drawn by the engine, kept in the store."""

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        engine: Engine,
        hub: Hub,
        metrics: Metrics,
        *,
        checks: Sequence[ContentCheck] = (),
        provenance: Provenance | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.engine = engine
        self.hub = hub
        self.metrics = metrics
        self.checks = tuple(checks)
        self.provenance = provenance
        self.draining = False
        self._rates = RateLimit()
        self._accepting = threading.Lock()
        self._progress: dict[str, Progress] = {}
        self._models = {model.name: model for model in engine.models}

    def accept(
        self,
        request: JobRequest,
        caller: Caller,
        *,
        idempotency_key: str | None = None,
        source: str = "jobs",
        user: str = "",
        partials: int = 0,
    ) -> tuple[JobRow, bool]:
        """Accept a job. When this returns, the job is on the disk and will be drawn.

        Args:
            idempotency_key: a second request with the same one is the same job.
            partials: full-size pictures-so-far to publish, for each picture.

        Returns:
            The job, and whether it is new.

        Raises:
            ApiError: it cannot be served, or not now; nothing was accepted.
        """
        fingerprint = hashlib.sha256(f"{source} {request.model_dump_json()}".encode()).hexdigest()
        asked = self._decided(request)
        plan = self._plan(asked)
        check_size(plan, caller.limits)
        refuse_prompt(self.checks, request.prompt, request.negative_prompt)
        with self._accepting:
            known = self._known(caller, idempotency_key, fingerprint)
            if known is None:
                self._check_room(caller)
                self._rates.spend(caller.owner, caller.limits.jobs_per_minute)
        if known is None:  # what is refused here has taken time, and counts for the rate
            self._check_memory(asked["model"], request, plan)
        with self._accepting:
            known = known or self._known(caller, idempotency_key, fingerprint)
            if known is not None:
                return known, False
            self._check_room(caller)
            row = self.store.add_job(
                JobRow(
                    id=new_id("job"),
                    owner=caller.owner,
                    user=user,
                    status="queued",
                    priority=_PRIORITIES[request.priority],
                    source=source,
                    images=request.n,
                    created=time.time(),
                    request=asked,
                    idempotency_key=idempotency_key,
                    fingerprint=fingerprint,
                    pictures=[],
                )
            )
            self._submit(row, plan, weight=caller.limits.weight, partials=partials)
        if self.hub.has_listeners(row.id, row.owner):
            self._publish(row, "status")
        self.metrics.accepted()
        prompt = {"prompt": request.prompt} if self.settings.log_prompts else {}
        note("job accepted", job=row.id, owner=row.owner, images=row.images, **prompt)
        return row, True

    def resume(self) -> int:
        """Submit what an earlier process accepted and did not end; returns the number of jobs."""
        rows = self.store.unfinished()
        for row in rows:
            try:
                plan = self._plan(row.request)
            except ApiError as error:
                self._ended(row, "failed", error.body["error"])
                continue
            there = {picture.index for picture in row.pictures}
            missing = tuple(image for image in plan.images if image.index not in there)
            if missing:
                self.store.set_job(row.id, status="queued", started=None)
                self._submit(row, replace(plan, images=missing))
            else:
                self._ended(row, "done", None)
        return len(rows)

    def find(self, id: str, caller: Caller) -> JobRow:
        """A job of the caller.

        Raises:
            ApiError: 404.
        """
        row = self.store.job(id, caller.owner)
        if row is None:
            raise not_found("job")
        return row

    def cancel(self, id: str, caller: Caller) -> JobRow:
        """Stop a job within a step; its finished pictures stay.

        Raises:
            ApiError: 404.
        """
        row = self.find(id, caller)
        if row.status in UNFINISHED and not self.engine.cancel(id):
            self._ended(row, "cancelled", None)
        return row

    def model(self, name: str | None, loras: Sequence[LoraAsked] = ()) -> OfferedModel:
        """The model of that name or alias, or the default one, which has these LoRAs.

        Raises:
            ApiError: 404: there is no such model; 400: it has no such LoRA.
        """
        name = next(iter(self._models)) if name is None else self.settings.aliases.get(name, name)
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

    def file_of(self, row: PictureRow, format: Format, quality: int | None = None) -> bytes:
        """A picture's file in a format, with its recipe, and signed where pictures are.

        Args:
            quality: as in `formats.convert`.
        """
        png = self.store.file(row.id).read_bytes()
        data = convert(png, row.recipe, format, quality)
        if self.provenance is None or format == "png":
            return data
        return self.provenance.sign(data, format)

    def describe(self, row: JobRow, positions: Mapping[str, int] | None = None) -> Job:
        """A job as the API tells of it."""
        if positions is None:
            positions = self.engine.positions() if row.status == "queued" else {}
        return Job.model_validate(
            {
                "id": row.id,
                "status": row.status,
                "priority": _PRIORITY_NAMES[row.priority],
                "position": positions.get(row.id) if row.status == "queued" else None,
                "created": row.created,
                "started": row.started,
                "finished": row.finished,
                "request": row.request,
                "progress": self._progress.get(row.id),
                "images": tuple(describe(picture) for picture in row.pictures),
                "error": None if row.error is None else ErrorDetail(**row.error),
            }
        )

    def _decided(self, request: JobRequest) -> dict[str, Any]:
        """The request as it is kept: model and seed are decided, so that it can be drawn again."""
        asked = request.model_dump(mode="json", exclude_none=True)
        asked["model"] = self.model(request.model, request.loras).name
        if request.seed is None:
            asked["seed"] = secrets.randbelow(2**31)
        return asked

    def _plan(self, asked: Mapping[str, Any]) -> GenerationPlan:
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
                    mark=self.settings.mark,
                ),
                model.defaults,
            )
        except RequestError as error:
            raise api_error(error) from error

    def _known(
        self, caller: Caller, idempotency_key: str | None, fingerprint: str
    ) -> JobRow | None:
        if idempotency_key is None:
            return None
        known = self.store.job_by_idempotency_key(caller.owner, idempotency_key)
        if known is not None and known.fingerprint != fingerprint:
            raise ApiError(
                422,
                "this Idempotency-Key was given with another request",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        return known

    def _check_memory(self, model: str, request: JobRequest, plan: GenerationPlan) -> None:
        """Refuse what no plan of memory has room for; it would fail when its turn comes."""
        loras = tuple((lora.name, lora.weight) for lora in request.loras)
        try:
            self.engine.check(model, loras, plan)
        except PlacementError as error:
            raise api_error(error) from error

    def _check_room(self, caller: Caller) -> None:
        if self.draining:
            raise ApiError(
                503, "the server is stopping", kind="server_error", code="stopping", retry_after=5
            )
        waiting = self.engine.num_waiting
        if waiting >= self.engine.capacity:
            raise api_error(
                QueueFullError(f"{waiting} jobs are waiting already", "try again in a while")
            )
        own = self.engine.num_waiting_of(caller.owner)
        if own >= caller.limits.max_waiting:
            raise api_error(
                QueueFullError(f"{own} of your jobs are waiting already", "try again in a while")
            )

    def _submit(
        self, row: JobRow, plan: GenerationPlan, *, weight: float = 1.0, partials: int = 0
    ) -> None:
        request = JobRequest.model_validate(row.request)
        task = Task(
            id=row.id,
            plan=plan,
            model=self.model(request.model).name,
            loras=tuple((lora.name, lora.weight) for lora in request.loras),
            owner=row.owner,
            priority=row.priority,
            weight=weight,
            wait_seconds=self.settings.wait_seconds,
            draw_seconds=self.settings.draw_seconds,
            # With a check, nothing is shown before it was looked at.
            partials=0 if self.checks else partials,
            previews=not self.checks,
        )
        self.engine.submit(task, lambda event: self._heard(row, event), over_capacity=True)

    def _heard(self, row: JobRow, event: TaskEvent) -> None:
        """The engine speaks; in its own thread, in order."""
        if isinstance(event, Started):
            self.metrics.started(row)
            self.store.set_job(row.id, status="running", started=time.time())
            self._publish(row, "status")
        elif isinstance(event, Stepped):
            self._stepped(row, event)
        elif isinstance(event, Finished):
            now = self.store.job(row.id)
            if now is None or now.status not in UNFINISHED:
                return  # given up while this one was on its way: nothing follows the end
            try:
                self._keep(row, event.image)
            except ApiError as error:
                self._give_up(row, error)
            except Exception:
                LOGGER.exception("a picture of job %s could not be kept", row.id)
                self._give_up(row, ApiError(500, "the server could not keep the picture"))
        else:
            self._ended(row, *_end(event))

    def _stepped(self, row: JobRow, event: Stepped) -> None:
        progress = Progress(image=event.image, step=event.step, steps=event.num_steps)
        self._progress[row.id] = progress
        told = {"job": row.id, **progress.model_dump()}
        self.hub.publish(row.id, row.owner, "progress", told)
        if event.preview is not None and self.hub.has_listeners(row.id, row.owner):
            preview = {"job": row.id, "image": event.image, "step": event.step}
            preview["png"] = _png(event.preview())
            self.hub.publish(row.id, row.owner, "preview", preview)
        if event.partial is not None:
            partial = {"image": event.image, "pixels": marked(event.partial, self.settings.mark)}
            self.hub.publish(row.id, row.owner, "partial", partial)

    def _keep(self, row: JobRow, image: GeneratedImage) -> None:
        self.metrics.finished(image)
        picture = image.pil()
        refuse_picture(self.checks, picture, image.recipe.prompt)
        png = image.encode("png")
        if self.provenance is not None:
            png = self.provenance.sign(png, "png")
        kept = self.store.add_picture(row, image.index, image.recipe, png, thumbnail(picture))
        self.hub.publish(row.id, row.owner, "picture", describe(kept).model_dump(mode="json"))

    def _give_up(self, row: JobRow, error: ApiError) -> None:
        self._ended(row, "failed", error.body["error"])
        self.engine.cancel(row.id)

    def _ended(self, row: JobRow, status: str, error: Mapping[str, Any] | None) -> None:
        self._progress.pop(row.id, None)
        if not self.store.set_job(row.id, status=status, finished=time.time(), error=error):
            return  # it has an end: a picture could not be kept, and then it was cancelled
        self.metrics.ended(status)
        code = {} if error is None else {"code": error.get("code")}
        note("job ended", job=row.id, status=status, **code)
        self._publish(row, "end")

    def _publish(self, row: JobRow, kind: str) -> None:
        now = self.store.job(row.id)
        if now is not None:
            told = self.describe(now).model_dump(mode="json")
            self.hub.publish(row.id, row.owner, kind, told)


def describe(row: PictureRow) -> Picture:
    """A picture as the API tells of it."""
    path = f"/v1/pictures/{row.id}"
    return Picture(
        id=row.id,
        job=row.job,
        index=row.index,
        created=row.created,
        width=row.width,
        height=row.height,
        seed=row.seed,
        prompt=row.prompt,
        negative_prompt=row.negative_prompt,
        model=row.model,
        steps=row.steps,
        guidance=row.guidance,
        favourite=row.favourite,
        deleted=row.deleted is not None,
        url=f"{path}/file",
        thumbnail_url=f"{path}/thumbnail",
        recipe=row.recipe,
    )


def _end(event: Ended) -> tuple[str, dict[str, Any] | None]:
    """Status and error of a job, from how its task ended."""
    if event.how == "timeout":
        message = "it took longer than this server allows"
        return "failed", error_body(message, "server_error", code="timeout")["error"]
    if event.how == "failed" and event.error is not None:
        if not isinstance(event.error, PetzvalError):
            LOGGER.error("job %s failed", event.task, exc_info=event.error)
        return "failed", _error(event.error)
    return event.how, None


def _error(error: BaseException) -> dict[str, Any]:
    """What a caller may know of an error: ours in words, a bug only as such."""
    if isinstance(error, ApiError):
        return error.body["error"]
    if isinstance(error, PetzvalError):
        return api_error(error).body["error"]
    return error_body("the server failed to draw this", "server_error", code="server_error")[
        "error"
    ]


def _png(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
