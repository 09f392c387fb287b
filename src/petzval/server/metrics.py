"""What Prometheus reads: counts and times; no prompt, no key, no path that a request made up."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from petzval.inference.engine import Engine
from petzval.inference.request import GeneratedImage
from petzval.server.tables import JobRow

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._jobs = Counter("petzval_jobs", "Jobs by their end.", ["status"], registry=registry)
        self._accepted = Counter("petzval_jobs_accepted", "Jobs accepted.", registry=registry)
        self._refused = Counter(
            "petzval_jobs_refused", "Jobs refused, by reason.", ["code"], registry=registry
        )
        self._pictures = Counter("petzval_pictures", "Pictures finished.", registry=registry)
        self._stages = Histogram(
            "petzval_stage_seconds",
            "Time of one picture in each stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waits = Histogram(
            "petzval_wait_seconds",
            "From a job's acceptance to its first step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._requests = Histogram(
            "petzval_request_seconds",
            "From a request's head to the head of its answer.",
            ["method", "route", "status"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        waiting = Gauge("petzval_jobs_waiting", "Jobs that wait.", registry=registry)
        waiting.set_function(lambda: engine.num_waiting)
        capacity = Gauge("petzval_queue_capacity", "Jobs that may wait.", registry=registry)
        capacity.set(engine.capacity)

    def accepted(self) -> None:
        """A job is accepted."""
        self._accepted.inc()

    def refused(self, code: str | None) -> None:
        """A job is refused."""
        self._refused.labels(code or "other").inc()

    def started(self, row: JobRow) -> None:
        """The first picture of a job is begun."""
        self._waits.observe(max(0.0, time.time() - row.created))

    def finished(self, image: GeneratedImage) -> None:
        """A picture is finished."""
        self._pictures.inc()
        for stage, seconds in image.seconds.items():
            self._stages.labels(stage).observe(seconds)

    def ended(self, status: str) -> None:
        """A job has ended."""
        self._jobs.labels(status).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request is being answered.

        Args:
            route: the pattern that took it, such as "/v1/jobs/{id}".
        """
        self._requests.labels(method, route, str(status)).observe(seconds)

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return generate_latest(self._registry)
