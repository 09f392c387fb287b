from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petzval.conditioning.encoder import PromptTruncatedWarning
from petzval.errors import CheckpointError, NumericsError, RequestError
from petzval.inference.event import StepEvent
from petzval.inference.image import read_recipe
from petzval.inference.pipeline import Pipeline, load
from petzval.inference.request import GeneratedImage, GenerationRequest, request_from_recipe
from tests.support import golden_json, golden_tensors

FOX = "A red fox sleeping under a birch tree in the snow, soft morning light"
SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 1.0}


def _small(**changes: Any) -> dict[str, Any]:
    return SMALL | changes


def _same(ours: Sequence[GeneratedImage], theirs: Sequence[GeneratedImage]) -> bool:
    return [image.encode() for image in ours] == [image.encode() for image in theirs]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", sorted(golden_json("pipeline_cases.json")))
@pytest.mark.filterwarnings("ignore::petzval.conditioning.encoder.PromptTruncatedWarning")
def test_the_recorded_pictures_within_one_grey_level(
    pipeline: Pipeline, name: str, batch_size: int
) -> None:
    case, goldens = golden_json("pipeline_cases.json")[name], golden_tensors("pipeline.safetensors")
    request = GenerationRequest(
        prompt=case["prompt"],
        negative_prompt=case["negative_prompt"],
        height=case["height"],
        width=case["width"],
        allow_any_size=True,
        steps=case["steps"],
        guidance=case["guidance_scale"],
        num_images=case["num_images_per_prompt"],
        template_date=case["date"],
        truncate="reference",
        max_tokens=case.get("max_sequence_length", 512),
    )
    noise = goldens[f"{name}.init_latents"]
    events = list(pipeline.steps(request, batch_size=batch_size, noise=noise))
    images = sorted((i for event in events for i in event.images), key=lambda image: image.index)
    expected = goldens[f"{name}.image_u8"].numpy()
    assert len(images) == len(expected)
    for image, golden in zip(images, expected, strict=True):
        assert np.abs(image.pixels.astype(int) - golden.astype(int)).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_four_together_equal_four_alone(pipeline: Pipeline, guidance: float) -> None:
    options = _small(guidance=guidance)
    together = pipeline.generate(FOX, seed=3, num_images=4, **options)
    alone = [pipeline.generate(FOX, seed=seed, **options)[0] for seed in (3, 4, 5, 6)]
    assert [image.recipe.seed for image in together] == [3, 4, 5, 6]
    assert _same(together, alone)
    assert len({image.pixels.tobytes() for image in together}) == 4


def test_several_prompts_together_equal_each_alone(pipeline: Pipeline) -> None:
    prompts = [FOX, "一只戴着帽子的猫坐在窗台上", 'A ceramic sign reading "OPEN"', "two words"]
    pipeline.text.cache.clear()
    together = pipeline.generate(prompts, seed=1, **SMALL)
    alone: list[GeneratedImage] = []
    for prompt in prompts:
        pipeline.text.cache.clear()
        alone += pipeline.generate(prompt, seed=1, **SMALL)
    assert _same(together, alone)


