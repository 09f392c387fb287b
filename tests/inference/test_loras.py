"""LoRAs at inference: what may be asked for, what it does to a picture, how it is found again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import petzval
from petzval.errors import CheckpointError, RequestError
from petzval.inference.graphs import Function, GraphedDenoiser
from petzval.inference.loras import LoraChoice, choose_loras, parse_lora, recorded_loras
from petzval.inference.pipeline import Pipeline
from petzval.inference.recipe import Recipe, UsedLora
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import LowRank, layer_shapes, lora_sha256
from petzval.weights.lora_writing import TrainedLora, save_lora

SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 1.0}


def write_lora(file: Path, checkpoint: Path, seed: int, strength: float = 0.05) -> Path:
    """A random LoRA on the attention of a checkpoint's denoiser."""
    generator = torch.Generator().manual_seed(seed)
    shapes = layer_shapes(Checkpoint.open(checkpoint).denoiser_config)
    layers = {
        layer: LowRank(
            down=torch.randn(2, inputs, generator=generator),
            up=strength * torch.randn(outputs, 2, generator=generator),
        )
        for layer, (outputs, inputs) in shapes.items()
        if ".attn." in layer
    }
    return save_lora(file, TrainedLora(layers=layers, rank=2, alpha=2.0), "comfyui")


@pytest.fixture
def styles(golden_checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    first, second = (tmp_path / f"{name}.safetensors" for name in ("ink", "chalk"))
    return write_lora(first, golden_checkpoint, 0), write_lora(second, golden_checkpoint, 1)


def loaded(checkpoint: Path, lora: Any) -> Pipeline:
    return petzval.load(checkpoint, device="cpu", lora=lora)


# ── what may be asked for ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("ink", "ink", 1.0),
        ("ink:0.5", "ink", 0.5),
        ("ink:-2", "ink", -2.0),
        ("ink:1e-3", "ink", 1e-3),
        ("ink:0", "ink", 0.0),
        ("C:\\loras\\ink", "C:\\loras\\ink", 1.0),
        ("C:\\loras\\ink:0.25", "C:\\loras\\ink", 0.25),
        ("with:7", "with:7", 1.0),
        ("with:7:3", "with:7", 3.0),
        ("./ink:2", "ink", 2.0),
    ],
)
def test_a_weight_stands_behind_the_last_colon_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, weight: float
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in ("ink", "C:\\loras\\ink", "with:7"):
        Path(each).touch()
    assert parse_lora(text) == LoraChoice(path=Path(name), weight=weight)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ink:nan", "between -100 and 100, got nan"),
        ("ink:inf", "got inf"),
        ("ink:-1e999", "got -inf"),
        ("ink:101", "got 101.0"),
        ("ink:1_0", "cannot read the weight '1_0'"),
        ("ink:", "cannot read the weight ''"),
        ("ink:strong", "cannot read the weight 'strong'"),
        ("absent", "'absent' does not exist"),
        ("absent:0.5", "'absent' does not exist"),
        ("absent:strong", "'absent:strong' does not exist"),
        ("", "'' does not exist"),
        (":1", "':1' does not exist"),
        ("D:\\loras\\absent", "does not exist"),
        ("a\0b", "does not exist"),
        ("a" * 5000, "does not exist"),
    ],
)
def test_a_wrong_file_or_weight_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ink").touch()
    with pytest.raises(RequestError) as caught:
        parse_lora(text)
    assert said in caught.value.message
    assert caught.value.hint


def test_python_takes_one_or_several_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_shape_hook: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ink").touch()
    half = LoraChoice(path=Path("ink"), weight=0.5)
    assert choose_loras(()) == ()
    assert choose_loras("ink:0.5") == choose_loras(("ink", 0.5)) == (half,)
    assert choose_loras([("ink", 0.5), Path("ink"), "ink:0.5", half]) == (
        half, LoraChoice(path=Path("ink")), half, half,
    )  # fmt: skip
    for wrong in (("ink", float("nan")), [("ink", True)], [(Path("absent"), 1.0)]):
        with pytest.raises(RequestError):
            choose_loras(wrong)


# ── what it does ──────────────────────────────────────────────────────────────────────────────────


