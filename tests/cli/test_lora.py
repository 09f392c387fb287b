"""`--lora` on the command line: what it draws, what the file remembers, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from petzval.inference.image import read_recipe
from tests.cli.conftest import Run
from tests.inference.test_loras import write_lora


@pytest.fixture
def model(golden_checkpoint: Path, run: Run) -> tuple[str, ...]:
    """Options for the smallest pictures there are, in a folder with two LoRAs."""
    del run  # which has changed into an empty folder
    for seed, name in enumerate(("ink", "chalk")):
        write_lora(Path(f"{name}.safetensors"), golden_checkpoint, seed)
    size = ("--size", "64x48", "--steps", "2", "--guidance", "1")
    return ("--model", str(golden_checkpoint), "--device", "cpu", *size)


def test_loras_are_added_recorded_shown_and_found_again(
    run: Run, model: tuple[str, ...], golden_checkpoint: Path
) -> None:
    loras = ("--lora", "ink.safetensors:0.5", "--lora", "chalk.safetensors")
    code, out, err = run("generate", "a fox", *model, *loras, "--out", "fox.png")
    assert (code, out, err) == (0, "fox.png\n", "")
    run("generate", "a fox", *model, "--out", "plain.png")
    assert Path("plain.png").read_bytes() != Path("fox.png").read_bytes()

    code, out, _ = run("show", "fox.png")
    assert "ink.safetensors:0.5 (sha256 " in out and "chalk.safetensors:1 (" in out
    shown = json.loads(run("show", "fox.png", "--json")[1])
    assert [lora["weight"] for lora in shown["loras"]] == [0.5, 1.0]

    again = ("--from", "fox.png", "--model", golden_checkpoint, "--device", "cpu")
    code, _, err = run("generate", *again, "--out", "again.png")
    assert (code, err) == (0, "")
    assert Path("again.png").read_bytes() == Path("fox.png").read_bytes()

    code, _, err = run("generate", *again, "--lora", "ink.safetensors", "--out", "other.png")
    assert code == 0
    assert "made with other LoRAs" in err
    assert [lora.weight for lora in read_recipe("other.png").loras] == [1.0]

    Path("ink.safetensors").rename("moved.safetensors")
    code, out, err = run("generate", *again, "--out", "third.png")
    assert (code, out) == (2, "")
    assert "'ink.safetensors'" in err and "not here" in err
    assert not Path("third.png").exists()


def test_weight_zero_draws_the_same_pixels(run: Run, model: tuple[str, ...]) -> None:
    run("generate", "a fox", *model, "--out", "plain.webp")
    run("generate", "a fox", *model, "--lora", "ink.safetensors:0", "--out", "zero.webp")
    from PIL import Image

    with Image.open("plain.webp") as plain, Image.open("zero.webp") as zero:
        assert plain.tobytes() == zero.tobytes()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ("absent.safetensors", "does not exist"),
        ("ink.safetensors:nan", "between -100 and 100"),
        ("ink.safetensors:1000", "between -100 and 100"),
        ("ink.safetensors:much", "cannot read the weight"),
        ("flux.safetensors", "key 'transformer.single_blocks.0.lora_A.weight' belongs to nothing"),
        ("notes.txt", "notes.txt"),
    ],
)
def test_a_mistake_is_one_line_a_hint_and_exit_code_two(
    run: Run, model: tuple[str, ...], lora: str, said: str
) -> None:
    Path("notes.txt").write_text("not a LoRA at all, but long enough to be looked at")
    save_file({"transformer.single_blocks.0.lora_A.weight": torch.ones(2, 2)}, "flux.safetensors")
    code, out, err = run("generate", "a fox", *model, "--lora", lora, "--out", "fox.png")
    assert (code, out) == (2, "")
    assert said in err and "Traceback" not in err
    assert err.count("error: ") == 1
    assert not Path("fox.png").exists()
