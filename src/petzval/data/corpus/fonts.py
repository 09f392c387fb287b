"""Fonts to render text with: Pillow's own, matplotlib's DejaVu family, a folder's files."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from petzval.errors import DataError

SUFFIXES = (".ttf", ".otf")
_PROBE_SIZE = 24
_NO_CHARACTER = "\U0010ffff"
"""A code point that Unicode promises never to use: a font shows its sign for "missing"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Font:
    """A font file, or the font inside Pillow where `path` is None.

    Attributes:
        name: family and style as the file says.
        sha256: of the file's bytes; "" for Pillow's own.
    """

    name: str
    path: Path | None
    sha256: str

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at a size in pixels; letters are laid out one by one, without shaping."""
        if self.path is None:
            return _pillows_own(size)
        basic = ImageFont.Layout.BASIC
        return ImageFont.truetype(str(self.path), size, layout_engine=basic)

    def covers(self, text: str) -> bool:
        """Whether every letter has a picture of its own and can be set by itself.

        A letter that the font lacks is drawn as its sign for "missing", so the two are compared;
        marks that combine and letters that run from right to left are never covered.
        """
        return all(
            letter == " " or (_stands_alone(letter) and _has_glyph(self, letter))
            for letter in unicodedata.normalize("NFC", text)
        )

    @property
    def words(self) -> tuple[str, ...]:
        """What its name tells of its look: "bold", "italic", "monospaced", "serif"."""
        name = self.name.lower()
        seen = {
            "bold": "bold" in name,
            "italic": "italic" in name or "oblique" in name,
            "monospaced": "mono" in name,
            "serif": "serif" in name and "sans" not in name,
        }
        return tuple(word for word, holds in seen.items() if holds)


def find_fonts(folder: Path | None = None) -> tuple[Font, ...]:
    """Pillow's font, matplotlib's DejaVu fonts where it is installed, and those of a folder.

    Args:
        folder: searched with its subfolders for .ttf and .otf files, in the order of their paths.

    Raises:
        DataError: the folder has no fonts, or a file in it is not a font.
    """
    own = Font(
        name=" ".join(filter(None, _pillows_own(_PROBE_SIZE).getname())), path=None, sha256=""
    )
    found = [own, *(_open(path) for path in _dejavu())]
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataError(
                f"{folder} has no fonts", f"name a folder with {' or '.join(SUFFIXES)} files"
            )
        found += [_open(path) for path in paths]
    return tuple(found)


def covering(fonts: Sequence[Font], words: Sequence[str]) -> tuple[Font, ...]:
    """The fonts that cover all of these words, in their order."""
    letters = "".join(sorted(set("".join(words))))
    return tuple(font for font in fonts if font.covers(letters))


def _pillows_own(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow that was built without FreeType
        raise DataError("this Pillow cannot draw outline fonts", "pip install --force pillow")
    basic = ImageFont.Layout.BASIC
    return ImageFont.FreeTypeFont(io.BytesIO(font.font_bytes), size, layout_engine=basic)


def _dejavu() -> list[Path]:
    # Found without importing matplotlib, which takes a second and writes a cache of fonts.
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return sorted(p for p in folder.glob("DejaVu*.ttf") if "Display" not in p.name)


def _open(path: Path) -> Font:
    try:
        data = path.read_bytes()
        names = ImageFont.truetype(str(path), _PROBE_SIZE).getname()
    except OSError as error:
        raise DataError(
            f"{path} is not a font that can be read", "remove it, or mend it"
        ) from error
    name = " ".join(part for part in names if part and part not in {"Book", "Regular"})
    return Font(name=name or path.stem, path=path, sha256=hashlib.sha256(data).hexdigest())


def _stands_alone(letter: str) -> bool:
    runs_leftwards = unicodedata.bidirectional(letter) in {"R", "AL", "AN"}
    return not runs_leftwards and unicodedata.category(letter)[0] in "LNPS"


@lru_cache(maxsize=1 << 16)
def _has_glyph(font: Font, letter: str) -> bool:
    drawn = _drawn(font, letter)
    return any(drawn) and drawn != _drawn(font, _NO_CHARACTER)


@lru_cache(maxsize=1 << 16)
def _drawn(font: Font, letter: str) -> bytes:
    canvas = Image.new("L", (3 * _PROBE_SIZE, 2 * _PROBE_SIZE))
    ImageDraw.Draw(canvas).text((_PROBE_SIZE, 4), letter, 255, font.at(_PROBE_SIZE))
    return canvas.tobytes()
