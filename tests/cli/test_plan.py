"""`petzval plan`: the table, the document, and the same plan followed by `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import petzval
from petzval.cli.plan import _time
from petzval.config import from_mapping
from petzval.inference import planning
from petzval.inference.speeds import Speeds
from petzval.kernels import backends
from petzval.models.sizes import MINI_GPT_OSS, MINI_MMDIT, MINI_VAE
from petzval.weights import unfetched
from tests.cli.conftest import Run
from tests.conftest import REPOSITORY
from tests.support import QUICK_TO_READ

SPEEDS = {
    "flops": 1e11,
    "cpu_flops": 1e11,
    "decoded": 1e8,
    "cpu_decoded": 1e8,
    "copied": 1e10,
    "cpu_copied": 1e10,
    "cleared": 1e10,
    "read": 1e9,
    "sent": 1e10,
}


@pytest.fixture
def speeds(tmp_path: Path) -> Path:
    path = tmp_path / "speeds.json"
    path.write_text(json.dumps(SPEEDS))
    return path


def test_the_guides_example_of_speeds_is_read() -> None:
    guide = (REPOSITORY / "docs/guides/memory.md").read_text(encoding="utf-8")
    example = guide[guide.index('{"flops"') :].split("}")[0] + "}"
    assert from_mapping(Speeds, json.loads(example), where="guide").flops == 1e14


def test_the_table_names_every_network_and_the_sums(
    run: Run, golden_checkpoint: Path, speeds: Path
) -> None:
    words = ("plan", "--model", golden_checkpoint, "--size", "128x96", "--device", "cpu")
    code, out, err = run(*words, "--speeds", speeds)
    assert (code, err) == (0, "")
    for word in ("text encoder", "denoiser", "autoencoder", "resident", "128x96", "float32", "F32"):
        assert word in out
    assert "picture is    the exact one" in out
    assert "of RAM (of it" in out
    assert " of memory" not in out  # of a CPU that is the same
    assert "read again    from the files" in out
    assert "folded  " not in out  # only words that this plan uses are explained


def test_pictures_that_run_together(run: Run, golden_checkpoint: Path, speeds: Path) -> None:
    words = ("plan", "--model", golden_checkpoint, "--size", "256x256", "--device", "cpu")
    words = (*words, "--speeds", speeds)
    documents = {}
    for batch in (1, 3):
        code, out, _ = run(*words, "--batch-size", batch, "--json")
        assert code == 0
        documents[batch] = json.loads(out)
        assert documents[batch]["batch"] == batch
    one, three = (documents[batch]["networks"] for batch in (1, 3))
    for alone, together in zip(one, three, strict=True):
        assert together["weight_bytes"] == alone["weight_bytes"]
    assert three[2]["working_bytes"] > 2 * one[2]["working_bytes"]
    assert documents[3]["other_seconds"] > 2 * documents[1]["other_seconds"]
    code, out, _ = run(*words, "--batch-size", "3")
    assert "picture       3 at once of 256x256" in out
    assert "3 further ones" in out
    code, _, err = run(*words, "--batch-size", "0")
    assert code == 2
    assert "--batch-size" in err


def test_the_document_and_a_tight_limit(
    run: Run, golden_checkpoint: Path, speeds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the process holds depends on the tests before, and the hint may be in GB.
    monkeypatch.setattr(backends, "resident_bytes", lambda: 300_000_000)
    words = ("plan", "--model", golden_checkpoint, "--device", "cpu", "--speeds", speeds, "--json")
    words = (*words, "--size", "512x512")
    code, out, _ = run(*words)
    loose = json.loads(out)
    assert code == 0
    assert loose["exact"] is True
    assert loose["files_are_here"] is True
    assert loose["peak_bytes"] > loose["baseline_bytes"] > 0
    code, out, err = run(*words, "--memory", "1kB")
    assert code == 2
    assert out == ""
    assert "no plan for 512x512 fits in 1 kB of memory" in err
    assert "hint: give --memory" in err
    smallest = int(err.split("--memory ")[1].split("MB")[0])
    code, out, _ = run(*words, "--memory", f"{smallest}MB")
    tight = json.loads(out)
    assert code == 0
    assert tight["peak_bytes"] <= smallest * 10**6


def test_a_card_that_is_not_here_can_be_planned_for(
    run: Run, golden_checkpoint: Path, speeds: Path
) -> None:
    words = ("plan", "--model", golden_checkpoint, "--size", "128x96")
    for device in ("cuda:7", "xpu", "mps"):
        code, out, err = run(*words, "--device", device, "--memory", "1GB")
        assert (code, err) == (0, "")
        assert f"memory of {device}" in out
        assert "bfloat16" in out
        assert f"100 TFLOP/s, for {device} is not on this machine" in out
    code, out, _ = run(*words, "--device", "cuda:7", "--speeds", speeds)
    assert code == 0
    assert "TFLOP/s" not in out  # they were given
    code, _, err = run("generate", "a fox", "--model", golden_checkpoint, "--device", "cuda:7")
    assert code == 2
    assert "device 'cuda:7' is not on this machine" in err


def test_a_model_that_was_not_fetched_is_planned_for_by_its_published_sizes(run: Run) -> None:
    words = ("plan", "--device", "cuda:7", "--memory", "8GB", "--size", "1024x1024")
    code, out, err = run(*words, "--model", "lens-turbo")
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if line.startswith("files ")]
    assert "are not here: this is for the published sizes of lens-turbo, read at 1 GB/s" in line
    assert "`petzval pull lens-turbo` fetches them" in line
    for word in ("text encoder", "denoiser", "autoencoder", "1024x1024, 4 steps", "16.4 GB F32"):
        assert word in out
    code, _, err = run("generate", "a fox", "--model", "lens-turbo")
    assert code == 2
    assert "lens-turbo is not on this machine" in err
    assert "petzval pull lens-turbo" in err


def test_the_document_says_whether_the_files_are_here(
    run: Run, speeds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"denoiser": MINI_MMDIT, "encoder": MINI_GPT_OSS, "vae": MINI_VAE}
    monkeypatch.setattr(unfetched, "_CONFIGS", small)  # the full sizes take their time
    words = ("plan", "--device", "cuda:7", "--speeds", speeds, "--size", "256x256")
    code, out, _ = run(*words, "--model", "lens-sceneworks", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["files_are_here"] is False
    assert plan["steps"] == 20
    code, out, _ = run(*words, "--model", "lens-sceneworks")
    assert code == 0
    assert "of lens-sceneworks; `petzval pull lens-sceneworks` fetches them" in out
    code, out, err = run(*words, "--model", "lens-turbo", "--memory", "1MB")
    assert (code, out) == (2, "")
    assert "no plan for 256x256 fits in 1 MB of memory" in err


def test_a_part_that_is_here_has_to_fit_those_that_are_not(run: Run) -> None:
    vae = Path(petzval.__file__).parent / "assets" / "mini" / "vae"
    code, out, err = run("plan", "--model", "lens-turbo", "--vae", vae, "--device", "cuda:7")
    assert (code, out) == (2, "")
    assert "in_channels is 128, expected 4 x the vae's latent_channels (16)" in err
    code, _, err = run("plan", "--model", "lens-mxfp8", "--device", "cuda:7")
    assert code == 2
    assert "lens-mxfp8 is a denoiser alone" in err


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0004, "under 1 ms"),
        (0.0123, "12 ms"),
        (0.779, "780 ms"),
        (60.9, "61 s"),
        (1860.0, "31 min"),
        (90000.0, "25 h"),
    ],
)
def test_seconds_for_people(seconds: float, told: str) -> None:
    assert _time(seconds) == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "lots"], "cannot read 'lots' as an amount of memory"),
        (["--quantise", "int2"], "unknown storage 'int2'"),
        (["--device", "toaster"], "unknown device"),
        (["--memory", "8"], "'8' has no unit"),
        (["--quantise", ""], "unknown storage ''"),
        (["--dtype", ""], "unknown dtype ''"),
        (["--size", "100x100"], "16-pixel grid"),
        (["--model", "nothing"], "unknown model"),
        (["--speeds", "absent.json"], "absent.json"),
    ],
)
def test_mistakes(run: Run, words: list[str], message: str) -> None:
    code, out, err = run("plan", *words)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_generate_follows_a_plan_and_draws_the_same(
    run: Run, golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files that are read in no time, all stays; a streamed encoder rounds otherwise."""
    monkeypatch.setattr(planning, "measured_speeds", lambda *machine: QUICK_TO_READ)
    words = ("generate", "a fox", "--model", golden_checkpoint, "--size", "64x64", "--steps", "1")
    words = (*words, "--device", "cpu", "--threads", "1")
    assert run(*words, "--out", "plain.png")[0] == 0
    assert run(*words, "--out", "planned.png", "--memory", "16GB")[0] == 0
    assert Path("planned.png").read_bytes() == Path("plain.png").read_bytes()
    code, _, err = run(*words, "--out", "none.png", "--memory", "1MB")
    assert code == 2
    assert "no plan for 64x64 fits in 1 MB" in err
    assert not Path("none.png").exists()


def test_a_quantised_picture_says_so_and_is_made_again(run: Run, golden_checkpoint: Path) -> None:
    words = ("--device", "cpu", "--threads", "1")
    first = ("generate", "a fox", "--model", golden_checkpoint, "--size", "64x64", "--steps", "1")
    assert run(*first, *words, "--quantise", "int8", "--out", "first.png")[0] == 0
    assert '"weights": "int8"' in run("show", "first.png", "--json")[1].replace('":"', '": "')
    again = ("generate", "--from", "first.png", "--model", golden_checkpoint, "--out", "again.png")
    assert run(*again, *words)[0] == 0
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()
