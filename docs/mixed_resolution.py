"""Draw one step of each batching mode: `python -m docs.mixed_resolution` writes the picture.

The picture of docs/concepts/mixed-resolution.md: eight ranks, each a bar of its samples, as long as
they cost; behind the shorter bars the time that their rank waits for the longest.
"""

from __future__ import annotations

from pathlib import Path

from petzval.data.balance import lens_table
from petzval.data.packing import CostModel
from petzval.data.sample_stream import GlobalStep
from petzval.data.sampler import Mode, SamplerConfig, build_sampler

PICTURE = Path(__file__).parent / "pictures" / "mixed-resolution.svg"
COLOURS = {512: "#9ecae1", 768: "#4292c6", 1024: "#08519c"}
WAITING, INK = "#e8e8e8", "#333333"
LEFT, TOP, BAR, GAP, WIDTH = 60, 56, 16, 5, 620
COST = CostModel()


def first_step(mode: Mode) -> GlobalStep:
    """The first step of a run on eight virtual ranks."""
    sampler = build_sampler(lens_table(100_000), SamplerConfig(num_virtual_ranks=8, mode=mode))
    return sampler.draw(sampler.start())[0]


def panel(step: GlobalStep, title: str, top: int) -> list[str]:
    """One step: a line of text and eight bars, the longest as long as the panel is wide."""
    costs = [sum(COST.cost(sample.num_tokens) for sample in batch) for batch in step.batches]
    scale = WIDTH / max(costs)
    ratio = max(costs) * len(costs) / sum(costs)
    label = f"{title}: the dearest rank costs {ratio:.2f} times the mean"
    parts = [_text(LEFT, top - 10, label, size=14)]
    for rank, batch in enumerate(step.batches):
        y, x = top + rank * (BAR + GAP), float(LEFT)
        parts.append(_text(LEFT - 8, y + 12, f"rank {rank}", size=11, anchor="end"))
        parts.append(_box(LEFT, y, max(costs) * scale, WAITING))
        for sample in sorted(batch, key=lambda sample: -sample.image_tokens):
            area = min(COLOURS, key=lambda base: abs((base // 16) ** 2 - sample.image_tokens))
            width = COST.cost(sample.num_tokens) * scale
            parts.append(_box(x, y, width, COLOURS[area]))
            x += width
    return parts


def drawing() -> str:
    """The whole picture as SVG."""
    steps = {"Buckets": first_step("bucket"), "Packed": first_step("packed")}
    height = 8 * (BAR + GAP)
    parts: list[str] = []
    for number, (title, step) in enumerate(steps.items()):
        parts += panel(step, title, TOP + number * (height + 56))
    key_top = TOP + 2 * (height + 56) - 30
    names = {f"{base} squared": colour for base, colour in COLOURS.items()} | {"waiting": WAITING}
    for number, (name, colour) in enumerate(names.items()):
        x = LEFT + 150 * number
        parts += [_box(x, key_top, 24, colour), _text(x + 32, key_top + 12, name, size=12)]
    size = f'viewBox="0 0 {LEFT + WIDTH + 20} {key_top + BAR + 16}"'
    says = 'role="img" aria-label="Eight ranks in each mode, as long as their samples cost"'
    font = 'font-family="Helvetica, Arial, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} {says}>'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"


def _box(x: float, y: float, width: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" '
        f'fill="{colour}" stroke="#ffffff" stroke-width="0.5"/>'
    )


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{INK}">{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
