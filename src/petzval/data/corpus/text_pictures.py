"""Rendered texts as files: pictures with captions and their whole truth in JSON beside them.

    texts.json              what the series was made from
    0000/000000.png         a picture
    0000/000000.json        caption, captions by length, licence, and the ground truth

A folder of pictures that `petzval data import` reads. Making it can be stopped at any moment: a
picture counts as made once its JSON is there, and that is written last.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from petzval.config import to_mapping
from petzval.data.corpus.fonts import find_fonts
from petzval.data.corpus.manifest import write_whole
from petzval.data.corpus.rendered_text import TextSample, TextSampler, TextSettings, draw_text
from petzval.data.corpus.words import BUILT_IN_WORDS
from petzval.errors import DataError

LICENCE = "CC0-1.0"
"""Of the pictures: drawn by this program from single words. Fonts leave their pictures free."""

MAX_LINE = 200
_PICTURES_PER_FOLDER = 1000
_PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)

Progress = Callable[[str, int, int], None]


def brief_caption(sample: TextSample) -> str:
    """One clause: what it says, and in which colour."""
    return f'The text "{sample.text}" in {sample.colour} letters.'


def dense_caption(sample: TextSample, box: Sequence[int]) -> str:
    """All there is to know, in words: wording, lines, letters, place, turn, blur, background."""
    style = " ".join((*sample.font.words, sample.colour))
    height = (box[3] - box[1]) / sample.resolution.height
    size = "large" if height > 0.4 else "small" if height < 0.12 else "medium-sized"
    sentences = [f'The text "{sample.text}" is written in {size} {style} letters {_place(sample)}']
    if len(sample.lines) > 1:
        sentences.append(f"It is set in {len(sample.lines)} lines, centred under one another")
    if abs(sample.rotation) >= 1:
        way = "anticlockwise" if sample.rotation > 0 else "clockwise"
        sentences.append(f"It is turned {way} by about {abs(sample.rotation):.0f} degrees")
    if sample.blur >= 0.015 * sample.size:
        strongly = "strongly" if sample.blur > 0.04 * sample.size else "slightly"
        sentences.append(f"The letters are {strongly} blurred")
    return " ".join(f"{each}." for each in (*sentences, _behind(sample)))


def _place(sample: TextSample) -> str:
    x, y = sample.centre
    return _PLACES[min(2, int(3 * y))][min(2, int(3 * x))]


def _behind(sample: TextSample) -> str:
    colours, kind = sample.background.colours, sample.background.kind
    if kind == "plain":
        return f"The background is plain {colours[0]}"
    if kind == "gradient":
        return f"The background is a gradient from {colours[0]} at the top to {colours[1]} below"
    if kind == "stripes":
        return f"Behind it are {colours[0]} and {colours[1]} stripes"
    return f"Behind it are soft clouds of {colours[0]} and {colours[1]}"


def read_strings(path: Path) -> tuple[str, ...]:
    """The lines of a text file, each one string; blank ones and repetitions are passed over.

    Raises:
        DataError: the file cannot be read, is not UTF-8, is empty, or has a very long line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8 and try again"
        ) from error
    lines = [" ".join(line.split()) for line in text.splitlines()]
    long = next((n for n, line in enumerate(lines, 1) if len(line) > MAX_LINE), None)
    if long is not None:
        raise DataError(
            f"{path}:{long}: a string of more than {MAX_LINE} letters", "break it into several"
        )
    strings = tuple(dict.fromkeys(filter(None, lines)))
    if not strings:
        raise DataError(f"{path} has no strings", "write one a line")
    return strings


def write_texts(
    folder: Path,
    count: int,
    settings: TextSettings | None = None,
    *,
    fonts: Path | None = None,
    strings: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Make the first `count` pictures of a series in `folder`; those that are there are kept.

    Args:
        folder: made where absent.
        count: pictures of the whole series, at least 1.
        settings: of the series; the defaults where None.
        fonts: a folder of more fonts.
        strings: used whole in place of the built-in words.

    Returns:
        Languages of the built-in words that no font covers; they are not in the series.

    Raises:
        DataError: the folder holds another series or cannot be written, or nothing can be set.
    """
    if count < 1:
        raise DataError(f"{count} pictures are asked for", "ask for one or more")
    settings = settings or TextSettings()
    found = find_fonts(fonts)
    words: Mapping[str, Sequence[str]] = {"": strings} if strings else BUILT_IN_WORDS
    sampler = TextSampler(settings, found, words)
    made_from = {
        "settings": to_mapping(settings),
        "fonts": [{"name": font.name, "sha256": font.sha256} for font in found],
        "words": {language: list(each) for language, each in words.items()},
    }
    try:
        _claim(folder, json.loads(json.dumps(made_from)))
        for index in range(count):
            _write_one(folder, sampler, index)
            if progress is not None:
                progress("texts", index + 1, count)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    return sampler.left_out


def _claim(folder: Path, made_from: dict[str, Any]) -> None:
    path = folder / "texts.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        try:
            same = json.loads(path.read_bytes()) == made_from
        except ValueError:
            same = False
        if not same:
            raise DataError(
                f"{folder} holds rendered texts of other settings, fonts or words",
                "name another folder, or delete this one",
            )
    elif any(each.name != f"{path.name}.draft" for each in folder.iterdir()):
        raise DataError(f"{folder} holds something else", "name a folder that is new or empty")
    else:
        write_whole(path, _as_json(made_from))


def _write_one(folder: Path, sampler: TextSampler, index: int) -> None:
    stem = f"{index // _PICTURES_PER_FOLDER:04d}/{index:06d}"
    sidecar = folder / f"{stem}.json"
    if sidecar.is_file():
        return
    sample = sampler.sample(index)
    picture, box = draw_text(sample)
    sidecar.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_whole(folder / f"{stem}.png", buffer.getvalue())
    write_whole(sidecar, _as_json(_record(sample, box)))


def _record(sample: TextSample, box: Sequence[int]) -> dict[str, Any]:
    dense = dense_caption(sample, box)
    truth = {
        field.name: getattr(sample, field.name)
        for field in dataclasses.fields(sample)
        if field.name not in {"font", "resolution", "background"}
    }
    return {
        "caption": dense,
        "captions": {"brief": brief_caption(sample), "dense": dense},
        "licence": LICENCE,
        "text": {
            **truth,
            "font": sample.font.name,
            "height": sample.resolution.height,
            "width": sample.resolution.width,
            "background": {
                "kind": sample.background.kind,
                "colours": list(sample.background.colours),
            },
            "box": list(box),
        },
    }


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
