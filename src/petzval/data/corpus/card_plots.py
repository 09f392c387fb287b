"""The pictures of a data card: yields, buckets, caption lengths, crop loss."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petzval.data.corpus.card_facts import CaptionFacts
from petzval.data.corpus.yields import Yield
from petzval.errors import MissingExtraError

BLUE, ORANGE, GREY, INK = "#2f6db5", "#e08a3c", "#d5d5d2", "#333333"
_COLOURS = (BLUE, ORANGE, "#5b9a5b")


def plot_yields(steps: Sequence[tuple[str, Yield | None]], num_pictures: int) -> bytes:
    """PNG file: pictures that are left after each step; steps that did not run are hatched."""
    figure, axes = _figure(0.36 * (len(steps) + 1) + 1.0)
    names, lefts, faces, remarks = ["imported"], [num_pictures], [BLUE], [f"{num_pictures:,}"]
    for name, found in steps:
        ran = found is not None and not found.not_run
        names.append(name)
        lefts.append(found.num_left if found is not None else lefts[-1])
        faces.append(BLUE if ran else GREY)
        dropped = found.num_dropped if found is not None else 0
        fewer = f"  (−{dropped:,})" if dropped else ""
        remarks.append(f"{lefts[-1]:,}{fewer}" if ran else "not run")
    bars = axes.barh(range(len(names)), lefts, color=faces, height=0.72)
    for bar, face in zip(bars, faces, strict=True):
        if face == GREY:
            bar.set_hatch("////")
            bar.set_edgecolor("#aaaaaa")
            bar.set_linewidth(0)
    for place, (left, remark) in enumerate(zip(lefts, remarks, strict=True)):
        axes.text(left + 0.01 * num_pictures, place, remark, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(1, num_pictures))
    axes.set_xlabel("pictures left")
    return _png(figure, axes, "What each cleaning step leaves")


def plot_buckets(counts: dict[str, int]) -> bytes:
    """PNG file: pictures in each bucket, a panel for each base size, narrow to wide."""
    bases = sorted({name.partition("/")[0] for name in counts}, key=int)
    figure = _new_figure(2.6)
    top = max([1, *counts.values()])
    panels: Any = figure.subplots(1, len(bases), sharey=True, squeeze=False)
    for axes, base in zip(panels[0], bases, strict=True):
        own = {n.partition("/")[2]: c for n, c in counts.items() if n.startswith(f"{base}/")}
        axes.bar(range(len(own)), list(own.values()), color=BLUE, width=0.8)
        axes.set_xticks(range(len(own)), list(own), rotation=90, fontsize=7)
        axes.set_title(f"{base}²", fontsize=9)
        axes.set_ylim(0, 1.05 * top)
        _bare(axes)
    panels[0][0].set_ylabel("pictures")
    panels[0][0].yaxis.get_major_locator().set_params(integer=True)
    return _saved(figure)


def plot_words(captions: Sequence[CaptionFacts]) -> bytes:
    """PNG file: histograms of caption lengths in words, with their means."""
    figure, axes = _figure(2.8)
    longest = max(10, *(int(each.words.max(initial=0)) for each in captions))
    edges = np.linspace(0, longest + 1, 41) if longest > 40 else np.arange(longest + 2) - 0.5
    for each, colour in zip(captions, _COLOURS, strict=False):
        mean = float(each.words.mean()) if each.words.size else 0.0
        label = f"{each.kind}: mean {mean:.0f}"
        axes.hist(each.words, edges, color=colour, alpha=0.75, label=label)
        axes.axvline(mean, color=colour, lw=1.5, ls="--")
    axes.legend(fontsize=8, frameon=False)
    axes.set_xlim(max(0.0, float(edges[0])), float(edges[-1]))
    axes.set_xlabel("words")
    axes.set_ylabel("captions")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _png(figure, axes, "Length of captions")


def plot_crop_loss(losses: NDArray[np.float64]) -> bytes:
    """PNG file: histogram of the share of each picture that its crop cuts off."""
    figure, axes = _figure(2.4)
    top = max(10.0, float(np.ceil(100 * losses.max(initial=0.0))))
    axes.hist(100 * losses, np.linspace(0, top, 41), color=BLUE)
    axes.set_xlabel("cut off by the crop, % of the picture")
    axes.set_ylabel("pictures")
    axes.set_xlim(0, top)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _png(figure, axes, "Crop loss")


def _new_figure(height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval") from error
    return Figure(figsize=(7.2, height), dpi=120, layout="constrained")


def _figure(height: float) -> tuple[Any, Any]:
    figure = _new_figure(height)
    return figure, figure.add_subplot()


def _bare(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _png(figure: Any, axes: Any, title: str) -> bytes:
    axes.set_title(title, fontsize=10, loc="left")
    _bare(axes)
    return _saved(figure)


def _saved(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