def test_weight_zero_gives_the_same_picture_and_another_weight_does_not(
    pipeline: Pipeline, golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    [without] = pipeline.generate("a red fox", **SMALL)
    [zero] = loaded(golden_checkpoint, (styles[0], 0.0)).generate("a red fox", **SMALL)
    assert np.array_equal(zero.pixels, without.pixels)
    [whole] = loaded(golden_checkpoint, styles[0]).generate("a red fox", **SMALL)
    assert not np.array_equal(whole.pixels, without.pixels)
    # The pipeline that was loaded without one still has the checkpoint's own weights.
    [again] = pipeline.generate("a red fox", **SMALL)
    assert again.encode() == without.encode()
    assert whole.recipe.checkpoint == without.recipe.checkpoint
    assert without.recipe.loras == ()


def test_two_at_once_are_their_sum(
    pipeline: Pipeline, golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    base = pipeline.denoiser.state_dict()
    alone = [loaded(golden_checkpoint, (style, 0.5)).denoiser.state_dict() for style in styles]
    both = loaded(golden_checkpoint, [(style, 0.5) for style in styles]).denoiser.state_dict()
    for key, weight in base.items():
        expected = weight + (alone[0][key] - weight) + (alone[1][key] - weight)
        assert torch.allclose(both[key], expected, atol=1e-6)
    twice = loaded(golden_checkpoint, [styles[0], styles[0]]).denoiser.state_dict()
    double = loaded(golden_checkpoint, (styles[0], 2.0)).denoiser.state_dict()
    assert all(torch.allclose(twice[key], double[key], atol=1e-6) for key in base)


def test_the_recipe_names_file_content_and_weight(
    golden_checkpoint: Path, styles: tuple[Path, Path], tmp_path: Path
) -> None:
    loras = [(styles[0], 0.5), (styles[1], -1.0)]
    [image] = loaded(golden_checkpoint, loras).generate("a red fox", **SMALL)
    path = image.save(tmp_path / "fox.png")
    recipe = petzval.read_recipe(path)
    assert recipe == image.recipe
    assert [(lora.file, lora.weight) for lora in recipe.loras] == [
        ("ink.safetensors", 0.5), ("chalk.safetensors", -1.0),
    ]  # fmt: skip
    found = recorded_loras(recipe, path)
    [again] = loaded(golden_checkpoint, found).generate("a red fox", **SMALL)
    assert again.encode() == path.read_bytes()


def test_a_lora_for_another_width_is_refused(styles: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"ink\.safetensors: key .* expected \[rank, 192\]"):
        petzval.load("mini", device="cpu", lora=styles[0])


# ── found again ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recipe(pipeline: Pipeline, styles: tuple[Path, Path]) -> Recipe:
    """Of a picture that was made with the first style, without making it."""
    plan = pipeline.plan("a red fox", **SMALL)
    used = UsedLora(file="ink.safetensors", sha256=lora_sha256(styles[0]), weight=0.5)
    return plan.recipe(plan.images[0], dataclasses.replace(pipeline._made_by, loras=(used,)))


def test_recorded_loras_are_looked_for_in_three_places(
    recipe: Recipe, styles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = styles[0].read_bytes()
    styles[0].unlink()
    places = [tmp_path / name for name in ("beside", "here", "loras")]
    for place in places:
        place.mkdir()
    monkeypatch.chdir(places[1])
    monkeypatch.setenv("PETZVAL_LORAS", str(places[2]))
    with pytest.raises(RequestError, match="'ink.safetensors'.*not here") as caught:
        recorded_loras(recipe, places[0] / "fox.png")
    assert "--lora" in caught.value.hint
    for place in reversed(places):
        (place / "ink.safetensors").write_bytes(content)
        [found] = recorded_loras(recipe, places[0] / "fox.png")
        assert found.path.resolve() == place / "ink.safetensors"
    # Another file of that name hides nothing.
    (places[0] / "ink.safetensors").write_bytes(styles[1].read_bytes())
    [found] = recorded_loras(recipe, places[0] / "fox.png")
    assert found.path.resolve() == places[1] / "ink.safetensors"
    for place in places:
        (place / "ink.safetensors").write_bytes(styles[1].read_bytes())
    with pytest.raises(RequestError, match="not the LoRA that the picture was made with"):
        recorded_loras(recipe, places[0] / "fox.png")


@pytest.mark.parametrize("name", ["../ink.safetensors", "/etc/passwd", "..", "", "a/b"])
def test_a_recipe_may_not_name_a_path(recipe: Recipe, tmp_path: Path, name: str) -> None:
    forged = dataclasses.replace(recipe, loras=(UsedLora(file=name, sha256="0", weight=1.0),))
    with pytest.raises(RequestError, match="by a path"):
        recorded_loras(forged, tmp_path / "fox.png")


class Recording:
    """In place of a CUDA graph."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._function = function

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        return self._function(*inputs)

    def release(self) -> None:
        pass


def test_live_loras_draw_what_merged_ones_do_and_change_between_pictures(
    golden_checkpoint: Path, styles: tuple[Path, Path]
) -> None:
    asked: dict[str, Any] = {"seed": 1, "size": "64x48", "steps": 2, "guidance": 1.0}
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    merged = Pipeline.load(golden_checkpoint, lora=[(styles[0], 0.5)], **options)
    live = Pipeline.load(golden_checkpoint, lora=[(styles[0], 1.0)], live_lora=True, **options)
    plain = Pipeline.load(golden_checkpoint, **options)

    def pixels(pipeline: Pipeline) -> Any:
        [image] = pipeline.generate("a fox", **asked)
        return image.pixels.astype(int), image.recipe.loras

    strong, _ = pixels(live)
    live.set_lora_weights(0.5)
    (got, used), (expected, _) = pixels(live), pixels(merged)
    assert abs(got - expected).max() <= 1  # summed in another order
    assert abs(strong - expected).max() > 1
    assert [lora.weight for lora in used] == [0.5]
    live.set_lora_weights(0)
    assert (pixels(live)[0] == pixels(plain)[0]).all()
    for wrong in ((), (1.0, 2.0), (float("nan"),)):
        with pytest.raises(RequestError):
            live.set_lora_weights(*wrong)
    with pytest.raises(RequestError, match="merged into the weights") as caught:
        merged.set_lora_weights(1.0)
    assert "live_lora=True" in caught.value.hint
    live.moving.graphs = GraphedDenoiser(live.denoiser, patience=0, capture=Recording)
    pixels(live)
    assert len(live.moving.graphs.graphs) == 1
    live.set_lora_weights(0.5)
    assert len(live.moving.graphs.graphs) == 0  # a recording knows the strength as a number
    assert (pixels(live)[0] == got).all()
    live.fold("a fox", **asked)
    with pytest.raises(RequestError, match="folded"):
        live.set_lora_weights(1.0)
