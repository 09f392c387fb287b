"""The golden runner: passes what is right, names what is not, and is bound to no one folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import CheckpointError, DataError
from petzval.inference.goldens.case import CaseResult, absolute, judge, relative
from petzval.inference.goldens.folder import GoldenFolder, Subject
from petzval.inference.verify_goldens import compare, iterate_goldens, run_goldens
from petzval.models import rope
from petzval.models.layers import RMSNorm
from petzval.weights.writing import write_safetensors
from tests.support import GOLDENS, TINY_CHECKPOINT

Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def results() -> list[CaseResult]:
    """The public set, run once."""
    return run_goldens(GOLDENS, TINY_CHECKPOINT)


def test_every_public_case_passes(results: list[CaseResult]) -> None:
    assert [(r.name, r.error, r.limit) for r in results if r.status != "passed"] == []
    assert len(results) > 400


def test_every_recorded_file_has_cases(results: list[CaseResult]) -> None:
    kinds = {result.name.split("/")[0] for result in results}
    assert kinds == {
        "index",
        "manifests",
        "resolution",
        "tokenizer",
        "reasoner",
        "noise",
        "scheduler",
        "cfg",
        "rope",
        "rope_apply",
        "timestep",
        "norms",
        "dit",
        "dit_blocks",
        "text_encoder",
        "mxfp4",
        "prompt_features",
        "vae",
        "pipeline",
    }


def test_limits_are_never_looser_than_the_recorded_advice(results: list[CaseResult]) -> None:
    advice = {
        "rope": 3e-5,
        "dit": 2e-5,
        "dit_blocks": 5e-5,
        "text_encoder": 1e-4,
        "prompt_features": 1e-4,
        "scheduler": 1e-6,
        "noise": 0,
        "tokenizer": 0,
    }
    for result in results:
        kind = result.name.split("/")[0]
        assert result.limit <= advice.get(kind, 1)
        if result.name.endswith(" image") or result.name.endswith(".image"):
            assert result.limit <= 2e-5
        if result.name.endswith("latents_per_step"):
            assert result.limit <= 1e-4


def golden_copy(folder: Path, names: tuple[str, ...], **changes: Change) -> Path:
    """Some files of the public set; `changes` are made to a file's tensors."""
    copy = folder / "goldens"
    copy.mkdir()
    index = json.loads((GOLDENS / "index.json").read_text(encoding="utf-8"))
    index["files"] = {name: tensors for name, tensors in index["files"].items() if name in names}
    (copy / "index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in names:
        if (GOLDENS / name).is_dir():
            shutil.copytree(GOLDENS / name, copy / name)
        else:
            shutil.copy(GOLDENS / name, copy / name)
    for stem, change in changes.items():
        state = {
            key: tensor.clone() for key, tensor in load_file(copy / f"{stem}.safetensors").items()
        }
        change(state)
        write_safetensors(copy / f"{stem}.safetensors", state)
    return copy


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.load(TINY_CHECKPOINT)


def by_name(folder: Path, subject: Subject) -> dict[str, CaseResult]:
    return {result.name: result for result in compare(GoldenFolder(folder), subject)}


def add(key: str, amount: float) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        state[key].view(-1)[0] += amount

    return change


@pytest.mark.parametrize(
    ("name", "key", "amount", "case"),
    [
        ("rope", "h4_w4_t7.txt_sin", 1e-5, "rope/h4_w4_t7"),
        ("rope", "inv_freq_w", 1e-5, "rope/inv_freq_w"),
        ("rope_apply", "y", 1e-4, "rope_apply/y"),
        ("scheduler", "L4096_N4.sigmas", 1e-5, "scheduler/L4096_N4"),
        ("scheduler", "step.samples", 1e-4, "scheduler/step"),
        ("cfg", "g7.5", 1e-4, "cfg/g7.5"),
        ("noise", "seed42_h3_w5.bfloat16", 1e-2, "noise/seed42_h3_w5.bfloat16"),
        ("norms", "img_norm1.y", 1e-3, "norms/img_norm1"),
        ("norms", "attn.norm_q.weight", 1e-3, "norms/attn.norm_q weight"),
        ("timestep", "temb", 1e-3, "timestep/temb"),
        ("vae", "encode.tokens", 1e-3, "vae/encode.tokens"),
        ("vae", "tall.image", math.nan, "vae/tall.image"),
        ("prompt_features", "features.2", 1.0, "prompt_features/0"),
    ],
)
def test_one_wrong_number_fails_its_case_alone(
    tmp_path: Path, name: str, key: str, amount: float, case: str, subject: Subject
) -> None:
    folder = golden_copy(tmp_path, (f"{name}.safetensors",), **{name: add(key, amount)})
    results = by_name(folder, subject)
    assert [n for n, r in results.items() if r.status == "failed"] == [case]
    assert results[case].error > results[case].limit


def test_what_is_absent_is_said(tmp_path: Path, subject: Subject) -> None:
    results = by_name(golden_copy(tmp_path, ("cfg.safetensors",)), subject)
    assert results["noise.safetensors"].status == "absent"
    assert not results["noise.safetensors"].passed
    assert results["manifests"].status == "absent"
    assert not any(result.status == "failed" for result in results.values())


def test_what_the_index_promises_must_be_there(tmp_path: Path, subject: Subject) -> None:
    folder = golden_copy(tmp_path, ("cfg.safetensors",))
    (folder / "cfg.safetensors").unlink()
    assert by_name(folder, subject)["cfg.safetensors"].status == "failed"


def test_a_truncated_file_fails_and_the_others_go_on(tmp_path: Path, subject: Subject) -> None:
    folder = golden_copy(tmp_path, ("cfg.safetensors", "vae.safetensors"))
    file = folder / "cfg.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    results = by_name(folder, subject)
    assert results["cfg.safetensors"].status == "failed"
    assert "truncated" in results["cfg.safetensors"].detail
    assert results["vae/wide.image"].status == "passed"


def test_what_cannot_be_compared_is_said(tmp_path: Path, subject: Subject) -> None:
    def extend(state: dict[str, Tensor]) -> None:
        state["unheard_of"] = torch.zeros(1)

    folder = golden_copy(tmp_path, ("cfg.safetensors",), cfg=extend)
    results = by_name(folder, subject)
    assert results["cfg/unread"].status == "unchecked"
    assert "unheard_of" in results["cfg/unread"].detail
    assert results["index/cfg.safetensors"].status == "failed"


def test_another_shape_is_infinitely_wrong() -> None:
    assert absolute(torch.zeros(2), torch.zeros(3)) == math.inf
    assert relative(torch.zeros(0, 2), torch.zeros(0, 2)) == 0.0
    assert relative(torch.zeros(2), torch.zeros(0)) == math.inf
    assert not judge("x", math.nan, 1.0).passed
    assert judge("x", math.nan, 1.0).error == math.inf


def test_a_wrong_epsilon_shows_in_the_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    for module in subject.denoiser.modules():
        if isinstance(module, RMSNorm) and module.eps == 1e-6:
            monkeypatch.setattr(module, "eps", 1.05e-6)
    results = by_name(golden_copy(tmp_path, ("norms.safetensors",)), subject)
    failed = {n for n, r in results.items() if r.status == "failed"}
    assert len(failed) == 8
    assert "norms/attn.norm_added_k" in failed


def test_a_wrong_program_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    """Image positions counted from the middle by floor in place of ceil."""

    def floor_centred(length: int) -> Tensor:
        return torch.arange(length) - length // 2

    monkeypatch.setattr(rope, "_centred", floor_centred)
    rope._cpu_tables.cache_clear()
    try:
        results = by_name(golden_copy(tmp_path, ("rope.safetensors", "dit.safetensors")), subject)
    finally:
        rope._cpu_tables.cache_clear()
    assert results["rope/h3_w5_t0"].status == "failed"
    assert results["rope/h4_w4_t7"].status == "passed"
    assert results["dit/b1_odd"].status == "failed"


def test_another_checkpoint_does_not_pass(tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(TINY_CHECKPOINT, copy)
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    write_safetensors(file, {**state, "decoder.conv_in.bias": state["decoder.conv_in.bias"] + 0.01})
    results = list(iterate_goldens(golden_copy(tmp_path, ("vae.safetensors",)), copy))
    failed = {result.name for result in results if result.status == "failed"}
    assert "vae/square.mid_block" in failed
    assert "vae/square.post_quant" not in failed


def test_no_golden_folder_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no index\.json"):
        run_goldens(tmp_path, TINY_CHECKPOINT)
    (tmp_path / "index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="names no files"):
        run_goldens(tmp_path, TINY_CHECKPOINT)
    with pytest.raises(CheckpointError, match="it is absent"):
        run_goldens(GOLDENS, tmp_path / "none")
