"""How much one caller may ask for."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

from petzval.inference.plan import GenerationPlan
from petzval.server.errors import ApiError
from petzval.server.settings import Limits

_MAX_BUCKETS = 10_000


def check_size(plan: GenerationPlan, limits: Limits) -> None:
    """Refuse what is larger than a caller may ask for.

    Raises:
        ApiError: 400, naming the limit.
    """
    resolution = plan.resolution
    pixels = resolution.height * resolution.width
    for name, value, most in (
        ("n", len(plan.images), limits.max_pictures),
        ("size", pixels, limits.max_pixels),
        ("steps", plan.steps, limits.max_steps),
    ):
        if value > most:
            unit = {"n": "pictures", "size": "pixels", "steps": "steps"}[name]
            raise ApiError(
                400,
                f"{value:,} {unit} are more than the limit of {most:,}",
                param=name,
                code="limit_exceeded",
            )


@dataclass(kw_only=True, slots=True)
class _Bucket:
    tokens: float
    filled: float


class RateLimit:
    """A token bucket for each caller; a minute's worth may be used at once."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def spend(self, owner: str, per_minute: float) -> None:
        """Take one job off the caller's allowance.

        Raises:
            ApiError: 429, with the seconds after which there is one again.
        """
        most = max(1.0, per_minute)
        with self._lock:
            now = time.monotonic()
            if len(self._buckets) >= _MAX_BUCKETS:
                self._buckets.clear()
            bucket = self._buckets.setdefault(owner, _Bucket(tokens=most, filled=now))
            bucket.tokens = min(most, bucket.tokens + (now - bucket.filled) * per_minute / 60)
            bucket.filled = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return
            seconds = (1 - bucket.tokens) * 60 / per_minute
        raise ApiError(
            429,
            f"more than {per_minute:g} jobs a minute",
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            retry_after=math.ceil(seconds),
        )
