"""The pictures of docs/training.md: `python -m research.claims --plots` draws what is recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from petzval.data.miniature.captions import brief, dense
from petzval.data.miniature.judge import score
from petzval.data.miniature.world import SMALL, TALL, all_scenes, draw_all
from research.claims.arms import PROTOCOL, TRIED_SIZES, Protocol
from research.claims.record import Estimate, Run, load, of_arm
from research.claims.report import BRIEF, DENSE, chance_of

FOLDER = Path(__file__).parent.parent.parent / "docs" / "pictures"
WORLD, CLAIMS = FOLDER / "miniature-world.png", FOLDER / "claims.png"
COLOURS = {
    "base": "#08519c",
    "brief": "#d94801",
    "mixed": "#756bb1",
    "single size": "#31a354",
    "last layer": "#b30000",
}
LABELS = {
    "base": "base",
    "brief": "brief captions",
    "mixed": "half of each",
    "single size": f"{SMALL} alone",
    "last layer": "last layer alone",
}
_DPI = 110


def write_all(protocol: Protocol = PROTOCOL) -> None:
    """Both pictures; the second only where there is something to show."""
    world().savefig(WORLD, dpi=_DPI)
    runs = load(protocol)
    if runs:
        claims(runs, protocol).savefig(CLAIMS, dpi=_DPI)


def world() -> Figure:
    """One scene a column, one canvas a row, and a row of true pictures under growing noise."""
    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    rng = np.random.default_rng(7)
    scenes = [all_scenes(count)[int(rng.integers(40, 48))] for count in (1, 2, 3)] + [
        all_scenes(count)[int(rng.integers(500, 860))] for count in (2, 3)
    ]
    axes = figure.subplots(4, len(scenes))
    for row, canvas in enumerate(TRIED_SIZES):
        pictures, _ = draw_all(scenes, canvas, rng)
        assert all(each.is_right for each in score(pictures, [dense(scene) for scene in scenes]))
        for column, picture in enumerate(pictures):
            place: Axes = axes[row, column]
            place.imshow((picture.permute(1, 2, 0) * 0.5 + 0.5).numpy(), interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            if column == 0:
                unseen = "\nnever trained on" if canvas == TALL else ""
                place.set_ylabel(f"{canvas}{unseen}", fontsize=9)
            if row == 0:
                words = dense(scenes[column]).text.replace(": ", ":\n").replace(", ", ",\n")
                place.set_title(f"{words}\n(brief: {brief(scenes[column], rng).text})", fontsize=7)
    return figure


def claims(runs: Sequence[Run], protocol: Protocol = PROTOCOL) -> Figure:
    """Captions and layers as curves over the steps, sizes as bars; error bars are one SE."""
    figure = Figure(figsize=(10.5, 7.0), layout="constrained")
    axes = figure.subplots(2, 2)
    chance = {kind: chance_of(kind, protocol, clean=False) for kind in ("dense", "brief")}
    _curves(axes[0, 0], runs, ("base", "brief", "mixed"), DENSE[0], chance["dense"])
    axes[0, 0].set_title(f"Captions, tried with dense prompts at {SMALL}")
    _curves(axes[0, 1], runs, ("base", "brief", "mixed"), BRIEF, chance["brief"])
    axes[0, 1].set_title(f"Captions, tried with brief prompts at {SMALL}")
    _bars(axes[1, 0], runs, ("base", "single size"), chance["dense"])
    axes[1, 0].set_title("Sizes, dense prompts, at the end")
    _curves(axes[1, 1], runs, ("base", "last layer"), DENSE[0], chance["dense"])
    axes[1, 1].set_title(f"Layers of the text encoder, dense prompts at {SMALL}")
    return figure


def _curves(place: Axes, runs: Sequence[Run], arms: Sequence[str], name: str, low: float) -> None:
    for arm in arms:
        steps = sorted({step for run in runs if run.arm == arm for step in run.scores})
        found = [(step, of_arm(runs, arm, name, step)) for step in steps]
        points = [(step, each) for step, each in found if each is not None]
        place.errorbar(
            [step for step, _ in points],
            [each.mean for _, each in points],
            yerr=_errors([each for _, each in points]),
            label=LABELS[arm],
            color=COLOURS[arm],
            marker="o",
            markersize=3,
            capsize=3,
        )
    _finish(place, low)
    place.set_xlabel("training step")


def _bars(place: Axes, runs: Sequence[Run], arms: Sequence[str], low: float) -> None:
    for number, arm in enumerate(arms):
        found = [of_arm(runs, arm, name) for name in DENSE]
        place.bar(
            [index + 0.36 * (number - 0.5) for index in range(len(DENSE))],
            [0.0 if each is None else each.mean for each in found],
            yerr=_errors(found),
            width=0.34,
            label=LABELS[arm],
            color=COLOURS[arm],
            capsize=3,
        )
    names = [f"{size}\n(unseen by both)" if size == TALL else str(size) for size in TRIED_SIZES]
    place.set_xticks(range(len(names)), names)
    _finish(place, low)


def _errors(estimates: Sequence[Estimate | None]) -> list[float] | None:
    """Standard errors; None where one seed alone leaves them unknown."""
    errors = [math.nan if each is None else each.error for each in estimates]
    return None if any(math.isnan(error) for error in errors) else errors


def _finish(place: Axes, low: float) -> None:
    place.axhline(low, color="#777777", linestyle=":", label="other scenes, not cleanly drawn")
    place.set_ylim(0, 1)
    place.set_ylabel("rubric")
    place.grid(axis="y", color="#dddddd")
    place.set_axisbelow(True)
    place.legend(fontsize=8, loc="best")