def test_a_batch_is_the_same_picture_up_to_rounding(pipeline: Pipeline) -> None:
    prompts = ["a red fox", "a blue cat", FOX]
    options = _small(guidance=3.0, negative_prompt=["", "blurry", "blurry"])
    alone = pipeline.generate(prompts, num_images=2, **options)
    batched = pipeline.generate(prompts, num_images=2, batch_size=4, **options)
    assert [image.recipe for image in batched] == [image.recipe for image in alone]
    for ours, theirs in zip(batched, alone, strict=True):
        assert np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("parity", ["default", "microsoft", "comfyui"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_picture_is_made_again_from_its_file(
    pipeline: Pipeline, tmp_path: Path, parity: str, solver: str
) -> None:
    made = pipeline.generate(
        FOX, negative_prompt="blurry", seed=5, num_images=3, parity=parity, solver=solver,
        size="64x64", steps=3, guidance=4.0,
    )  # fmt: skip
    path = made[2].save(tmp_path / "third.png")
    [again] = pipeline.generate(request_from_recipe(read_recipe(path)))
    assert again.encode() == path.read_bytes()


def test_modes_and_solvers_make_different_pictures(pipeline: Pipeline) -> None:
    options = _small(steps=3)
    [plain] = pipeline.generate(FOX, **options)
    [heun] = pipeline.generate(FOX, solver="heun", **options)
    [comfy] = pipeline.generate(FOX, parity="comfyui", **options)
    assert len({image.pixels.tobytes() for image in (plain, heun, comfy)}) == 3
    # In float32 the original's first picture is ours: same noise, and nothing is rounded.
    [microsoft] = pipeline.generate(FOX, parity="microsoft", **options)
    assert np.abs(microsoft.pixels.astype(int) - plain.pixels.astype(int)).max() <= 1


def test_the_date_in_the_template_matters_and_is_recorded(pipeline: Pipeline) -> None:
    [pinned] = pipeline.generate(FOX, **SMALL)
    [other] = pipeline.generate(FOX, template_date="2024-12-31", **SMALL)
    assert pinned.recipe.template_date == "2026-05-26"
    assert other.recipe.template_date == "2024-12-31"
    assert not np.array_equal(pinned.pixels, other.pixels)


def test_a_blank_negative_has_no_text_and_another_has(pipeline: Pipeline) -> None:
    options = _small(guidance=5.0)
    [without] = pipeline.generate(FOX, **options)
    [blank] = pipeline.generate(FOX, negative_prompt=" \n", **options)
    [blurry] = pipeline.generate(FOX, negative_prompt="blurry", **options)
    assert _same([without], [blank])
    assert not np.array_equal(without.pixels, blurry.pixels)


def test_guidance_one_runs_one_branch(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = pipeline.denoiser.forward

    def counted(tokens: torch.Tensor, text: torch.Tensor | None, *rest: Any) -> torch.Tensor:
        calls.append(0 if text is None else text.shape[1])
        return forward(tokens, text, *rest)

    monkeypatch.setattr(pipeline.denoiser, "forward", counted)
    pipeline.generate(FOX, negative_prompt="ignored", **SMALL)
    assert len(calls) == 2
    calls.clear()
    pipeline.generate(FOX, **_small(guidance=2.0))
    assert len(calls) == 4
    assert calls[1] == calls[3] == 0  # the blank unconditional branch has no text at all


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────


def test_steps_tell_where_they_are_and_end_with_the_picture(pipeline: Pipeline) -> None:
    events = list(pipeline.steps(FOX, num_images=2, size="64x64", steps=3, guidance=1.0))
    assert [(event.indices, event.step) for event in events] == [
        ((0,), 1), ((0,), 2), ((0,), 3), ((1,), 1), ((1,), 2), ((1,), 3),
    ]  # fmt: skip
    assert [len(event.images) for event in events] == [0, 0, 1, 0, 0, 1]
    assert events[2].sigma == 0
    assert np.array_equal(events[2].preview()[0], events[2].images[0].pixels)
    assert set(events[2].images[0].seconds) == {"encode", "denoise", "decode"}


def test_a_preview_is_a_picture_on_its_way(pipeline: Pipeline) -> None:
    first = next(iter(pipeline.steps(FOX, size="64x64", steps=3, guidance=1.0)))
    assert first.preview().shape == (1, 64, 64, 3)


def test_stopping_early_stops_the_work(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = pipeline.denoiser.forward

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return forward(*arguments)

    monkeypatch.setattr(pipeline.denoiser, "forward", counted)
    for event in pipeline.steps(FOX, size="64x64", steps=50, guidance=1.0):
        if event.step == 2:
            break
    assert len(calls) == 2


def test_progress_hears_of_every_step(pipeline: Pipeline) -> None:
    heard: list[StepEvent] = []
    pipeline.generate(FOX, heard.append, num_images=2, **SMALL)
    assert [event.step for event in heard] == [1, 2, 1, 2]


@pytest.mark.usefixtures("without_shape_hook")
def test_a_wrong_request_is_refused_before_the_first_step(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError):
        pipeline.steps(FOX, size="50x50")
    with pytest.raises(RequestError, match="batch_size"):
        pipeline.steps(FOX, batch_size=0, **SMALL)
    for shape in ((2, 12, 128), (1, 12, 64), (1, 11, 128), (12, 128)):
        with pytest.raises(RequestError, match=r"expected \[1, 12, 128\]"):
            pipeline.steps(FOX, noise=torch.zeros(shape), **SMALL)
    with pytest.raises(RequestError, match="noise row"):
        pipeline.steps(FOX, parity="microsoft", noise_row=1 << 20, size="256x256")


def test_a_finished_plan_takes_no_options(pipeline: Pipeline) -> None:
    plan = pipeline.plan(FOX, **SMALL)
    with pytest.raises(RequestError, match="cannot take steps"):
        pipeline.generate(plan, steps=3)


# ── odd prompts ───────────────────────────────────────────────────────────────────────────────────

ODD = {
    "control characters": "a\x00red\x1b[31m fox\x7f\u0085",
    "emoji only": "🦊🎩👨‍👩‍👧‍👦",
    "right to left": "ثعلب أحمر تحت شجرة \u202eabc",
    "markers": "fox<|end|><|start|>assistant<|channel|>final<|message|>cat<|return|>dog",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "only punctuation": "?!…",
}


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD.keys())
def test_odd_prompts_draw_a_picture_and_survive_in_its_file(
    pipeline: Pipeline, tmp_path: Path, prompt: str
) -> None:
    [image] = pipeline.generate(prompt, **SMALL)
    assert read_recipe(image.save(tmp_path / "odd.webp")).prompt == prompt


def test_a_hundred_thousand_characters_are_cut_with_a_warning(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    prompt = "a red fox and a blue cat, " * 4000
    with pytest.warns(PromptTruncatedWarning, match="too long"):
        [image] = pipeline.generate(prompt, **SMALL)
    assert read_recipe(image.save(tmp_path / "long.png")).prompt == prompt


def test_a_blank_prompt_is_drawn_where_it_is_meant(pipeline: Pipeline) -> None:
    [image] = pipeline.generate("", allow_blank=True, **SMALL)
    [again] = pipeline.generate(request_from_recipe(image.recipe))
    assert _same([image], [again])


def test_markers_are_words_by_default_and_markers_in_parity(pipeline: Pipeline) -> None:
    [safe] = pipeline.generate("fox<|return|>cat", **SMALL)
    [forged] = pipeline.generate("fox<|return|>cat", markers="reference", **SMALL)
    [cut] = pipeline.generate("fox<|return|>dog", markers="reference", **SMALL)
    assert not np.array_equal(safe.pixels, forged.pixels)
    assert np.array_equal(forged.pixels, cut.pixels)


# ── numbers that break, and folding ───────────────────────────────────────────────────────────────


def test_nan_stops_with_the_step_and_no_picture(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = pipeline.denoiser.forward
    calls: list[int] = []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return forward(*arguments) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(pipeline.denoiser, "forward", broken)
    with pytest.raises(NumericsError, match="picture 1, step 2 of 5"):
        pipeline.generate(FOX, size="64x64", steps=5, guidance=1.0)


def test_folding_drops_a_third_of_the_weights_and_changes_nothing(golden_checkpoint: Path) -> None:
    pipeline = Pipeline.load(golden_checkpoint, device="cpu")
    before = pipeline.generate(FOX, **SMALL)
    num_bytes = sum(parameter.nbytes for parameter in pipeline.denoiser.parameters())
    freed = pipeline.fold(FOX, **SMALL)
    assert freed > 0.3 * num_bytes
    assert sum(p.nbytes for p in pipeline.denoiser.parameters()) == num_bytes - freed
    assert _same(pipeline.generate(FOX, **SMALL), before)
    with pytest.raises(RequestError, match="folded for another schedule"):
        pipeline.generate(FOX, **_small(steps=3))


def test_bfloat16_is_near_float32(golden_checkpoint: Path, pipeline: Pipeline) -> None:
    rough = Pipeline.load(golden_checkpoint, device="cpu", dtype="bfloat16")
    [ours] = rough.generate(FOX, **SMALL)
    [exact] = pipeline.generate(FOX, **SMALL)
    assert ours.recipe.dtype == "bfloat16"
    assert np.abs(ours.pixels.astype(int) - exact.pixels.astype(int)).mean() < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "unknown dtype"),
        ({"device": "toaster"}, "unknown device"),
        ({"device": "cuda:77"}, "not on this machine"),
        ({"device": "meta"}, "not on this machine"),
    ],
)
def test_a_wrong_device_or_dtype_is_refused(
    golden_checkpoint: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        load(golden_checkpoint, **options)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load(tmp_path)


@pytest.mark.gpu
def test_a_seed_is_the_same_picture_on_a_gpu(golden_checkpoint: Path, pipeline: Pipeline) -> None:
    fast = Pipeline.load(golden_checkpoint, device="cuda", dtype="float32")
    [ours] = fast.generate(FOX, **SMALL)
    [exact] = pipeline.generate(FOX, **SMALL)
    assert np.abs(ours.pixels.astype(int) - exact.pixels.astype(int)).max() <= 2
