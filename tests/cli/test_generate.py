from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import petzval
from petzval.errors import NumericsError
from petzval.inference.image import read_recipe
from petzval.inference.pipeline import Pipeline
from tests.cli.conftest import Run

SMALL = ("--size", "64x48", "--steps", "2", "--guidance", "1")


@pytest.fixture
def model(golden_checkpoint: Path) -> tuple[str, ...]:
    """Options for the smallest pictures there are."""
    return ("--model", str(golden_checkpoint), "--device", "cpu", *SMALL)


def test_command_python_and_from_make_the_same_bytes(
    run: Run, model: tuple[str, ...], golden_checkpoint: Path
) -> None:
    code, out, _ = run("generate", "a red fox", *model, "--seed", "7", "--num", "2", "--out", "a")
    assert code == 0
    first, second = (Path(line) for line in out.splitlines())
    assert (first.name, second.name) == ("a-red-fox-7.png", "a-red-fox-8.png")

    pipeline = petzval.load(golden_checkpoint, device="cpu")
    [image] = pipeline.generate("a red fox", seed=8, size="64x48", steps=2, guidance=1.0)
    assert image.encode() == second.read_bytes()

    code, out, err = run(
        "generate", "--from", second, "--model", golden_checkpoint, "--device", "cpu",
        "--out", "again.png",
    )  # fmt: skip
    assert (code, out, err) == (0, "again.png\n", "")
    assert Path("again.png").read_bytes() == second.read_bytes()


