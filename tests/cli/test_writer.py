"""Pictures are written beside the drawing: in order, none lost, the first error heard."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from petzval.cli.writer import PictureWriter
from petzval.errors import RequestError
from tests.support import PATIENCE

PICTURES: list[Any] = ["first", "second", "third", "fourth", "fifth"]


def test_drawing_goes_on_while_a_picture_is_written_and_they_come_in_order() -> None:
    may_write, told = threading.Event(), list[str]()
    threads = set[str]()

    def write(image: Any) -> Path:
        assert may_write.wait(PATIENCE)
        threads.add(threading.current_thread().name)
        return Path(image)

    with PictureWriter(write, lambda image, path: told.append(cast("str", image))) as writer:
        writer.put(PICTURES[0])
        writer.put(PICTURES[1])
        writer.look()
        assert told == []  # nothing is on the disk, and nobody waited for it
        may_write.set()
        for picture in PICTURES[2:]:
            writer.put(picture)
        assert len(told) >= 3  # no more than two wait
    assert told == PICTURES
    assert all(name.startswith("petzval-write") for name in threads)


def test_the_first_error_is_heard_and_what_was_written_is_told() -> None:
    told = list[Any]()

    def write(image: Any) -> Path:
        if image in ("third", "fifth"):
            raise RequestError(f"no room for the {image}")
        return Path(image)

    def draw(pictures: list[Any]) -> None:
        with PictureWriter(write, lambda image, path: told.append(image)) as writer:
            for picture in pictures:
                writer.put(picture)

    with pytest.raises(RequestError, match="no room for the third"):
        draw(PICTURES)
    assert told[:2] == PICTURES[:2]
    assert "third" not in told
    told.clear()
    with pytest.raises(RequestError, match="no room for the third"):
        draw(PICTURES[:3])  # at the end
    assert told == PICTURES[:2]


def test_what_is_under_way_is_written_when_drawing_is_interrupted() -> None:
    told = list[Any]()

    def draw() -> None:
        with PictureWriter(Path, lambda image, path: told.append(image)) as writer:  # pyright: ignore[reportArgumentType]
            writer.put(PICTURES[0])
            writer.put(PICTURES[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert told == PICTURES[:2]
