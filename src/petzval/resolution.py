"""Sizes of pictures: the presets by base size and aspect ratio, and the rule for every other size.

A picture lies on a grid of 16-pixel cells: the autoencoder shrinks it eight times and two by two
latents make one token, so that a cell is a token. `Resolution` is the one type for a size, and its
fields are always height first. Strings follow the habit of cameras and screens, width first:
the aspect ratio "16:9" and the size "1376x768" are both wide pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from petzval.errors import ResolutionError

PIXELS_PER_TOKEN = 16
"""Edge of one token's square, in pixels."""

MAX_ASPECT = 2.0
"""Free sizes go from 1:2 to 2:1, the range the published checkpoints were trained on."""

MAX_TOKENS = 90 * 90
"""Free sizes have at most the area of 1440 x 1440, the largest one the paper shows."""

MAX_TOKENS_ANY_SIZE = 256 * 256
"""With `allow_any_size`: the area of 4096 x 4096. Beyond it, attention fits no machine."""

MAX_ROPE_POSITION = 4096
"""Rows of the published model's table of rotary positions; half a side must stay below."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Height and width of a picture in pixels, both positive multiples of 16.

    Raises:
        ResolutionError: a side is not a positive multiple of 16.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if not (_on_grid(self.height) and _on_grid(self.width)):
            raise _off_grid(self.height, self.width)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // PIXELS_PER_TOKEN, self.width // PIXELS_PER_TOKEN

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture of this size."""
        rows, columns = self.grid
        return rows * columns

    @property
    def aspect(self) -> float:
        """Width divided by height: above 1 for a wide picture."""
        return self.width / self.height

    @property
    def is_preset(self) -> bool:
        """Whether the size is one of `PRESETS`."""
        return any(self in family.values() for family in PRESETS.values())

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def _on_grid(side: object) -> bool:
    if not isinstance(side, int) or isinstance(side, bool):
        return False
    return side > 0 and side % PIXELS_PER_TOKEN == 0


_UPRIGHT = ((1, 2), (9, 16), (2, 3), (3, 4), (1, 1))


def _family(*upright: tuple[int, int]) -> dict[str, Resolution]:
    """Nine ratios from the (height, width) of the five that are upright or square."""
    tall = {
        f"{narrow}:{long}": Resolution(height, width)
        for (narrow, long), (height, width) in zip(_UPRIGHT, upright, strict=True)
    }
    wide = {
        f"{long}:{narrow}": Resolution(width, height)
        for (narrow, long), (height, width) in zip(_UPRIGHT, upright, strict=True)
        if long != narrow
    }
    return tall | dict(reversed(wide.items()))


PRESETS: dict[int, dict[str, Resolution]] = {
    # The launcher of the published model offers 1024 and 1440; 512 and 768 are the other two
    # training areas of Lens paper section 3. 256 is the 512 family halved.
    1440: _family((2080, 1040), (1936, 1088), (1760, 1168), (1616, 1216), (1440, 1440)),
    1024: _family((1472, 736), (1376, 768), (1248, 832), (1152, 864), (1024, 1024)),
    768: _family((1088, 544), (1024, 576), (960, 640), (896, 672), (768, 768)),
    512: _family((704, 352), (672, 384), (640, 416), (608, 448), (512, 512)),
    256: _family((352, 176), (336, 192), (320, 208), (304, 224), (256, 256)),
    # With so few cells no size has both the right ratio and the right area; these nine are
    # different from each other and have the least |log| error of the two together.
    128: _family((192, 96), (176, 96), (160, 112), (144, 112), (128, 128)),
}
"""Base size -> aspect ratio "width:height" -> size. All have about the area of base x base."""


def resolve(
    *,
    aspect: str | None = None,
    size: str | None = None,
    height: int | None = None,
    width: int | None = None,
    base: int = 1024,
    allow_any_size: bool = False,
) -> Resolution:
    """The size that was asked for, in one of three ways; without any, the square of `base`.

    Args:
        aspect: a ratio of the presets, "width:height", such as "16:9".
        size: "WIDTHxHEIGHT" in pixels, such as "1376x768".
        height: in pixels, together with `width`.
        width: in pixels, together with `height`.
        base: the family of presets that `aspect` is looked up in.
        allow_any_size: accept every size on the grid that the rotary positions can hold,
            also beyond 1:2, 2:1 and the area of 1440 x 1440.

    Raises:
        ResolutionError: ways are mixed, a name is unknown, or the size is not legal.
    """
    if base not in PRESETS:
        known = ", ".join(str(each) for each in sorted(PRESETS))
        raise ResolutionError(f"unknown base size {base!r}", f"base sizes are {known}")
    given = [aspect is not None, size is not None, height is not None or width is not None]
    if sum(given) > 1:
        raise ResolutionError(
            "the size is given in more than one way",
            "give an aspect ratio, or a size, or height and width",
        )
    if size is not None:
        height, width = _parse_size(size)
    if height is None and width is None:
        return _preset("1:1" if aspect is None else aspect, base)
    if height is None or width is None:
        missing = "height" if height is None else "width"
        raise ResolutionError(f"{missing} is missing", "height and width are given together")
    return checked(height, width, allow_any_size=allow_any_size)


