"""Numbers of a run: a JSON line each time, and event files where TensorBoard is installed.

Pictures are files of their own; the event files show them beside the numbers.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image


@runtime_checkable
class _EventWriter(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def add_image(
        self,
        tag: str,
        img_tensor: UInt8[np.ndarray, "height width 3"],
        global_step: int,
        *,
        dataformats: str,
    ) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, oldest first; a line cut short by a crash is left out."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(cast("dict[str, Any]", row))
    return rows


class MetricsLog:
    """Appends rows to `metrics.jsonl` and, if the extra is there, to `events/`.

    Args:
        folder: of the run.
        step: rows after this one belong to a future that a resumed run will write again; they
            are dropped.
        events: False keeps TensorBoard out even where it is installed.
    """

    def __init__(self, folder: Path, *, step: int = 0, events: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row.get("step", 0) <= step]
        # A run that dies here keeps the rows that it had.
        draft = self.path.with_name(f".{self.path.name}")
        draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        draft.replace(self.path)
        self._events = _open_events(folder / "events", step) if events else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row of numbers under this step; one that is not finite is null in the file."""
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def show(self, step: int, name: str, picture: Path) -> None:
        """Add a picture's file to the events under this step; without events nothing happens."""
        if self._events is None:
            return
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._events.add_image(name, pixels, step, dataformats="HWC")
        self._events.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._events is not None:
            self._events.close()


def _open_events(folder: Path, step: int) -> _EventWriter | None:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        return None
    return cast("_EventWriter", module.SummaryWriter(str(folder), purge_step=step + 1))
