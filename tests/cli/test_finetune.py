"""`petzval finetune` from the command line: results on stdout, mistakes as one line and a hint."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from petzval.inference.image import read_recipe
from petzval.training import loop
from tests.cli.conftest import Run
from tests.pretrain.rings import draw_rings

QUICK = ("--steps", "2", "--base", "128", "--batch-size", "1", "--preview-steps", "1")


def test_a_folder_becomes_a_lora_that_generate_takes(run: Run, golden_checkpoint: Path) -> None:
    draw_rings(Path("rings"))
    code, out, err = run(
        "finetune", golden_checkpoint, "rings", "--out", "run", *QUICK, "--keys", "kohya",
        "--device", "cpu", "--rank", "2", "--target", "*.attn.img_qkv",
    )  # fmt: skip
    assert code == 0, err
    assert out.split() == ["run/lora", "run/lora-kohya.safetensors"]
    assert "4 pictures: 128x128 (2)" in err and "step 2  loss" in err
    options = ("--model", golden_checkpoint, "--device", "cpu", "--size", "64x48", "--steps", "1")
    for lora, name in zip(out.split(), ("lora", "lora-kohya.safetensors"), strict=True):
        code, *_ = run("generate", "a fox", *options, "--lora", f"{lora}:0.5", "--out", "fox.png")
        assert code == 0
        assert [used.file for used in read_recipe("fox.png").loras] == [name]


def test_an_interruption_says_how_to_go_on(
    run: Run, golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_rings(Path("rings"))
    step = loop.training_step

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments, **options)

    monkeypatch.setattr(loop, "training_step", interrupted)
    words = ("finetune", golden_checkpoint, "rings", "--out", "run", *QUICK, "--device", "cpu")
    code, out, err = run(*words)
    assert (code, out) == (130, "")
    assert "the same command goes on" in err
    assert Path("run/checkpoints/step-00000001").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "absent: does not exist"),
        (["empty"], "holds no picture"),
        (["bare"], "has no caption"),
        (["rings", "--model", "lense"], "unknown model"),
        (["rings", "--rank", "0"], "rank"),
        (["rings", "--alpha", "nan"], "alpha"),
        (["rings", "--dropout", "1"], "dropout"),
        (["rings", "--target", "nothing*"], "no linear layer is called 'nothing*'"),
        (["rings", "--keys", "flux"], "unknown keys 'flux'"),
        (["rings", "--full", "--keys", "kohya"], "keys are those of a LoRA"),
        (["rings", "--learning-rate", "-1"], "learning_rate"),
        (["rings", "--learning-rate", "nan"], "learning_rate"),
        (["rings", "--base", "300"], "unknown base size"),
        (["rings", "--text-dropout", "2"], "text_dropout"),
        (["rings", "--trigger", " "], "trigger word is blank"),
        (["rings", "--out", "rings"], "something else"),
        (["rings", "--device", "toaster"], "unknown device"),
        (["rings", "--steps", "0"], "--steps"),
    ],
)
def test_a_mistake_is_one_line_a_hint_and_exit_code_two(
    run: Run, golden_checkpoint: Path, words: list[str], said: str
) -> None:
    draw_rings(Path("rings"))
    draw_rings(Path("bare"), captions=False)
    Path("empty").mkdir()
    model = str(golden_checkpoint)
    if "--model" in words:
        words, model = words[:1], words[2]
    out = () if "--out" in words else ("--out", "run")
    code, stdout, err = run("finetune", model, *QUICK, *words, *out)
    assert (code, stdout) == (2, "")
    assert said in err and "Traceback" not in err
