from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, cast

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

import petzval
import petzval.diffusers
from petzval.diffusers import LensAutoencoder, LensPipeline, LensTransformer2DModel
from petzval.diffusers.pipeline import PARTS
from petzval.errors import MissingExtraError, PetzvalError, RequestError
from tests.hub_server import serving
from tests.support import TINY_CHECKPOINT

SIZE: dict[str, Any] = {"height": 64, "width": 48}
EMBEDS = torch.zeros(1, 2, 3, 4)
HAS_ACCELERATE = importlib.util.find_spec("accelerate") is not None


@pytest.fixture(scope="module")
def pipe(golden_checkpoint: Path) -> LensPipeline:
    loaded = LensPipeline.from_pretrained(golden_checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def ours(golden_checkpoint: Path) -> petzval.Pipeline:
    return petzval.load(golden_checkpoint, device="cpu", dtype="float32")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: LensPipeline, prompt: Any = "a red fox", **options: Any) -> Any:
    """The pictures of a small request; the options may change any of it."""
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, **SIZE}
    if "latents" not in options:
        settings["generator"] = seeded(7)
    result = pipe(prompt, **(settings | options))
    return cast("Any", result).images


def pixels(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(image)


def own_pixels(ours: petzval.Pipeline, prompt: str = "a red fox", **options: Any) -> Any:
    settings: dict[str, Any] = {"seed": 7, "size": "48x64", "steps": 2, "guidance": 4.0}
    [picture] = ours.generate(prompt, **(settings | options))
    return picture.pixels


def test_it_is_a_pipeline_of_diffusers_with_its_parts(pipe: LensPipeline) -> None:
    assert isinstance(pipe, DiffusionPipeline)
    assert isinstance(pipe.transformer, ModelMixin) and isinstance(pipe.vae, ModelMixin)
    assert set(pipe.components) == {"scheduler", "vae", "text_encoder", "tokenizer", "transformer"}
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    assert pipe.transformer.config["num_layers"] == pipe.transformer.network.config.num_layers
    again = LensPipeline(**pipe.components)
    assert again.transformer is pipe.transformer


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ({}, {}),
        ({"guidance_scale": 1.0}, {"guidance": 1.0}),
        ({"negative_prompt": "blurry and dark"}, {"negative_prompt": "blurry and dark"}),
        ({"num_inference_steps": 5, "mu": 1.5}, {"steps": 5, "mu": 1.5}),
        ({"template_date": "2026-01-31"}, {"template_date": "2026-01-31"}),
        ({"max_sequence_length": 121}, {"max_tokens": 121}),
    ],
)
@pytest.mark.filterwarnings("ignore::petzval.conditioning.encoder.PromptTruncatedWarning")
def test_the_same_seed_makes_the_same_picture_as_our_own_pipeline(
    pipe: LensPipeline, ours: petzval.Pipeline, theirs: dict[str, Any], own: dict[str, Any]
) -> None:
    [image] = draw(pipe, **theirs)
    assert np.array_equal(pixels(image), own_pixels(ours, **own))


def test_so_it_does_with_the_checkpoint_that_ships_inside() -> None:
    mini = LensPipeline.from_pretrained("mini")
    mini.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 3}
    result = cast("Any", mini("a red apple on a blue background", generator=seeded(3), **options))
    own = petzval.load("mini", device="cpu", dtype="float32")
    [picture] = own.generate("a red apple on a blue background", seed=3, size="128x128", steps=3)
    assert np.array_equal(pixels(result.images[0]), picture.pixels)
    assert mini.guidance_scale == own.defaults.guidance != 1.0


