"""A comparison as JSON lines, as a table, and as pictures: rows of a grid, points with errors."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petzval.errors import DataError, MissingExtraError
from petzval.evals.comparison import Entry, Sample
from petzval.evals.likeness import Estimate
from petzval.evals.tables import table
from petzval.inference.image import write_atomically
from petzval.scoring.scorer import Picture

COLUMNS = {
    "right": "right",
    "fulfilled": "things fulfilled",
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "variety": "variety",
    "sharpness": "sharpness",
}
"""Measure -> head of its column."""

_INK, _PALE = (40, 40, 44), (248, 248, 246)


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """One JSON object a line; replaces the file.

    Raises:
        RequestError: it cannot be written.
    """
    lines = (json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
    write_atomically(path, "".join(lines).encode())


def read_entries(path: Path) -> list[Entry]:
    """What `write_entries` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_entry(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read {path}: {error}", "run: petzval compare --record") from error


def _entry(fields: dict[str, Any]) -> Entry:
    for name in ("measures", "ratios"):
        fields[name] = {key: Estimate(**value) for key, value in fields[name].items()}
    return Entry(**fields)


def comparison_table(entries: Sequence[Entry], *, relative: bool = False) -> str:
    """Markdown: an entry a line, value ± standard error.

    Args:
        relative: show multiples of the reference's in place of values.
    """
    sides = [entry.ratios if relative else entry.measures for entry in entries]
    names = [name for name in COLUMNS if any(name in side for side in sides)]
    several = len({(entry.height, entry.width) for entry in entries}) > 1
    header = ["model", *(["size"] if several else []), *(COLUMNS[name] for name in names)]
    body = [
        [
            entry.label,
            *([f"{entry.width} × {entry.height}"] if several else []),
            *(_shown(name, side.get(name), relative) for name in names),
        ]
        for entry, side in zip(entries, sides, strict=True)
    ]
    return table(header, body)


def _shown(name: str, estimate: Estimate | None, relative: bool) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    scale, digits, unit = 1.0, 2, ""
    if not relative and name in ("right", "fulfilled"):
        scale, digits, unit = 100.0, 1, " %"
    elif not relative and name == "frechet":
        digits = 0
    elif not relative and name == "kernel":
        digits = 3
    error = "?" if math.isnan(estimate.error) else f"{scale * estimate.error:.{digits}f}"
    return f"{scale * estimate.value:.{digits}f} ± {error}{unit}"


def picture_grid(samples: Sequence[Sample], *, side: int = 128) -> Picture:
    """A row of pictures a sample, its label above; the same prompts and seeds in each column.

    Args:
        side: of the square that each picture is fitted into, in pixels.
    """
    gap, head = 6, 22
    columns = max(len(sample.shown) for sample in samples)
    size = (columns * (side + gap) + gap, len(samples) * (side + head + gap) + gap)
    sheet = Image.new("RGB", size, _PALE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, sample in enumerate(samples):
        top = gap + row * (side + head + gap)
        draw.text((gap, top + 2), f"{sample.label}, {sample.resolution}", _INK, font)
        for column, picture in enumerate(sample.shown):
            image = Image.fromarray(picture)
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            left = gap + column * (side + gap) + (side - image.width) // 2
            sheet.paste(image, (left, top + head + (side - image.height) // 2))
    return np.asarray(sheet)


def points(entries: Sequence[Entry], measures: Sequence[str]) -> bytes:
    """PNG file: a panel a measure, an entry a line, two standard errors to each side.

    The first entry is the reference; a thin line carries its value through the panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval") from error
    height = 0.34 * len(entries) + 0.9
    figure: Any = Figure(figsize=(2.1 + 2.3 * len(measures), height), dpi=120)
    panels: Any = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    places = range(len(entries))
    for axes, name in zip(panels, measures, strict=True):
        found = [entry.measures.get(name, Estimate(value=math.nan, error=0.0)) for entry in entries]
        axes.axvline(found[0].value, color="#bbbbbb", lw=1)
        for place, (entry, one) in enumerate(zip(entries, found, strict=True)):
            colour = "#2f6db5" if entry.guidance != 1 else "#e08a3c"
            axes.errorbar(one.value, place, xerr=2 * one.error, fmt="o", color=colour, capsize=3)
        axes.set_title(COLUMNS[name], fontsize=9)
        axes.tick_params(labelsize=8)
        for edge in ("top", "right"):
            axes.spines[edge].set_visible(False)
    panels[0].set_yticks(places, [entry.label for entry in entries])
    panels[0].invert_yaxis()
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
