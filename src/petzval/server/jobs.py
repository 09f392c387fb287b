"""A job from its acceptance to its end: kept first, then drawn, and told of on the way."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from petzval.errors import PlacementError, QueueFullError
from petzval.inference.engine import Engine
from petzval.inference.plan import GenerationPlan
from petzval.inference.task import Task
from petzval.server.checks import ContentCheck, refuse_prompt
from petzval.server.describing import PRIORITIES
from petzval.server.errors import ApiError, api_error, not_found
from petzval.server.events import Hub
from petzval.server.following import Following
from petzval.server.formats import Format, convert
from petzval.server.journal import note
from petzval.server.keys import Caller
from petzval.server.limits import RateLimit, check_size
from petzval.server.metrics import Metrics
from petzval.server.offers import Offers
from petzval.server.provenance import Provenance
from petzval.server.schemas import JobRequest
from petzval.server.settings import ServerSettings
from petzval.server.store import UNFINISHED, Store, new_id
from petzval.server.tables import JobRow, PictureRow


class Jobs:
    """All jobs of a server: accepted here, drawn by the engine, kept in the store.

    Attributes:
        offers: what may be asked for.
        following: what becomes of a job from then on, and how it stands.
        draining: no more are accepted: the server stops.
    """

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
        self.offers = Offers(engine.models, settings)
        self.following = Following(
            settings, store, engine, hub, metrics, checks=checks, provenance=provenance
        )

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
        asked = self.offers.decided(request)
        plan = self.offers.plan(asked)
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
                    priority=PRIORITIES[request.priority],
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
            self.following.publish(row, "status")
        self.metrics.accepted()
        prompt = {"prompt": request.prompt} if self.settings.log_prompts else {}
        note("job accepted", job=row.id, owner=row.owner, images=row.images, **prompt)
        return row, True

    def resume(self) -> int:
        """Submit what an earlier process accepted and did not end; returns the number of jobs."""
        rows = self.store.unfinished()
        for row in rows:
            try:
                plan = self.offers.plan(row.request)
            except ApiError as error:
                self.following.ended(row, "failed", error.body["error"])
                continue
            there = {picture.index for picture in row.pictures}
            missing = tuple(image for image in plan.images if image.index not in there)
            if missing:
                self.store.set_job(row.id, status="queued", started=None)
                self._submit(row, replace(plan, images=missing))
            else:
                self.following.ended(row, "done", None)
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
            self.following.ended(row, "cancelled", None)
        return row

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
            model=self.offers.model(request.model).name,
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
        self.engine.submit(task, lambda event: self.following.hear(row, event), over_capacity=True)