def checked(height: int, width: int, *, allow_any_size: bool = False) -> Resolution:
    """The size, if it is legal; the presets always are.

    Raises:
        ResolutionError: the size is not legal; the hint offers the nearest ones that are.
    """
    resolution = Resolution(height, width)
    tokens, longest = resolution.num_tokens, max(resolution.grid)
    if allow_any_size:
        if tokens > MAX_TOKENS_ANY_SIZE or longest // 2 >= MAX_ROPE_POSITION:
            raise ResolutionError(
                f"{resolution} is more than any model here can hold",
                f"even for any size the limits are {MAX_TOKENS_ANY_SIZE:,} tokens of 16x16 pixels"
                f" and sides below {2 * MAX_ROPE_POSITION * PIXELS_PER_TOKEN:,}",
            )
        return resolution
    if resolution.is_preset:
        return resolution
    if not 1 / MAX_ASPECT <= resolution.aspect <= MAX_ASPECT:
        raise ResolutionError(
            f"{resolution} has one side more than twice the other", _offer(resolution)
        )
    if tokens > MAX_TOKENS:
        raise ResolutionError(
            f"{resolution} has {tokens:,} tokens, more than the {MAX_TOKENS:,} of 1440x1440",
            _offer(resolution),
        )
    return resolution


def nearest_sizes(height: int, width: int, count: int = 2) -> list[Resolution]:
    """The legal free sizes next to a size that may be off the grid or too large.

    Nearness is the squared |log| error of height, width and their ratio, so that a picture twice
    as tall is as far away as one half as tall.
    """

    def distance(size: Resolution) -> float:
        taller = math.log(size.height / height)
        wider = math.log(size.width / width)
        return taller**2 + wider**2 + (wider - taller) ** 2

    return sorted(_legal_sizes(), key=distance)[:count]


def nearest_in_aspect(height: float, width: float, sizes: Iterable[Resolution]) -> Resolution:
    """The size whose aspect ratio is nearest, by its logarithm; the first of several.

    Args:
        height, width: of a picture, positive.
        sizes: to choose from, at least one.
    """
    # Rounded, so that a ratio and its inverse are equally far from 1 in floating point too.
    return min(sizes, key=lambda size: round(abs(math.log(width / height / size.aspect)), 12))


def _legal_sizes() -> Iterator[Resolution]:
    longest = math.isqrt(int(MAX_TOKENS * MAX_ASPECT))
    for rows in range(1, longest + 1):
        first, last = math.ceil(rows / MAX_ASPECT), int(rows * MAX_ASPECT)
        for columns in range(first, min(last, MAX_TOKENS // rows) + 1):
            yield Resolution(rows * PIXELS_PER_TOKEN, columns * PIXELS_PER_TOKEN)


def _preset(aspect: str, base: int) -> Resolution:
    family = PRESETS[base]
    name = str(aspect).strip().replace("/", ":")
    if name not in family:
        raise ResolutionError(
            f"unknown aspect ratio {aspect!r}",
            f"ratios are {', '.join(family)} (width:height); or give a size such as 1024x768",
        )
    return family[name]


def _parse_size(size: str) -> tuple[int, int]:
    """Height and width of "WIDTHxHEIGHT"."""
    match = re.fullmatch(r"\s*(-?\d{1,9})\s*[xX×*]\s*(-?\d{1,9})\s*", str(size), re.ASCII)
    if match is None:
        raise ResolutionError(
            f"cannot read the size {str(size)[:40]!r}",
            "a size is WIDTHxHEIGHT in pixels, such as 1376x768",
        )
    width, height = int(match[1]), int(match[2])
    return height, width


def _off_grid(height: object, width: object) -> ResolutionError:
    """The error for sides that are not positive multiples of 16, whatever they are."""
    sides = (height, width)
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        return ResolutionError(
            f"height {height!r} and width {width!r} are not both whole numbers of pixels",
            "sides are multiples of 16, such as height 768 and width 1376",
        )
    assert isinstance(height, int) and isinstance(width, int)
    if height <= 0 or width <= 0:
        return ResolutionError(
            f"{width}x{height} has a side that is not positive",
            "sides are multiples of 16, such as 1376x768",
        )
    return ResolutionError(f"{width}x{height} is not on the 16-pixel grid", _near(height, width))


def _offer(resolution: Resolution) -> str:
    """Sizes next to one that lies on the grid, and the way to have it all the same."""
    return (
        f"{_near(resolution.height, resolution.width)}; "
        "--allow-any-size (allow_any_size=True) takes every size on the grid that models can hold"
    )


def _near(height: int, width: int) -> str:
    sizes = " and ".join(str(size) for size in nearest_sizes(height, width))
    return f"nearest sizes are {sizes} (width x height)"
