"""What TensorBoard itself reads from a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a number."""
    return [(each.step, each.value) for each in _read(folder).Scalars(name)]


def pictures(folder: Path, name: str) -> list[tuple[int, bytes]]:
    """(step, PNG) of a picture."""
    return [(each.step, each.encoded_image_string) for each in _read(folder).Images(name)]


def _read(folder: Path) -> Any:
    found: Any = EventAccumulator(str(folder / "events"))
    return found.Reload()
