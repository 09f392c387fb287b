"""Strings on backgrounds, the paper's fourth group: a pure function of (seed, index).

Lens paper section 1 names the variations: colour, font, scale, rotation and blur on random
backgrounds; it gives no figures. Ours are in `TextSettings`, and every picture's own are in its
ground truth. Colours are drawn until they differ enough to be read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from petzval.config import check_ranges, setting
from petzval.data.corpus.fonts import Font, covering
from petzval.data.corpus.words import UNSPACED
from petzval.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, RGB
from petzval.errors import DataError
from petzval.resolution import PRESETS, Resolution

BACKGROUND_KINDS = ("plain", "gradient", "clouds", "stripes")
MIN_CONTRAST = 2.5
"""Least ratio of luminances, as web pages measure it: (lighter + 0.05) / (darker + 0.05)."""

MIN_SIZE = 8
"""Height of the smallest letters, in pixels."""

_VISIBLE = 48
"""Of 255: where a letter's blurred edge counts as part of it, for its box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """What the series of pictures is like.

    Attributes:
        seed: names the series.
        base: edge of the square whose area all pictures have; nine aspect ratios are drawn from.
        max_words: of one string; a line of a text file is used whole.
        max_rotation: in degrees, either way; two pictures in five are turned.
        max_blur: standard deviation, as a share of the letters' height; one in three is blurred.
        scale: least and greatest height of letters, as a share of the shorter side; long strings
            get smaller than drawn, until they fit.
    """

    seed: int = setting(0, minimum=0)
    base: int = 512
    max_words: int = setting(6, minimum=1, maximum=40)
    max_rotation: float = setting(35.0, minimum=0, maximum=180)
    max_blur: float = setting(0.06, minimum=0, maximum=0.5)
    scale: tuple[float, float] = setting((0.07, 0.3), minimum=0.02, maximum=0.9)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.base not in PRESETS:
            known = ", ".join(str(base) for base in sorted(PRESETS))
            raise DataError(f"unknown base size {self.base}", f"base sizes are {known}")
        if self.scale[0] > self.scale[1]:
            raise DataError(f"the scale goes from {self.scale[0]} to {self.scale[1]}", "swap them")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBackground:
    """What lies behind the letters: one of `BACKGROUND_KINDS` in one or two named colours."""

    kind: str
    colours: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSample:
    """The ground truth of one picture, but for the box, which drawing measures.

    Attributes:
        text: the string, in lines as they are set, joined by single spaces (or by nothing).
        lines: the same, line by line.
        language: code of the built-in words, "" for a user's strings.
        colour: name of the letters' colour; `rgb` is the very colour.
        size: height of the letters in pixels.
        rotation: in degrees, anticlockwise.
        blur: standard deviation in pixels.
        centre: of the text, (x, y) as shares of the width and the height.
    """

    seed: int
    index: int
    resolution: Resolution
    text: str
    lines: tuple[str, ...]
    language: str
    font: Font
    size: int
    colour: str
    rgb: RGB
    rotation: float
    blur: float
    centre: tuple[float, float]
    background: TextBackground


class TextSampler:
    """Draws ground truths. Every language is as likely as the others.

    Args:
        settings: of the series.
        fonts: from `find_fonts`.
        words: language -> words; or "" -> strings that are used whole. Languages that no font
            covers are left out, and named in `left_out`.

    Raises:
        DataError: nothing is left.
    """

    def __init__(
        self,
        settings: TextSettings,
        fonts: Sequence[Font],
        words: Mapping[str, Sequence[str]],
    ) -> None:
        self.settings = settings
        self._words: dict[str, tuple[str, ...]] = {}
        self._fonts: dict[str, tuple[Font, ...]] = {}
        for language, vocabulary in sorted(words.items()):
            clean = tuple(filter(None, (_normal(word) for word in vocabulary)))
            suited = tuple(fonts) if not language else covering(fonts, clean)
            if clean and suited:
                self._words[language], self._fonts[language] = clean, suited
        self.left_out = tuple(sorted(set(words) - set(self._words)))
        if not self._words:
            raise DataError(
                "no font covers any of the words", "name a folder of fonts with --fonts"
            )

    def sample(self, index: int) -> TextSample:
        """Ground truth number `index` of the series: the same arguments, the same picture.

        Raises:
            DataError: no font covers a string of a user's list, or it fits at no size.
        """
        settings = self.settings
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((settings.seed, index))))
        language = list(self._words)[int(rng.integers(len(self._words)))]
        words, fonts = self._string(rng, language)
        font = fonts[int(rng.integers(len(fonts)))]
        words = _recased(words, font, rng)
        sizes = list(PRESETS[settings.base].values())
        resolution = sizes[int(rng.integers(len(sizes)))]
        rotation = 0.0
        if rng.random() < 0.4:
            rotation = round(float(rng.uniform(-1, 1)) * settings.max_rotation, 1)
        wanted = np.exp(rng.uniform(*np.log(settings.scale)))
        size = max(MIN_SIZE, round(float(wanted) * min(resolution.height, resolution.width)))
        joint = "" if language in UNSPACED else " "
        fitted = _fitted(words, joint, font, size, rotation, resolution)
        if fitted is None:
            rotation, fitted = 0.0, _fitted(words, joint, font, size, 0.0, resolution)
        if fitted is None:
            raise DataError(
                f"{joint.join(words)[:40]!r} does not fit into {resolution}",
                "shorten the string, or take a larger base size",
            )
        size, lines = fitted
        blurred = rng.random() < 1 / 3
        blur = round(float(rng.uniform(0, settings.max_blur)) * size, 2) if blurred else 0.0
        colour, background = _colours(rng)
        return TextSample(
            seed=settings.seed,
            index=index,
            resolution=resolution,
            text=joint.join(lines),
            lines=lines,
            language=language,
            font=font,
            size=size,
            colour=colour,
            rgb=OBJECT_COLOURS[colour],
            rotation=rotation,
            blur=blur,
            centre=_centre(rng, lines, font, size, rotation, resolution),
            background=background,
        )

    def _string(
        self, rng: np.random.Generator, language: str
    ) -> tuple[list[str], tuple[Font, ...]]:
        vocabulary = self._words[language]
        if language:
            count = int(rng.integers(1, self.settings.max_words + 1))
            chosen = [vocabulary[int(i)] for i in rng.integers(len(vocabulary), size=count)]
            return chosen, self._fonts[language]
        string = vocabulary[int(rng.integers(len(vocabulary)))]
        fonts = covering(self._fonts[language], [string])
        if not fonts:
            raise DataError(
                f"no font covers {string[:40]!r}",
                "take it out of the list, or name a folder of fonts with --fonts; scripts whose"
                " letters join or run from right to left cannot be set",
            )
        return string.split(" "), fonts


def draw_text(sample: TextSample) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The picture, RGB, and the box (left, top, right, bottom) of its letters in pixels."""
    height, width = sample.resolution.height, sample.resolution.width
    letters = _letters(sample.lines, sample.font, sample.size, sample.rotation)
    mask = Image.new("L", (width, height))
    x, y = sample.centre
    left, top = round(x * width - letters.width / 2), round(y * height - letters.height / 2)
    mask.paste(letters, (left, top))
    if sample.blur:
        mask = mask.filter(ImageFilter.GaussianBlur(sample.blur))
    picture = Image.fromarray(_background(sample))
    picture.paste(sample.rgb, (0, 0), mask)
    box = Image.fromarray(np.asarray(mask) >= _VISIBLE).getbbox()
    assert box is not None, sample
    return picture, box


