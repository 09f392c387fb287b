"""When networks are compiled, what is kept of it, and that the layout of memory changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.errors import RequestError
from petzval.inference import compile as compiling
from petzval.inference.compile import (
    CompileCache,
    cache_key,
    choose_compiling,
    compile_for,
    eager_seconds,
    lacking,
    lay_channels,
)
from petzval.inference.pipeline import Pipeline
from petzval.models.flops import forward_flops
from petzval.models.sizes import LENS_MMDIT
from petzval.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "lacking", lambda device: None)


def test_a_queue_pays_and_a_picture_does_not(pipeline: Pipeline, compiler: None) -> None:
    one = pipeline.plan("a fox", steps=4, guidance=1.0, size="1024x1024", num_images=1)
    queue = pipeline.plan("a fox", steps=20, guidance=5.0, size="1024x1024", num_images=8)
    assert not choose_compiling("auto", CPU, LENS_MMDIT, one, is_kept=False).compile
    long = choose_compiling("auto", CPU, LENS_MMDIT, queue)
    assert long.compile
    assert "would be saved" in long.reason
    assert choose_compiling("on", CPU, LENS_MMDIT, one).compile
    assert not choose_compiling("off", CPU, LENS_MMDIT, queue).compile


def test_what_is_kept_makes_it_pay_earlier(pipeline: Pipeline, compiler: None) -> None:
    plan = pipeline.plan("a fox", steps=10, guidance=1.0, size="1024x1024")
    saved = compiling.SAVED_SHARE["cpu"] * eager_seconds(CPU, LENS_MMDIT, plan)
    assert compiling.WARM_SECONDS["cpu"] < saved < compiling.COLD_SECONDS["cpu"] * 2
    cold = choose_compiling("auto", CPU, LENS_MMDIT, plan)
    warm = choose_compiling("auto", CPU, LENS_MMDIT, plan, is_kept=True)
    assert warm.compile
    assert "read back" in warm.reason
    assert cold.compile == (saved > compiling.COLD_SECONDS["cpu"])


def test_the_forecast_counts_pictures_calls_and_branches(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"size": "64x64", "steps": 4}
    base = eager_seconds(CPU, LENS_MMDIT, pipeline.plan("a fox", guidance=1.0, **options))
    rate = compiling.CPU_FLOPS * torch.get_num_threads()
    assert base == pytest.approx(4 * forward_flops(LENS_MMDIT, [16], [64]) / rate)
    three = pipeline.plan("a fox", guidance=2.0, num_images=3, **options)
    assert eager_seconds(CPU, LENS_MMDIT, three) == pytest.approx(3 * 2 * base)
    heun = pipeline.plan("a fox", guidance=1.0, solver="heun", **options)
    assert eager_seconds(CPU, LENS_MMDIT, heun) == pytest.approx(base * 7 / 4)


def test_a_machine_without_a_compiler_is_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert lacking(CPU) == "there is no C++ compiler"
    assert "never tried" in (lacking(torch.device("mps")) or "")
    plan = pipeline.plan("a fox", size="64x64")
    with pytest.raises(RequestError, match=r"no C\+\+ compiler"):
        compile_for(pipeline, plan, asked=True, cache=CompileCache(tmp_path))
    choice, done = compile_for(pipeline, plan, asked=None, cache=CompileCache(tmp_path))
    assert not choice.compile
    done()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_graphs_is_used_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    cache = CompileCache(tmp_path / "graphs")
    cache.use()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"  # what the user said stands
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path))
    plans = [pipeline.plan("a fox", size=size) for size in ("64x64", "64x48")]
    keys = [cache_key(CPU, torch.float32, LENS_MMDIT, plan) for plan in plans]
    assert len(set(keys)) == 2
    assert not cache.has(keys[0])
    cache.note(keys[0])
    assert CompileCache(tmp_path / "graphs").has(keys[0])
    assert not cache.has(keys[1])
    (tmp_path / "file").write_text("in the way")
    CompileCache(tmp_path / "file").note(keys[0])  # no loss


def test_the_folder_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PETZVAL_COMPILE_CACHE", str(tmp_path / "mine"))
    assert CompileCache().folder.parent == tmp_path / "mine"
    monkeypatch.delenv("PETZVAL_COMPILE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert CompileCache().folder.parent == tmp_path / "xdg" / "petzval" / "compile"


@torch.no_grad()
def test_channels_last_decode_to_the_same_picture(golden_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint)
    plain, last = (checkpoint.load_vae(torch.float32) for _ in range(2))
    lay_channels(last)
    weight = last.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    channels = plain.config.latent_channels
    latents = torch.randn(1, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = plain.decode(latents)
    assert (last.decode(latents) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_compiled_pipeline_draws_the_same_picture(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    drawer = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    plan = drawer.plan("a red fox", size="64x48", steps=2, guidance=3.0)
    [eager] = drawer.generate(plan)
    cache = CompileCache(tmp_path)
    choice, done = compile_for(drawer, plan, asked=True, cache=cache)
    assert choice.compile
    [compiled] = drawer.generate(plan)
    done()
    assert abs(compiled.pixels.astype(int) - eager.pixels.astype(int)).max() <= 1
    assert compile_for(drawer, plan, asked=False, cache=cache)[0].compile is False
    assert cache.has(cache_key(CPU, torch.float32, drawer.denoiser.config, plan))
    assert any((cache.folder / "inductor").rglob("*"))
