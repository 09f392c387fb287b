"""The two pictures of a report: shares as bars, and the first pictures as they came."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petzval.errors import MissingExtraError
from petzval.evals.summary import Line
from petzval.scoring.scorer import Picture

_INK, _PALE = (40, 40, 44), (248, 248, 246)


def contact_sheet(
    pictures: Sequence[Picture], captions: Sequence[str], *, columns: int = 4, side: int = 256
) -> Picture:
    """Pictures in rows, each fitted into a square, its prompt beneath.

    Args:
        side: of the square, in pixels.
    """
    rows = -(-len(pictures) // columns)
    gap, text = 12, 44
    height, width = rows * (side + text + gap) + gap, columns * (side + gap) + gap
    sheet = Image.new("RGB", (width, height), _PALE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = gap + column * (side + gap), gap + row * (side + text + gap)
        image = Image.fromarray(picture)
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        fitted = image.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))
        for number, line in enumerate(_wrapped(draw, caption, font, side)[:2]):
            draw.text((left, top + side + 5 + 18 * number), line, _INK, font)
    return np.asarray(sheet)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def skill_bars(
    trained: Sequence[Line], held_out: Sequence[Line], real: Sequence[Line], *, title: str
) -> bytes:
    """PNG file: share right per skill, for trained and held-out concepts, with 95 % intervals.

    A tick marks chance, a hollow diamond what the scorer passes of pictures that are right.

    Args:
        trained, held_out: lines by skill; a skill that one of them lacks has no bar there.
        real: the scorer's shares on right pictures.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval") from error
    names = list(dict.fromkeys([line.name for line in [*trained, *held_out]]))
    figure: Any = Figure(figsize=(7.2, 0.55 * len(names) + 1.5), dpi=120)
    axes: Any = figure.add_subplot()
    groups = (
        ("trained concepts", trained, "#2f6db5", -0.19),
        ("held-out", held_out, "#e08a3c", 0.19),
    )
    for label, lines, colour, shift in groups:
        places = [names.index(line.name) + shift for line in lines]
        shares = [100 * line.share.mean for line in lines]
        spread = [
            [100 * (line.share.mean - line.share.low) for line in lines],
            [100 * (line.share.high - line.share.mean) for line in lines],
        ]
        axes.barh(places, shares, height=0.36, color=colour, label=label)
        axes.errorbar(
            shares, places, xerr=np.maximum(spread, 0), fmt="none", ecolor="#333333", capsize=2
        )
    for line in trained:
        place = names.index(line.name)
        axes.vlines(100 * line.chance, place - 0.42, place + 0.42, color="#b00020", lw=1.5)
    ceiling = [line for line in real if line.name in names]
    axes.plot(
        [100 * line.share.mean for line in ceiling],
        [names.index(line.name) for line in ceiling],
        "D", mfc="none", mec="#333333", label="right pictures, known style",
        clip_on=False,
    )  # fmt: skip
    axes.plot([], [], color="#b00020", label="chance")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("judged right, %")
    axes.set_title(title, fontsize=10, pad=24)
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