# ── layout ───────────────────────────────────────────────────────────────────────────────────────


def _normal(word: str) -> str:
    return " ".join(unicodedata.normalize("NFC", word).split())


def _recased(words: Sequence[str], font: Font, rng: np.random.Generator) -> list[str]:
    """In capitals, with capital initials, or as they are; whichever the font can show."""
    way = int(rng.integers(3))
    if way == 0:
        changed = [word.upper() for word in words]
    elif way == 1:
        changed = [word[:1].upper() + word[1:] for word in words]
    else:
        return list(words)
    return changed if font.covers("".join(changed)) else list(words)


def _fitted(
    words: Sequence[str], joint: str, font: Font, size: int, rotation: float, room: Resolution
) -> tuple[int, tuple[str, ...]] | None:
    """The largest size up to `size` at which the text fits, and the words in lines."""
    while size >= MIN_SIZE:
        lines = _wrapped(words, joint, font, size, 0.9 * room.width)
        letters = _letters(lines, font, size, rotation)
        if letters.width <= 0.94 * room.width and letters.height <= 0.94 * room.height:
            return size, lines
        size = int(size * 0.9)
    return None


def _wrapped(
    words: Sequence[str], joint: str, font: Font, size: int, width: float
) -> tuple[str, ...]:
    face = font.at(size)
    lines = [words[0]]
    for word in words[1:]:
        longer = lines[-1] + joint + word
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return tuple(lines)


