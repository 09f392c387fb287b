"""`petzval convert`, and drawing from what it wrote."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from petzval.weights.tensors import TensorSource
from tests.cli.conftest import Run
from tests.weights.formats import comfyui_encoder, original_vae, saved, settings

SMALL = ("--size", "64x48", "--steps", "2", "--guidance", "1", "--device", "cpu")


def test_there_and_back_draws_the_same_picture(run: Run, golden_checkpoint: Path) -> None:
    assert run("convert", golden_checkpoint, "lens.safetensors", "--to", "comfyui")[:2] == (
        0,
        "lens.safetensors\n",
    )
    assert run("convert", golden_checkpoint, "vae.st", "--to", "comfyui", "--part", "vae")[0] == 0
    saved(Path("encoder"), comfyui_encoder(), settings("encoder"))
    Path("petzval.toml").write_text(
        f'model = "{golden_checkpoint}"\ndenoiser = "lens.safetensors"\nvae = "vae.st"\n',
        encoding="utf-8",
    )
    code, out, err = run("convert", "petzval.toml", "folder", "--dtype", "float32")
    assert (code, out) == (0, "folder\n"), err
    for name, words in {
        "whole.png": ("--model", golden_checkpoint),
        "folder.png": ("--model", "folder"),
        "options.png": (
            *("--denoiser", "lens.safetensors", "--vae", "vae.st"),
            *("--encoder", golden_checkpoint, "--tokenizer", golden_checkpoint),
        ),
    }.items():
        code, _, err = run("generate", "a fox", *words, *SMALL, "--out", name)
        assert (code, err) == (0, ""), err
    assert len({_pixels(name) for name in ("whole.png", "folder.png", "options.png")}) == 1


def _pixels(name: str) -> bytes:
    from PIL import Image

    with Image.open(name) as picture:
        return picture.tobytes()


def test_one_part_of_a_file(run: Run) -> None:
    saved(Path("v"), original_vae(), settings("vae"))
    code, out, err = run("convert", "v", "vae", "--dtype", "bfloat16")
    assert (code, out) == (0, "vae\n"), err
    assert sorted(path.name for path in Path("vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    # Again, over it.
    code, out, err = run("convert", "v", "vae")
    assert (code, out) == (2, "")
    assert "vae: already exists; nothing was written" in err
    assert "--overwrite" in err
    assert run("convert", "v", "vae", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("v", "out", "--to", "zip"), "unknown format 'zip'"),
        (("v", "out", "--part", "unet"), "unknown part 'unet'"),
        (("v", "out", "--dtype", "int8"), "unknown dtype 'int8'"),
        (("v", "out", "--to", "gguf-q8_0"), "the vae is not written as gguf-q8_0"),
        (("v", "out", "--part", "denoiser"), "this is an autoencoder, expected a denoiser"),
        (("lens-turbo", "out"), "lens-turbo is not on this machine"),
        (("nothing", "out"), "unknown model 'nothing'"),
        (("v", "out.gguf", "--to", "comfyui"), "out.gguf is the name of a .gguf file, and comfyui"),
        (("v", "out.safetensors"), "the name of a .safetensors file, and a folder would be"),
    ],
)
def test_a_mistake_is_one_line_a_hint_and_exit_code_two(
    run: Run, words: tuple[str, ...], message: str
) -> None:
    saved(Path("v"), original_vae(), settings("vae"))
    code, out, err = run("convert", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert not list(Path().glob("out*"))
    assert not list(Path().glob(".*.partial"))


def test_drawing_from_parts_that_are_not_enough(run: Run) -> None:
    saved(Path("v"), original_vae(), settings("vae"))
    code, _, err = run("generate", "a fox", "--vae", "v", *SMALL)
    assert code == 2
    assert "no denoiser and no encoder is named" in err
    code, _, err = run("generate", "a fox", "--vae", "gone", *SMALL)
    assert code == 2
    assert "the vae 'gone' does not exist" in err


STOPPED = """
import signal, sys
from petzval.cli.main import main
from petzval.weights.tensors import TensorSource

number, words = getattr(signal, sys.argv[1]), sys.argv[2:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
read = TensorSource.read
calls = []

def stopped(self, *args, **kwargs):
    calls.append(args)
    if len(calls) == 3:
        signal.raise_signal(number)
    return read(self, *args, **kwargs)

TensorSource.read = stopped
sys.exit(main(words))
"""


@pytest.mark.parametrize(
    ("to", "name", "code", "said"),
    [
        ("comfyui", "SIGINT", 130, "interrupted"),
        ("comfyui", "SIGTERM", 143, "terminated"),
        ("folder", "SIGTERM", 143, "terminated"),
        ("gguf-q8_0", "SIGTERM", 143, "terminated"),
    ],
)
def test_a_signal_half_way_leaves_nothing(
    golden_checkpoint: Path, tmp_path: Path, to: str, name: str, code: int, said: str
) -> None:
    words = ["convert", str(golden_checkpoint), "out", "--to", to]
    command = [sys.executable, "-c", STOPPED, name, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.strip().endswith(said)
    assert list(tmp_path.iterdir()) == []


LOADING = """
import signal, sys, types
from importlib.machinery import ModuleSpec
from petzval.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)

class Loading(types.ModuleType):
    def __getattr__(self, name):
        signal.raise_signal(signal.SIGINT)

sys.modules["torch"] = torch = Loading("torch")
torch.__spec__ = ModuleSpec("torch", None)
torch.__spec__._initializing = True
sys.exit(main(["doctor"]))
"""


def test_ctrl_c_while_torch_is_imported_is_no_abort() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interruption_that_became_another_error_is_one(
    run: Run, golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ValueError("what C++ made of it")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(TensorSource, "read", swallowed)
        code, out, err = run("convert", golden_checkpoint, "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert err.strip().endswith("interrupted")
    assert not Path("out").exists()


def test_sigterm_is_left_alone_where_somebody_has_decided(run: Run) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run("models")[0] == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run("models")[0] == 0
    assert signal.getsignal(signal.SIGTERM) is before
