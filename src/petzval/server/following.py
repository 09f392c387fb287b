"""A job while it is drawn: what the engine tells becomes rows, files and events."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from petzval.errors import PetzvalError
from petzval.inference.engine import Engine
from petzval.inference.event import Pixels
from petzval.inference.mark import marked
from petzval.inference.request import GeneratedImage
from petzval.inference.task import Ended, Finished, Started, Stepped, TaskEvent
from petzval.server.checks import ContentCheck, refuse_picture
from petzval.server.describing import describe_job, describe_picture
from petzval.server.errors import ApiError, api_error, error_body
from petzval.server.events import Hub
from petzval.server.formats import thumbnail
from petzval.server.journal import LOGGER, note
from petzval.server.metrics import Metrics
from petzval.server.provenance import Provenance
from petzval.server.schemas import Job, Progress
from petzval.server.settings import ServerSettings
from petzval.server.store import UNFINISHED, Store
from petzval.server.tables import JobRow


class Following:
    """Follows jobs from the engine's first word to their end."""

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
        self._settings = settings
        self._store = store
        self._engine = engine
        self._hub = hub
        self._metrics = metrics
        self._checks = tuple(checks)
        self._provenance = provenance
        self._progress: dict[str, Progress] = {}

    def describe(self, row: JobRow, positions: Mapping[str, int] | None = None) -> Job:
        """A job as the API tells of it."""
        if positions is None:
            positions = self._engine.positions() if row.status == "queued" else {}
        return describe_job(row, positions.get(row.id), self._progress.get(row.id))

    def hear(self, row: JobRow, event: TaskEvent) -> None:
        """The engine speaks of a job; in its own thread, in order."""
        if isinstance(event, Started):
            self._metrics.started(row)
            self._store.set_job(row.id, status="running", started=time.time())
            self.publish(row, "status")
        elif isinstance(event, Stepped):
            self._stepped(row, event)
        elif isinstance(event, Finished):
            now = self._store.job(row.id)
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
            self.ended(row, *_end(event))

    def _stepped(self, row: JobRow, event: Stepped) -> None:
        progress = Progress(image=event.image, step=event.step, steps=event.num_steps)
        self._progress[row.id] = progress
        told = {"job": row.id, **progress.model_dump()}
        self._hub.publish(row.id, row.owner, "progress", told)
        if event.preview is not None and self._hub.has_listeners(row.id, row.owner):
            preview = {"job": row.id, "image": event.image, "step": event.step}
            preview["png"] = _png(event.preview())
            self._hub.publish(row.id, row.owner, "preview", preview)
        if event.partial is not None:
            partial = {"image": event.image, "pixels": marked(event.partial, self._settings.mark)}
            self._hub.publish(row.id, row.owner, "partial", partial)

    def _keep(self, row: JobRow, image: GeneratedImage) -> None:
        self._metrics.finished(image)
        picture = image.pil()
        refuse_picture(self._checks, picture, image.recipe.prompt)
        png = image.encode("png")
        if self._provenance is not None:
            png = self._provenance.sign(png, "png")
        kept = self._store.add_picture(row, image.index, image.recipe, png, thumbnail(picture))
        self._hub.publish(
            row.id, row.owner, "picture", describe_picture(kept).model_dump(mode="json")
        )

    def _give_up(self, row: JobRow, error: ApiError) -> None:
        self.ended(row, "failed", error.body["error"])
        self._engine.cancel(row.id)

    def ended(self, row: JobRow, status: str, error: Mapping[str, Any] | None) -> None:
        """A job has come to its end, unless it had one before."""
        self._progress.pop(row.id, None)
        if not self._store.set_job(row.id, status=status, finished=time.time(), error=error):
            return  # it has an end: a picture could not be kept, and then it was cancelled
        self._metrics.ended(status)
        code = {} if error is None else {"code": error.get("code")}
        note("job ended", job=row.id, status=status, **code)
        self.publish(row, "end")

    def publish(self, row: JobRow, kind: str) -> None:
        """Tell whoever listens how a job stands."""
        now = self._store.job(row.id)
        if now is not None:
            told = self.describe(now).model_dump(mode="json")
            self._hub.publish(row.id, row.owner, kind, told)


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