def _letters(lines: Sequence[str], font: Font, size: int, rotation: float) -> Image.Image:
    """A mask that just holds the letters, turned."""
    face = font.at(size)
    text = "\n".join(lines)
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    spacing = size // 4
    left, top, right, bottom = ruler.multiline_textbbox(
        (0, 0), text, font=face, spacing=spacing, align="center"
    )
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).multiline_text(
        (2 - left, 2 - top), text, fill=255, font=face, spacing=spacing, align="center"
    )
    return mask.rotate(rotation, Image.Resampling.BICUBIC, expand=True) if rotation else mask


def _centre(
    rng: np.random.Generator,
    lines: Sequence[str],
    font: Font,
    size: int,
    rotation: float,
    room: Resolution,
) -> tuple[float, float]:
    """Anywhere that keeps all letters in the picture."""
    letters = _letters(lines, font, size, rotation)
    free = (room.width - letters.width) / room.width, (room.height - letters.height) / room.height
    x, y = (0.5 + float(rng.uniform(-0.5, 0.5)) * max(0.0, 0.94 * share) for share in free)
    return round(x, 4), round(y, 4)


# ── colours ──────────────────────────────────────────────────────────────────────────────────────


def _luminance(colour: RGB) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (IEC 61966-2-1)."""
    share = np.asarray(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(first: RGB, second: RGB) -> float:
    """Ratio of two colours' luminances, 1 to 21."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _colours(rng: np.random.Generator) -> tuple[str, TextBackground]:
    colour = list(OBJECT_COLOURS)[int(rng.integers(len(OBJECT_COLOURS)))]
    rgb = OBJECT_COLOURS[colour]
    far = [
        each for each, value in BACKGROUND_COLOURS.items() if contrast(rgb, value) >= MIN_CONTRAST
    ]
    # All lighter than the letters or all darker: a mixture on the way from one to the other side
    # would be as light as they are.
    lighter = [each for each in far if _luminance(BACKGROUND_COLOURS[each]) > _luminance(rgb)]
    darker = [each for each in far if each not in lighter]
    sides = [side for side in (lighter, darker) if side]
    readable = sides[int(rng.integers(len(sides)))]
    kind = BACKGROUND_KINDS[int(rng.integers(len(BACKGROUND_KINDS)))]
    count = 1 if kind == "plain" or len(readable) < 2 else 2
    chosen = tuple(readable[int(i)] for i in rng.permutation(len(readable))[:count])
    return colour, TextBackground(kind=kind if count == 2 else "plain", colours=chosen)


def _background(sample: TextSample) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]; two colours are mixed by a map that the kind decides."""
    height, width = sample.resolution.height, sample.resolution.width
    first, *others = (BACKGROUND_COLOURS[name] for name in sample.background.colours)
    if not others:
        return np.full((height, width, 3), first, np.uint8)
    key = np.random.SeedSequence((sample.seed, sample.index, 1))
    rng = np.random.Generator(np.random.Philox(key))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    if sample.background.kind == "gradient":
        share = rows / max(1, height - 1)
    elif sample.background.kind == "stripes":
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.2) * min(height, width)
        along = np.cos(angle) * columns + np.sin(angle) * rows
        share = np.clip(0.5 + 1.5 * np.sin(2 * np.pi * along / period) * period / 8, 0, 1)
    else:
        noise = Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8))
        smooth = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        share = (smooth - smooth.min()) / max(1.0, float(np.ptp(smooth)))
    mixed = np.asarray(first) + share[..., None] * np.subtract(others[0], first)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
