"""The command line from a cold process, as a person meets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.case import Case, Prepared

PROGRAM = Path(sys.executable).with_name("petzval")


def _run(*arguments: str, timeout: float = 120, **environment: str) -> None:
    subprocess.run(
        [str(PROGRAM), *arguments],
        check=True,
        capture_output=True,
        timeout=timeout,
        env=os.environ | environment,
    )


def _help() -> Prepared:
    return Prepared(ways={"petzval --help": lambda: _run("--help")}, dtype="none")


def _generate() -> Prepared:
    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    prompt = "a red apple on a light blue background"
    picture = folder / "picture.png"

    def cold() -> None:
        picture.unlink(missing_ok=True)
        _run("generate", prompt, "--seed", "0", "--out", str(picture))

    return Prepared(ways={"petzval generate": cold}, dtype="float32")


def _writing() -> Prepared:
    """Six pictures, each written before the next is drawn, and beside it."""
    import petzval
    from petzval.cli.writer import PictureWriter
    from petzval.inference.request import GeneratedImage

    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    pipeline = petzval.load()

    def save(image: GeneratedImage) -> Path:
        return image.save(folder / f"{image.index}.png")

    def drawn(put: Callable[[GeneratedImage], object]) -> None:
        for event in pipeline.steps("a red apple", size="512x512", num_images=6, seed=0):
            for image in event.images:
                put(image)

    def beside() -> None:
        with PictureWriter(save, lambda image, path: None) as writer:
            drawn(writer.put)

    return Prepared(
        ways={"before the next is drawn": lambda: drawn(save), "beside the next": beside},
        dtype="float32",
        facts={"device": str(pipeline.device)},
    )


def _heap() -> Prepared:
    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    words = ("generate", "a red apple", "--size", "512x512", "--num", "8", "--out", str(folder))

    def draw(switch: str) -> None:
        for picture in folder.iterdir():
            picture.unlink()
        _run(*words, PETZVAL_HEAP=switch)

    return Prepared(
        ways={"given back": lambda: draw("0"), "kept": lambda: draw("1")}, dtype="float32"
    )


def _compiled() -> Prepared:
    """A start with nothing kept leaves what the next one reads, so the order is the ways'."""
    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    cache = folder / "compiled"
    words = ("a red apple", "--seed", "0", "--compile", "--out", str(folder / "picture.png"))

    def start() -> None:
        (folder / "picture.png").unlink(missing_ok=True)
        _run("generate", *words, timeout=900, PETZVAL_COMPILE_CACHE=str(cache))

    def first() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        start()

    return Prepared(ways={"nothing kept": first, "second start": start}, dtype="float32")


CASES = (
    Case(
        name="help",
        title="`petzval --help`, process start included",
        why="a command line that hesitates is not used",
        prepare=_help,
        rounds=15,
        max_seconds=0.15,
    ),
    Case(
        name="cold-generate",
        title="`petzval generate` at its defaults (mini-turbo), process start included",
        why="the time from pressing return to the first picture",
        prepare=_generate,
        rounds=5,
        max_seconds=5.0,
    ),
    Case(
        name="overlapped-writing",
        title="six pictures of 512 x 512 drawn and written as PNG, mini-turbo",
        why="packing a picture takes a core, and a fast card need not wait for it",
        prepare=_writing,
        rounds=5,
    ),
    Case(
        name="kept-heap",
        title="`petzval generate`, eight pictures of 512 x 512, process start included",
        why="memory that layers free serves the next ones, and its pages are not cleared anew",
        prepare=_heap,
        rounds=5,
        min_ratio=1.0,
    ),
    Case(
        name="compiled-start",
        title="`petzval generate --compile` from a cold process, with and without what is kept",
        why="compiling is paid once for a size, not at every start",
        prepare=_compiled,
        rounds=1,
        min_ratio=1.5,
    ),
)