def test_prompts_come_from_a_file_or_stdin(
    run: Run, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\ufeffa red fox\n\n  一只猫  \r\n"
    Path("prompts.txt").write_bytes(lines.encode())
    code, out, _ = run("generate", "--file", "prompts.txt", *model, "--out", "file")
    assert code == 0
    assert [Path(line).name for line in out.splitlines()] == ["a-red-fox-0.png", "一只猫-0.png"]

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    code, out, _ = run("generate", "-", *model, "--out", "stdin", "--format", "webp")
    assert code == 0
    prompts = [read_recipe(line).prompt for line in out.splitlines()]
    assert prompts == ["a red fox", "一只猫"]


def test_json_tells_file_recipe_and_seconds(run: Run, model: tuple[str, ...]) -> None:
    code, out, err = run("generate", "a red fox", *model, "--json", "--out", "fox.jpg")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["file"] == "fox.jpg"
    assert document["recipe"] == json.loads(read_recipe("fox.jpg").to_json())
    assert set(document["seconds"]) == {"encode", "denoise", "decode"}


def test_a_picture_can_go_to_stdout(
    model: tuple[str, ...], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from petzval.cli.main import main

    assert main(["generate", "a red fox", *model, "--out", "-", "--format", "png"]) == 0
    with Image.open(io.BytesIO(capfdbinary.readouterr().out)) as picture:
        assert picture.size == (64, 48)
    assert os.listdir(tmp_path) == []


def test_names_never_overwrite_in_a_folder_but_a_named_file_is_replaced(
    run: Run, model: tuple[str, ...]
) -> None:
    names = [run("generate", "a fox", *model)[1].strip() for _ in range(2)]
    assert names == ["a-fox-0.png", "a-fox-0-2.png"]
    for seed in ("1", "2"):
        run("generate", "a fox", *model, "--out", "fox.png", "--seed", seed)
    assert read_recipe("fox.png").seed == 2
    code, out, _ = run("generate", "a fox", *model, "--out", "fox.png", "--num", "2")
    assert (code, out.split()) == (0, ["fox-1.png", "fox-2.png"])


@pytest.mark.parametrize("prompt", ["🦊", "../../etc/passwd", "a" * 5000, "con\x00trol", "ثعلب"])
def test_a_prompt_never_makes_a_dangerous_name(
    run: Run, model: tuple[str, ...], tmp_path: Path, prompt: str
) -> None:
    code, out, _ = run("generate", prompt, *model)
    assert code == 0
    assert [Path(out.strip()).name] == os.listdir(tmp_path)


def test_options_on_top_of_a_recipe_replace_its_own(
    run: Run, model: tuple[str, ...], golden_checkpoint: Path
) -> None:
    run("generate", "a red fox", *model, "--out", "fox.png")
    again = ("--from", "fox.png", "--model", golden_checkpoint, "--device", "cpu")
    code, *_ = run("generate", *again, "--seed", "9", "--steps", "3", "--out", "nine.png")
    assert code == 0
    was, now = read_recipe("fox.png"), read_recipe("nine.png")
    assert (now.seed, now.steps, now.prompt, now.width) == (9, 3, "a red fox", 64)
    assert now.mu != was.mu
    code, *_ = run("generate", "a cat", *again, "--size", "48x48", "--out", "cat.png")
    assert code == 0
    assert (read_recipe("cat.png").prompt, read_recipe("cat.png").height) == ("a cat", 48)


def test_other_weights_refuse_a_recipe_unless_they_are_named(
    run: Run, model: tuple[str, ...], golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate", "a red fox", *model, "--out", "fox.png")
    code, _, err = run("generate", "--from", "fox.png")
    assert code == 2  # the recipe's model is the name of a folder, and no variant is called so
    assert "made with 'checkpoint'" in err and "--model" in err

    changed = Pipeline.load(golden_checkpoint, device="cpu")
    changed.identity = "f" * 64

    def load(*_: object, **__: object) -> Pipeline:
        return changed

    monkeypatch.setattr(Pipeline, "load", load)
    code, _, err = run("generate", "--from", "fox.png", "--model", golden_checkpoint, "--out", "x")
    assert code == 0
    assert "expect another picture" in err

    (Path("models") / "lens").parent.mkdir()
    os.symlink(golden_checkpoint, Path("models") / "lens")
    monkeypatch.setenv("PETZVAL_MODELS", "models")
    recipe = read_recipe("fox.png")
    monkeypatch.setattr(
        "petzval.inference.image.read_recipe", lambda _: _replace(recipe, model="lens")
    )
    code, out, err = run("generate", "--from", "fox.png", "--device", "cpu", "--out", "y.png")
    assert (code, out) == (2, "")
    assert "was made with lens" in err and "--model lens" in err
    assert not Path("y.png").exists()


def test_a_seed_given_on_top_of_a_recipe_is_that_seeds_first_picture(
    run: Run, model: tuple[str, ...]
) -> None:
    original = ("a red fox", *model, "--parity", "microsoft")
    run("generate", *original, "--num", "2", "--out", "batch.png")
    run("generate", *original, "--seed", "4", "--out", "four.png")
    assert read_recipe("batch-2.png").noise_row == 1
    again = ("--from", "batch-2.png", *model[:4])
    run("generate", *again, "--seed", "4", "--out", "again.png")
    assert Path("again.png").read_bytes() == Path("four.png").read_bytes()
    run("generate", *again, "--num", "2", "--out", "on.png")
    assert [read_recipe(f"on-{n}.png").noise_row for n in (1, 2)] == [1, 2]
    assert Path("on-1.png").read_bytes() == Path("batch-2.png").read_bytes()


@pytest.fixture
def threads() -> Iterator[None]:
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.usefixtures("threads")
def test_a_picture_is_drawn_again_on_its_own_number_of_threads(
    run: Run, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    run("generate", "a red fox", *model, "--threads", "2", "--out", "fox.png")
    assert read_recipe("fox.png").threads == 2
    again = ("--from", "fox.png", *model[:4], "--out", "again.png")
    torch.set_num_threads(1)
    assert run("generate", *again) == (0, "again.png\n", "")
    assert Path("again.png").read_bytes() == Path("fox.png").read_bytes()
    code, _, err = run("generate", *again, "--threads", "1")
    assert code == 0
    assert "made on 2 threads, drawn on 1" in err and err.startswith("warning: ")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    code, _, err = run("generate", *again)
    assert (code, torch.get_num_threads()) == (0, 1)
    assert "made on 2 threads, drawn on 1" in err


def test_words_of_a_recipe_reach_the_terminal_short_and_harmless(
    run: Run, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate", "a red fox", *model, "--out", "fox.png")
    evil = "\x1b]0;owned\x07\n" + "x" * 500_000
    recipe = _replace(read_recipe("fox.png"), device=evil, checkpoint=evil, model=evil)
    monkeypatch.setattr("petzval.inference.image.read_recipe", lambda _: recipe)
    for words in ((), model[:4]):
        _, _, err = run("generate", "--from", "fox.png", *words)
        assert "\x1b" not in err and "\x07" not in err and "owned" in err
        assert len(err) < 1000 and "\n\\n" not in err.replace("\\n", "")


def _replace(recipe: petzval.Recipe, **changes: Any) -> petzval.Recipe:
    from dataclasses import replace

    return replace(recipe, **changes)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["", *SMALL], "the prompt is blank"),
        (["   "], "the prompt is blank"),
        (["a fox", "--model", "lense"], "unknown model 'lense'"),
        (["a fox", "--model", "lens-turbo"], "not on this machine"),
        (["a fox", "--size", "1000x1000"], "not on the 16-pixel grid"),
        (["a fox", "--size", "0x16"], "not positive"),
        (["a fox", "--size", "-16x16"], "not positive"),
        (["a fox", "--size", "999999x999999"], "16-pixel grid"),
        (["a fox", "--size", "huge"], "cannot read the size"),
        (["a fox", "--aspect", "7:5"], "unknown aspect ratio"),
        (["a fox", "--size", "64x64", "--aspect", "1:1"], "more than one way"),
        (["a fox", "--guidance", "nan"], "guidance must be between"),
        (["a fox", "--guidance", "inf"], "guidance must be between"),
        (["a fox", "--steps", "0"], "steps must be between 1 and 1000"),
        (["a fox", "--steps", "10000"], "steps must be between 1 and 1000"),
        (["a fox", "--steps", "four"], "--steps"),
        (["a fox", "--seed", "-1"], "seed must be between"),
        (["a fox", "--seed", "lucky"], "cannot read the seed"),
        (["a fox", "--seed", "9" * 39], "seed must be between"),
        (["a fox", "--seed=--5"], "cannot read the seed"),
        (["a fox", "--model", ""], "unknown model ''"),
        (["a fox", "--model", "~nouser"], "home of a user who is not known"),
        (["a fox", "--out", "~nouser/x.png"], "home of a user who is not known"),
        (["a fox", "--out", "x" * 300], "the name has 300 characters"),
        (["a fox", "--out", "x" * 300 + ".png"], "the name has 304 characters"),
        (["a fox", "--out", "x.gif"], "no .gif files are written"),
        (["a fox", "--out", "new", "--device", "toaster"], "unknown device"),
        (["a fox", "--parity", "microsoft", "--num", "0"], "num_images"),
        (["a fox", "--num", "0"], "num_images"),
        (["a fox", "--num", "1000000"], "num_images"),
        (["a fox", "--parity", "cpu"], "unknown parity"),
        (["a fox", "--solver", "magic"], "unknown solver"),
        (["a fox", "--template-date", "2026-13-01"], "template date"),
        (["a fox", "--mark", "AI生成"], "built-in font does not have"),
        (["a fox", "--mark", "x" * 99], "at most 40 are drawn"),
        (["a fox", "--size", "32x32", "--mark", "made by a machine"], "does not fit"),
        (["a fox", "--format", "gif"], "unknown format"),
        (["a fox", "--out", "fox.png", "--format", "webp"], "is named as png"),
        (["a fox", "--out", "taken"], "is a file, not a folder"),
        (["a fox", "--out", "taken/fox.png"], "is a file, not a folder"),
        (["a fox", "--out", "/proc/petzval"], "/proc/petzval"),
        (["a fox", "--num", "2", "--out", "-"], "stdout takes one picture"),
        (["a fox", "--device", "toaster"], "unknown device"),
        (["a fox", "--file", "prompts.txt"], "both given"),
        (["--file", "absent.txt"], "absent.txt cannot be read"),
        (["--file", "blank.txt"], "holds no prompt"),
        (["--file", "latin.txt"], "line 2: not UTF-8"),
        (["--from", "absent.png"], "absent.png does not exist"),
        (["--from", "taken"], "is not a picture"),
        (["--from", "plain.png"], "holds no recipe"),
        (["a", "red", "fox"], "red"),
    ],
)
def test_a_mistake_is_one_line_a_hint_and_exit_code_two(
    run: Run, golden_checkpoint: Path, words: list[str], message: str
) -> None:
    Path("taken").write_text("mine")
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"a fox\na caf\xe9\n")
    Image.new("RGB", (16, 16)).save("plain.png")
    before = sorted(os.listdir())
    if "--model" not in words:
        words = [*words, "--model", str(golden_checkpoint)]
    code, out, err = run("generate", *words)
    assert code == 2, err
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert Path("taken").read_text() == "mine"
    assert sorted(os.listdir()) == before


def test_without_a_prompt_at_a_terminal_the_hint_shows_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, _, err = run("generate")
    assert code == 2
    assert "petzval generate" in err


def test_a_read_only_folder_is_refused_before_any_work(
    run: Run, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Pipeline:
        raise AssertionError("the model was loaded")

    def read_only(path: Path, mode: int) -> bool:
        return mode == os.R_OK

    monkeypatch.setattr(Pipeline, "load", never)
    monkeypatch.setattr(os, "access", read_only)
    code, _, err = run("generate", "a fox", *model, "--out", "folder")
    assert code == 2
    assert "read-only" in err


def test_a_forged_recipe_that_names_a_path_as_model_is_not_followed(
    run: Run, model: tuple[str, ...], golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate", "a red fox", *model, "--out", "fox.png")
    recipe = _replace(read_recipe("fox.png"), model=str(golden_checkpoint))
    monkeypatch.setattr("petzval.inference.image.read_recipe", lambda _: recipe)
    code, _, err = run("generate", "--from", "fox.png")
    assert code == 2
    assert "--model" in err


# ── interruption and breakage ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("failure", "code"), [(KeyboardInterrupt(), 130), (NumericsError("step 2", "float32"), 2)]
)
def test_what_stops_the_work_keeps_whole_pictures_and_leaves_no_half_one(
    run: Run,
    model: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
) -> None:
    steps = Pipeline.steps

    def stopped(self: Pipeline, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, event in enumerate(steps(self, *arguments, **options)):
            if number == 3:
                raise failure
            yield event

    monkeypatch.setattr(Pipeline, "steps", stopped)
    exit_code, out, err = run("generate", "a fox", *model, "--num", "2", "--out", "pictures")
    assert exit_code == code
    assert out == "pictures/a-fox-0.png\n"
    assert "Traceback" not in err
    assert os.listdir("pictures") == ["a-fox-0.png"]


def test_a_plan_that_is_refused_leaves_no_folder(
    run: Run, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate", "a fox", *model, "--parity", "microsoft", "--out", "fox.png")
    recipe = _replace(read_recipe("fox.png"), noise_row=1 << 20)
    monkeypatch.setattr("petzval.inference.image.read_recipe", lambda _: recipe)
    again = ("--from", "fox.png", *model[:4], "--size", "512x512", "--out", "new")
    code, out, err = run("generate", *again)
    assert (code, out) == (2, ""), err
    assert "noise row" in err and not Path("new").exists()


def test_a_mark_is_drawn_made_again_and_taken_off(run: Run, model: tuple[str, ...]) -> None:
    run("generate", "a fox", *model, "--out", "plain.png")
    code, out, _ = run("generate", "a fox", *model, "--mark", "by AI", "--out", "fox.png", "--json")
    assert code == 0 and json.loads(out)["recipe"]["mark"] == "by AI"
    assert Path("fox.png").read_bytes() != Path("plain.png").read_bytes()
    again = ("--from", "fox.png", *model[:4])
    run("generate", *again, "--out", "again.png")
    assert Path("again.png").read_bytes() == Path("fox.png").read_bytes()
    run("generate", *again, "--mark", "", "--out", "off.png")
    assert Path("off.png").read_bytes() == Path("plain.png").read_bytes()


def test_warnings_are_one_line_on_stderr(run: Run, model: tuple[str, ...]) -> None:
    code, out, err = run("generate", "a red fox and " * 300, *model, "--out", "long.png")
    assert (code, out) == (0, "long.png\n")
    assert err.startswith("warning: ") and err.count("\n") == 1
