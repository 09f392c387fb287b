"""Distil on the world whose scores are known: `python -m docs.turbo` trains, measures and draws.

The picture of docs/concepts/turbo.md: points of each label in a colour of their own, as the exact
teacher and students of each kind draw them, and how far each is from what it should be, for three
seeds. Two minutes of one core.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from petzval.distill.conditions import Velocity
from petzval.distill.known_world import (
    distilled,
    linear_guidance,
    pictures,
    pretrained,
    sliced_distance,
    true_velocity,
)
from petzval.distill.objective import DistillConfig
from petzval.distill.renoise import RenoiseConfig

PICTURE = Path(__file__).resolve().parent / "pictures" / "turbo.svg"
COLOURS, INK = ("#08519c", "#d94801", "#238b45"), "#333333"
SIDE, GAP, TOP, COLUMNS, LIMIT, SHOWN = 210, 14, 48, 4, 2.4, 80
NUM_ITERATIONS, GUIDANCE, SEEDS = 400, 2.0, (0, 1, 2)

Panel = tuple[str, Tensor, list[float]]
"""Title, points of the first seed, and the distance of each seed."""


def kinds() -> dict[str, DistillConfig]:
    """Students by what is said above their panel."""
    plain = DistillConfig(adversarial_weight=0.0, guidance=1.0)
    guided = DistillConfig(adversarial_weight=0.0, guidance=GUIDANCE)
    coupled, above = (
        DistillConfig(
            adversarial_weight=0.0, guidance=GUIDANCE, renoise=RenoiseConfig(guidance=levels)
        )
        for levels in ("coupled", "above")
    )
    alone = DistillConfig(adversarial_weight=0.0, guidance=GUIDANCE, matching=False)
    return {
        "4 steps, w = 1": plain,
        "4 steps, w = 2": guided,
        "… levels coupled": coupled,
        "… σ above the step's": above,
        "… without matching": alone,
    }


def measured() -> list[Panel]:
    """The exact teacher and every kind of student."""
    exact = pictures(true_velocity, 50)
    wanted = pictures(linear_guidance(true_velocity, GUIDANCE), 50)
    again = pictures(linear_guidance(true_velocity, GUIDANCE), 50, seed=10)
    panels: list[Panel] = [
        ("teacher, 50 steps, w = 2", wanted, [sliced_distance(again, wanted)]),
        _panel("teacher, 4 steps, w = 2", [linear_guidance(true_velocity, GUIDANCE)], wanted),
        _panel("teacher, 4 steps, w = 1", [true_velocity], exact),
    ]
    starts = [pretrained(400, seed=seed) for seed in SEEDS]
    for title, config in kinds().items():
        students: list[Velocity] = [
            distilled(start, config, NUM_ITERATIONS, seed=seed)
            for seed, start in zip(SEEDS, starts, strict=True)
        ]
        panels.append(_panel(title, students, exact if config.guidance == 1 else wanted))
        print(title, _range(panels[-1][2]), flush=True)
    return panels


def _panel(title: str, drawers: list[Velocity], target: Tensor) -> Panel:
    drawn = [pictures(each, 4) for each in drawers]
    return title, drawn[0], [sliced_distance(points, target) for points in drawn]


def _range(distances: list[float]) -> str:
    """The mean, and from where to where the seeds lie."""
    mean = sum(distances) / len(distances)
    form = ".3f" if mean < 10 else ".0f"
    spread = f" ({min(distances):{form}} to {max(distances):{form}})" if len(distances) > 1 else ""
    return f"{mean:{form}}{spread}"


def drawing(panels: list[Panel]) -> str:
    """All panels as SVG, a row of four and the rest below."""
    parts: list[str] = []
    for number, (title, points, distances) in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        left = GAP + column * (SIDE + GAP)
        top = TOP + row * (SIDE + TOP)
        parts.append(_text(left, top - 22, title))
        parts.append(_text(left, top - 7, f"distance {_range(distances)}"))
        parts.append(
            f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" '
            'fill="none" stroke="#cccccc"/>'
        )
        for label, colour in enumerate(COLOURS):
            for x, y in points[label, :SHOWN].clamp(-LIMIT, LIMIT).tolist():
                centre = (left + SIDE * (0.5 + x / 5), top + SIDE * (0.5 - y / 5))
                parts.append(
                    f'<circle cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="1.6" fill="{colour}"/>'
                )
    rows = -(-len(panels) // COLUMNS)
    size = f"0 0 {GAP + COLUMNS * (SIDE + GAP)} {rows * (SIDE + TOP) + GAP}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"])


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="13" fill="{INK}">{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawing(measured()) + "\n", encoding="utf-8")
    print(PICTURE)