def test_in_bfloat16_too(golden_checkpoint: Path) -> None:
    pipe = LensPipeline.from_pretrained(golden_checkpoint, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    ours = petzval.load(golden_checkpoint, device="cpu", dtype="bfloat16")
    [image] = draw(pipe)
    assert pipe.dtype == torch.bfloat16
    assert np.array_equal(pixels(image), own_pixels(ours))


def test_a_cast_leaves_the_token_statistics_exact(golden_checkpoint: Path) -> None:
    pipe = LensPipeline.from_pretrained(golden_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    before = pipe.vae.network.bn.running_var.clone()
    pipe.to(torch.bfloat16)
    assert pipe.vae.network.bn.running_var.dtype == torch.float32
    assert torch.equal(pipe.vae.network.bn.running_var, before)
    assert pipe.vae.dtype == torch.bfloat16
    [image] = draw(pipe)
    assert pixels(image).std() > 0


def test_prompts_of_different_lengths_make_the_pictures_that_each_makes_alone(
    pipe: LensPipeline, ours: petzval.Pipeline
) -> None:
    prompts = ["a red fox", "a very long road through the hills at night", "a red fox"]
    negatives = ["", "fog", "a boat"]
    images = draw(
        pipe,
        prompts,
        negative_prompt=negatives,
        num_images_per_prompt=2,
        generator=[seeded(seed) for seed in (1, 2, 1, 2, 1, 2)],
    )
    assert len(images) == 6
    for index, image in enumerate(images):
        alone = own_pixels(
            ours,
            prompts[index // 2],
            negative_prompt=negatives[index // 2],
            seed=1 + index % 2,
        )
        difference = np.abs(pixels(image).astype(int) - alone.astype(int))
        assert difference.max() <= 1


def test_every_output_type_is_the_same_picture(pipe: LensPipeline) -> None:
    [image] = draw(pipe)
    as_numpy = draw(pipe, output_type="np")
    as_tensor = draw(pipe, output_type="pt")
    latents = draw(pipe, output_type="latent")
    assert as_numpy.shape == (1, 64, 48, 3) and as_tensor.shape == (1, 3, 64, 48)
    assert np.array_equal(as_numpy, as_tensor.permute(0, 2, 3, 1).numpy())
    assert as_numpy.min() >= 0 and as_numpy.max() <= 1
    assert np.abs(as_numpy[0] * 255 - pixels(image)).max() <= 1.001
    decoded = pipe.vae.decode_tokens(latents, (4, 3))
    assert torch.allclose((decoded / 2 + 0.5).clamp(0, 1), as_tensor)
    pair = pipe("a red fox", generator=seeded(7), num_inference_steps=2, return_dict=False, **SIZE)
    assert isinstance(pair, tuple) and len(pair) == 1


def test_given_latents_are_the_noise(pipe: LensPipeline) -> None:
    noise = torch.randn(1, 12, 128, generator=seeded(7))
    assert np.array_equal(pixels(draw(pipe, latents=noise)[0]), pixels(draw(pipe)[0]))


def test_embeddings_stand_for_the_prompt(pipe: LensPipeline, golden_checkpoint: Path) -> None:
    embeds, mask = pipe.encode_prompt(["a red fox", "a long road at night"])
    negative, negative_mask = pipe.encode_prompt("fog")
    assert mask.shape == embeds.shape[:2] and not mask.all()
    bare = LensPipeline.from_pretrained(golden_checkpoint, text_encoder=None, tokenizer=None)
    bare.set_progress_bar_config(disable=True)
    images = draw(
        bare,
        None,
        prompt_embeds=embeds,
        prompt_embeds_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_embeds_mask=negative_mask,
        generator=[seeded(7), seeded(8)],
    )
    [alone] = draw(pipe, negative_prompt="fog")
    assert np.abs(pixels(images[0]).astype(int) - pixels(alone).astype(int)).max() <= 1
    with pytest.raises(RequestError, match="no text encoder"):
        draw(bare)


def test_a_callback_sees_the_tensors_and_may_replace_them(pipe: LensPipeline) -> None:
    seen: list[tuple[int, float, set[str]]] = []

    def watch(own: LensPipeline, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert own is pipe and own.num_timesteps == 3
        seen.append((step, float(time), set(tensors)))
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    options = {"num_inference_steps": 3, "callback_on_step_end_tensor_inputs": names}
    watched = draw(pipe, callback_on_step_end=watch, **options)
    assert np.array_equal(pixels(watched[0]), pixels(draw(pipe, num_inference_steps=3)[0]))
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000.0 and all(each == set(names) for *_, each in seen)

    def blank(_: LensPipeline, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del step, time
        return {"latents": torch.zeros_like(tensors["latents"]), "ignored": 3}

    grey = draw(pipe, callback_on_step_end=blank, output_type="latent")
    assert not grey.any()


def test_a_callback_may_change_the_text_or_the_guidance_on_the_way(pipe: LensPipeline) -> None:
    plain, _ = pipe.encode_prompt("a red fox")
    other = plain.flip(1)

    def change(_: LensPipeline, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del time
        return {"prompt_embeds": other} if step == 0 else tensors

    changed = draw(
        pipe,
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        output_type="latent",
    )
    assert not torch.allclose(changed, draw(pipe, output_type="latent"))

    def unguide(own: LensPipeline, step: int, time: Any, tensors: dict[str, Any]) -> None:
        del step, time, tensors
        own._guidance_scale = 1.0

    late = draw(pipe, callback_on_step_end=unguide, output_type="latent")
    assert not torch.allclose(late, draw(pipe, output_type="latent"))


def test_a_callback_may_end_the_call(pipe: LensPipeline) -> None:
    steps: list[int] = []

    def stop(own: LensPipeline, step: int, time: Any, tensors: dict[str, Any]) -> None:
        del time, tensors
        steps.append(step)
        own._interrupt = step == 1

    [image] = draw(pipe, num_inference_steps=6, callback_on_step_end=stop)
    assert steps == [0, 1] and pipe.interrupt
    assert image.size == (48, 64)
    draw(pipe)
    assert not pipe.interrupt


def test_another_scheduler_for_flows_can_be_set(golden_checkpoint: Path) -> None:
    pipe = LensPipeline.from_pretrained(golden_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    [euler] = draw(pipe, num_inference_steps=3)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    [heun] = draw(pipe, num_inference_steps=3)
    assert pipe.num_timesteps == 5
    assert not np.array_equal(pixels(heun), pixels(euler))
    with pytest.raises(RequestError, match="holds no FlowMatchHeun"):
        pipe.save_pretrained(golden_checkpoint.parent / "never")


def test_what_is_saved_is_a_published_folder_that_both_sides_read(
    pipe: LensPipeline, golden_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    pipe.save_pretrained(tmp_path / "copy", max_shard_size="2MB")
    assert (tmp_path / "copy/transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    assert index == json.loads((golden_checkpoint / "model_index.json").read_text())
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.py"))
    [image] = draw(pipe)
    again = LensPipeline.from_pretrained(tmp_path / "copy")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(pixels(draw(again)[0]), pixels(image))
    assert again.defaults == pipe.defaults
    ours = petzval.load(tmp_path / "copy", device="cpu", dtype="float32")
    assert np.array_equal(own_pixels(ours), pixels(image))


def test_a_network_is_saved_and_loaded_by_itself(
    pipe: LensPipeline, golden_checkpoint: Path, tmp_path: Path
) -> None:
    pipe.transformer.save_pretrained(tmp_path / "denoiser")
    pipe.vae.save_pretrained(tmp_path / "vae")
    denoiser = LensTransformer2DModel.from_pretrained(tmp_path / "denoiser")
    vae = LensAutoencoder.from_pretrained(golden_checkpoint, subfolder="vae")
    mixed = LensPipeline.from_pretrained(golden_checkpoint, transformer=denoiser, vae=vae)
    mixed.set_progress_bar_config(disable=True)
    assert mixed.transformer is denoiser
    assert np.array_equal(pixels(draw(mixed)[0]), pixels(draw(pipe)[0]))
    half = LensTransformer2DModel.from_pretrained(
        golden_checkpoint, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    assert half.dtype == torch.bfloat16
    with pytest.raises(PetzvalError):
        LensTransformer2DModel.from_pretrained(tmp_path / "vae")


def test_a_picture_and_back_through_the_autoencoder(pipe: LensPipeline) -> None:
    image = torch.zeros(1, 3, 32, 32)
    assert pipe.vae(image).shape == image.shape


def test_a_repository_is_fetched_and_afterwards_here(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as hub:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
        hub.add_folder("someone/Tiny", golden_checkpoint)
        hub.files["someone/Tiny"]["pipeline.py"] = b"raise SystemExit"
        hub.files["someone/Tiny"]["transformer/quantization_config.json"] = b"{}"
        with pytest.raises(PetzvalError, match="is not in"):
            LensPipeline.from_pretrained("someone/Tiny", local_files_only=True)
        pipe = LensPipeline.from_pretrained("someone/Tiny")
        asked = len(hub.log)
        assert not hub.asked_for("pipeline.py")
        assert hub.asked_for("transformer/quantization_config.json")
        again = LensPipeline.from_pretrained("someone/Tiny", transformer=pipe.transformer)
        assert len(hub.log) == asked
        assert again.name_or_path == "someone/Tiny"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("no such model", {}, "unknown model"),
        ("../evil", {}, "neither a folder nor owner/name"),
        ("a/b", {"revision": "../x"}, "neither a branch nor a commit"),
        ("mini", {"device_map": "auto"}, "no argument 'device_map'"),
        ("mini", {"torch_dtype": torch.float16}, "float16 overflows"),
        ("mini", {"dtype": torch.int8}, "unknown dtype"),
    ],
)
def test_what_cannot_be_loaded_is_told(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        LensPipeline.from_pretrained(name, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt": []}, "a prompt is a text"),
        ({"prompt_embeds_mask": torch.ones(1, 9), "prompt": None, "prompt_embeds": EMBEDS}, "fit"),
        ({"prompt_embeds": EMBEDS}, "either prompt or prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 3)}, "prompt_embeds of shape"),
        ({"negative_prompt_embeds": torch.zeros(2)}, "negative_prompt_embeds of shape"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"height": 100}, "16-pixel grid"),
        ({"aspect_ratio": "1:1"}, "more than one way"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_images_per_prompt": 0}, "at least 1"),
        ({"output_type": "jpeg"}, "unknown output_type"),
        ({"callback_on_step_end_tensor_inputs": ["secrets"]}, "'secrets'"),
        ({"generator": [seeded(0), seeded(1)]}, "2 generators for 1 pictures"),
        ({"latents": torch.zeros(1, 3, 4)}, "latents of shape"),
        ({"template_date": "yesterday"}, "date"),
    ],
)
def test_a_request_that_cannot_be_served_is_told(
    pipe: LensPipeline, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        draw(pipe, **options)


def test_a_prompt_that_is_no_text_is_told(
    pipe: LensPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for prompt in (["a", 3], 3.5, {"a": 1}.values()):
        with pytest.raises(RequestError, match="a prompt is a text"):
            draw(pipe, prompt)


def test_a_negative_prompt_or_a_generator_that_is_none_of_its_kind_is_told(
    pipe: LensPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for negative in (["a", None], 3.5, [], b"blurry"):
        with pytest.raises(RequestError, match="a negative prompt is a text"):
            draw(pipe, negative_prompt=negative)
    for generator in (3, [3]):
        with pytest.raises(RequestError, match="a generator is one of torch's"):
            draw(pipe, generator=generator)


def test_no_negative_prompt_is_a_blank_one(pipe: LensPipeline) -> None:
    """Where diffusers' pipelines have None, their callers pass it on."""
    pictures = [
        draw(pipe, guidance_scale=4.0, output_type="np", **options)
        for options in ({}, {"negative_prompt": None}, {"negative_prompt": " "})
    ]
    assert all(np.array_equal(pictures[0], each) for each in pictures)


def test_arguments_that_ask_for_nothing_are_passed_over() -> None:
    nothing: dict[str, Any] = {
        "use_safetensors": True,
        "variant": None,
        "low_cpu_mem_usage": True,
        "trust_remote_code": False,
        "token": None,
        "device_map": None,
    }
    pipe = LensPipeline.from_pretrained(TINY_CHECKPOINT, **nothing)
    assert sorted(pipe.components) == sorted(PARTS)
    folder = TINY_CHECKPOINT / "vae"
    assert isinstance(LensAutoencoder.from_pretrained(folder, **nothing), LensAutoencoder)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"variant": "fp16"}, "torch_dtype casts"),
        ({"use_safetensors": False}, "never read"),
        ({"token": "hf_secret"}, "set HF_TOKEN"),
        ({"cache_dir": "somewhere"}, "set HF_HUB_CACHE"),
        ({"device_map": "balanced"}, "enable_model_cpu_offload"),
        ({"safety_checker": None}, "parts are scheduler, vae"),
    ],
)
def test_arguments_that_would_ask_for_something_are_told_what_does_it(
    options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(RequestError) as caught:
        LensPipeline.from_pretrained(TINY_CHECKPOINT, **options)
    assert next(iter(options)) in caught.value.message
    assert "hf_secret" not in str(caught.value)
    assert hint in caught.value.hint


def test_a_mask_with_holes_is_refused(pipe: LensPipeline) -> None:
    embeds, mask = pipe.encode_prompt("a red fox")
    mask[0, 0] = False
    with pytest.raises(RequestError, match="holes"):
        draw(pipe, None, prompt_embeds=embeds, prompt_embeds_mask=mask)


@pytest.mark.parametrize(
    "options",
    [
        {"safe_serialization": False},
        {"push_to_hub": True},
        {"variant": "fp16"},
        {"repo_id": "a/b"},
        {"max_shard_size": "big"},
    ],
)
def test_no_pickle_is_written_and_nothing_sent(
    pipe: LensPipeline, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(RequestError):
        pipe.transformer.save_pretrained(tmp_path / "copy", **options)
    with pytest.raises(RequestError):
        pipe.save_pretrained(tmp_path / "copy", **options)
    assert not (tmp_path / "copy").exists()


@pytest.mark.skipif(not HAS_ACCELERATE, reason="needs accelerate")
def test_offloaded_networks_are_moved_in_turn_and_make_the_same_picture(
    golden_checkpoint: Path, pipe: LensPipeline
) -> None:
    offloaded = LensPipeline.from_pretrained(golden_checkpoint)
    offloaded.set_progress_bar_config(disable=True)
    # Without a GPU the hooks move from the CPU to the CPU; that they are asked is what counts.
    offloaded.enable_model_cpu_offload(device="cpu")
    asked: list[str] = []
    for name in ("text_encoder", "transformer", "vae"):
        hook = getattr(offloaded, name)._hf_hook
        original = hook.pre_forward

        def asking(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            asked.append(_name)
            return _original(*args, **kwargs)

        hook.pre_forward = asking
    [image] = draw(offloaded)
    assert list(dict.fromkeys(asked)) == ["text_encoder", "transformer", "vae"]
    assert np.array_equal(pixels(image), pixels(draw(pipe)[0]))
    assert np.array_equal(pixels(draw(offloaded)[0]), pixels(image))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_ACCELERATE, reason="needs accelerate")
def test_offloaded_networks_leave_the_gpu(golden_checkpoint: Path) -> None:
    offloaded = LensPipeline.from_pretrained(golden_checkpoint)
    offloaded.enable_model_cpu_offload()
    [image] = draw(offloaded)
    assert image.size == (48, 64)
    assert offloaded.transformer.device.type == "cpu"


def test_what_offloading_needs_and_cannot_do_is_told(
    pipe: LensPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petzval.diffusers.pipeline.is_accelerate_available", lambda: False)
    with pytest.raises(MissingExtraError, match="accelerate") as caught:
        pipe.enable_model_cpu_offload()
    assert "petzval[diffusers]" in caught.value.hint
    with pytest.raises(RequestError, match="enable_model_cpu_offload"):
        pipe.enable_sequential_cpu_offload()


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("petzval.diffusers."):
            monkeypatch.delitem(sys.modules, name)
        if name.partition(".")[0] == "diffusers":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="'diffusers'") as caught:
        petzval.diffusers.__getattr__("LensPipeline")
    assert caught.value.hint == "pip install 'petzval[diffusers]'"
    with pytest.raises(AttributeError):
        petzval.diffusers.__getattr__("Draw")
