from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from petzval.inference.variants import VARIANTS
from tests.cli.conftest import Run

SMALL = ("--size", "32x32", "--steps", "1", "--guidance", "1")


@pytest.fixture
def checkpoint(golden_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(golden_checkpoint, tmp_path / "copy"))


def test_show_prints_the_recipe_for_people_and_programs(run: Run, golden_checkpoint: Path) -> None:
    run("generate", "a red fox", *SMALL, "--model", golden_checkpoint, "--out", "fox.png")
    code, out, err = run("show", "fox.png")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert lines["prompt"] == "a red fox"
    assert lines["steps"] == "1"
    code, out, err = run("show", "fox.png", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["prompt"] == "a red fox"


def test_show_disarms_what_could_command_a_terminal(run: Run, golden_checkpoint: Path) -> None:
    prompt = "fox \x1b]0;owned\x07\x1b[2J \u202e"
    run("generate", prompt, *SMALL, "--model", golden_checkpoint, "--out", "fox.png")
    code, out, _ = run("show", "fox.png")
    assert code == 0
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    assert "\\x1b]0;owned" in out


def test_no_prompt_can_forge_a_line_of_the_recipe(run: Run, golden_checkpoint: Path) -> None:
    run("generate", "x\nseed  999", *SMALL, "--model", golden_checkpoint, "--out", "fox.png")
    _, out, _ = run("show", "fox.png")
    assert [line for line in out.splitlines() if line.startswith("seed")] == [f"{'seed':<15}  0"]
    assert "x\\nseed  999" in out


def test_a_hostile_shard_name_cannot_command_the_terminal(run: Run, checkpoint: Path) -> None:
    folder = checkpoint / "vae"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"x": "\x1b]0;owned\x07\n.safetensors"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for words in (("verify",), ("generate", "a fox", "--model")):
        _, out, err = run(*words, checkpoint)
        assert "owned" in out + err
        assert not {"\x1b", "\x07"} & set(out + err)


def test_show_answers_a_picture_without_a_recipe(run: Run) -> None:
    Path("notes.png").write_text("hello")
    code, out, err = run("show", "notes.png")
    assert (code, out) == (2, "")
    assert "is not a picture" in err


def test_models_lists_every_variant_and_what_it_needs(run: Run) -> None:
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert all(name in out for name in VARIANTS)
    assert "22 GB on disk" in out and "32 MB on disk" in out
    rows = json.loads(run("models", "--json")[1])
    files = [file for file in Path(rows[0]["folder"]).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    assert abs(rows[0]["disk_bytes"] / size - 1) < 0.05
    assert [row["name"] for row in rows] == list(VARIANTS)
    assert all(row["folder"] is None for row in rows if row["repository"])


def test_doctor_reports_versions_devices_and_reasons(run: Run) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert torch.__version__ in out
    report = json.loads(run("doctor", "--json")[1])
    assert set(report) == {"versions", "devices", "back end", "kernels", "models"}
    assert "cpu" in report["devices"]
    assert report["back end"]["computes in"] in ("float32", "bfloat16", "float16")
    assert all(": " in reason for reason in report["kernels"].values())


def test_verify_counts_and_hashes_a_whole_checkpoint(run: Run, golden_checkpoint: Path) -> None:
    code, out, err = run("verify", golden_checkpoint)
    assert (code, err) == (0, "")
    assert "94 tensors" in out and "passed" in out
    report = json.loads(run("verify", golden_checkpoint, "--json")[1])
    assert report["passed"] is True
    assert [len(part["files"][0]["sha256"]) for part in report["components"]] == [64, 64, 64]


def test_verify_takes_a_part_in_any_format(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name, words in (("lens.gguf", "gguf-q8_0"), ("lens.safetensors", "comfyui-fp8")):
        file = tmp_path / name
        assert run("convert", checkpoint, file, "--to", words)[0] == 0
        code, out, _ = run("verify", file)
        assert code == 0
        assert "denoiser: 94 tensors" in out
        assert out.rstrip().endswith("passed")
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = run("verify", file)
    assert code == 1
    assert f"WRONG  {file}: truncated" in out
    (tmp_path / "whole.toml").write_text(f'model = "{checkpoint}"', encoding="utf-8")
    code, out, err = run("verify", tmp_path / "whole.toml")
    assert (code, out) == (2, "")
    assert "parts that lie in several places" in err
    code, _, err = run("verify", checkpoint / "vae", "--goldens", tmp_path)
    assert code == 2
    assert "goldens are of a whole checkpoint" in err


def test_verify_names_file_and_key_of_every_fault(run: Run, checkpoint: Path) -> None:
    weights = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["img_in.bias"]
    tensors["proj_out.bias"][0] = float("nan")
    save_file(tensors, weights)
    code, out, _ = run("verify", checkpoint)
    assert code == 1
    assert "img_in.bias" in out and "proj_out.bias" in out and "FAILED" in out


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer/tokenizer.json", "{}"),
        ("tokenizer/tokenizer_config.json", "["),
        ("petzval.json", '{"steps": 0}'),
        ("petzval.json", "[]"),
        ("petzval.json", '{"name": "\\u001b[2J"}'),
    ],
)
def test_verify_refuses_every_text_that_generate_refuses(
    run: Run, checkpoint: Path, file: str, text: str
) -> None:
    (checkpoint / file).write_text(text)
    code, out, err = run("verify", checkpoint, "--no-hashes", "--no-values")
    assert (code, err) == (1, "")
    assert "FAILED" in out and out.count("WRONG") == 1 and Path(file).name in out
    code, _, err = run("generate", "a fox", *SMALL, "--model", checkpoint)
    assert code == 2 and Path(file).name in err


def test_verify_runs_recorded_cases_with_error_and_limit(
    run: Run, goldens: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "goldens"
    folder.mkdir()
    index = json.loads((goldens / "index.json").read_text())
    index["files"] = {"cfg.safetensors": index["files"]["cfg.safetensors"]}
    (folder / "index.json").write_text(json.dumps(index))
    recorded = load_file(goldens / "cfg.safetensors")
    save_file(recorded, folder / "cfg.safetensors")
    code, out, _ = run("verify", golden_checkpoint, "--goldens", folder, "--no-values")
    assert code == 0, out
    assert "passed" in out and " of " in out and "cfg" in out
    recorded["g5.0"] += 1
    save_file(recorded, folder / "cfg.safetensors")
    code, out, _ = run("verify", golden_checkpoint, "--goldens", folder, "--no-values", "--json")
    assert code == 1
    failed = [row for row in json.loads(out)["goldens"] if row["status"] == "failed"]
    assert [("g5.0" in row["name"], row["error"] > row["limit"]) for row in failed] == [
        (True, True)
    ]


def test_an_error_without_a_number_is_null_in_json(
    run: Run, goldens: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    index = json.loads((goldens / "index.json").read_text())
    index["files"] = {"cfg.safetensors": index["files"]["cfg.safetensors"]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    code, out, _ = run("verify", golden_checkpoint, "--goldens", tmp_path, "--no-values", "--json")
    assert code == 1
    assert "Infinity" not in out
    (row,) = [row for row in json.loads(out)["goldens"] if row["status"] == "failed"]
    assert (row["name"], row["error"]) == ("cfg.safetensors", None)


def test_verify_answers_what_is_no_checkpoint(run: Run) -> None:
    code, out, err = run("verify", "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere" in err


def test_generate_refuses_a_pickle_and_damaged_files(run: Run, checkpoint: Path) -> None:
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    torch.save({"a": torch.zeros(1)}, weights)
    code, _, err = run("generate", "a fox", *SMALL, "--model", checkpoint)
    assert code == 2 and "pickle" in err
    weights.write_bytes(whole[: len(whole) // 2])
    code, _, err = run("generate", "a fox", *SMALL, "--model", checkpoint)
    assert code == 2 and "vae" in err
    weights.write_bytes(whole)
    (checkpoint / "vae" / "config.json").write_text("{")
    code, _, err = run("generate", "a fox", *SMALL, "--model", checkpoint)
    assert code == 2 and "config.json" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "build", "everything"], "unknown data set"),
        (["pretrain", "nothing"], "unknown recipe"),
        (["pretrain", "mini_latents", "--shards", "8"], "cannot read the shards"),
        (["pretrain", "mini_vae", "--compile", "fast"], "cannot compile 'fast'"),
        (["pretrain", "mini_vae", "--device", "toaster"], "unknown device"),
        (["pretrain", "mini_denoiser", "--out", "taken"], "taken is a file"),
        (["pretrain", "mini_denoiser", "--out", "taken/run"], "taken is a file"),
        (["data", "build", "mini", "--out", "taken"], "taken is a file"),
    ],
)
def test_a_wrong_name_lists_the_right_ones(run: Run, words: list[str], message: str) -> None:
    Path("taken").write_text("mine")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err and "hint: " in err
    assert os.listdir() == ["taken"]
