from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from petzval.errors import RequestError, ResolutionError
from petzval.inference.plan import make_plan
from petzval.inference.request import MAX_PROMPT_CHARACTERS, GenerationRequest
from petzval.inference.variants import Defaults
from petzval.resolution import Resolution

DEFAULTS = Defaults(steps=20, guidance=4.0, base=256)


def test_what_is_left_open_is_decided_by_the_checkpoint() -> None:
    plan = make_plan(GenerationRequest(prompt="a red fox"), DEFAULTS)
    assert plan.resolution == Resolution(256, 256)
    assert (plan.steps, plan.guidance) == (20, 4.0)
    assert plan.template_date == "2026-05-26"
    assert (plan.truncate, plan.markers) == ("keep_tail", "neutralise")
    assert [image.seed for image in plan.images] == [0]


def test_mu_is_the_empirical_one_unless_given() -> None:
    turbo = GenerationRequest(prompt="x", base=1024, steps=4)
    assert make_plan(turbo, DEFAULTS).mu == pytest.approx(2.291179894, abs=1e-9)
    given = GenerationRequest(prompt="x", mu=1.5)
    assert make_plan(given, DEFAULTS).mu == 1.5


def test_a_size_beyond_the_cliff_warns_unless_mu_is_given() -> None:
    between = GenerationRequest(prompt="x", height=1200, width=1200)
    with pytest.warns(UserWarning, match="mu"):
        make_plan(between, DEFAULTS)
    make_plan(GenerationRequest(prompt="x", height=1200, width=1200, mu=2.0), DEFAULTS)


def test_parity_decides_text_handling_and_date_unless_they_are_given() -> None:
    original = make_plan(GenerationRequest(prompt="x", parity="microsoft"), DEFAULTS)
    assert (original.truncate, original.markers) == ("reference", "reference")
    comfy = make_plan(GenerationRequest(prompt="x", parity="comfyui"), DEFAULTS)
    assert comfy.template_date == "2026-05-23"
    own = GenerationRequest(prompt="x", parity="comfyui", template_date="2025-01-01")
    assert make_plan(own, DEFAULTS).template_date == "2025-01-01"


def test_each_prompt_starts_from_the_same_seed() -> None:
    request = GenerationRequest(prompt=["a", "b"], seed=7, num_images=2)
    images = make_plan(request, DEFAULTS).images
    assert [(image.prompt, image.seed, image.index) for image in images] == [
        ("a", 7, 0), ("a", 8, 1), ("b", 7, 2), ("b", 8, 3),
    ]  # fmt: skip


def test_microsoft_mode_draws_one_seed_for_the_batch_and_a_list_one_by_one() -> None:
    shared = GenerationRequest(prompt=["a", "b"], seed=7, num_images=2, parity="microsoft")
    drawn = [(image.seed, image.noise_row) for image in make_plan(shared, DEFAULTS).images]
    assert drawn == [(7, 0), (7, 1), (7, 2), (7, 3)]
    listed = GenerationRequest(prompt="a", seed=[7, 9], num_images=2, parity="microsoft")
    drawn = [(image.seed, image.noise_row) for image in make_plan(listed, DEFAULTS).images]
    assert drawn == [(7, 0), (9, 0)]


def test_negative_prompts_go_with_all_prompts_or_with_each() -> None:
    request = GenerationRequest(prompt=["a", "b"], negative_prompt="  ")
    assert [i.negative_prompt for i in make_plan(request, DEFAULTS).images] == ["", ""]
    request = GenerationRequest(prompt=["a", "b"], negative_prompt=["", "blurry"])
    assert [i.negative_prompt for i in make_plan(request, DEFAULTS).images] == ["", "blurry"]
    with pytest.raises(RequestError, match="3 negative prompts for 2 prompts"):
        GenerationRequest(prompt=["a", "b"], negative_prompt=["", "", ""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": float("nan")}, "guidance must be between 0 and 100, got nan"),
        ({"guidance": float("inf")}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": "5"}, "guidance must be a number"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"steps": 10_000}, "steps must be between 1 and 1000"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"mu": float("nan")}, "mu"),
        ({"mu": 1000.0}, "mu"),
        ({"seed": -1}, "seed must be between"),
        ({"seed": 2**64}, "seed must be between"),
        ({"seed": "seven"}, "seed must be a whole number"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"seed": 2**63 - 1, "num_images": 2}, "seed"),
        ({"num_images": 0}, "num_images"),
        ({"num_images": None}, "num_images must be a whole number"),
        ({"max_tokens": None}, "max_tokens must be a whole number"),
        ({"num_images": 100_000}, "num_images must be between 1 and 1024"),
        ({"solver": "rk45"}, "unknown solver 'rk45'"),
        ({"parity": "torch"}, "unknown parity"),
        ({"truncate": "left"}, "unknown truncate"),
        ({"markers": "drop"}, "unknown markers"),
        ({"template_date": "2026-02-30"}, "template date"),
        ({"template_date": "yesterday"}, "template date"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"noise_row": -1}, "noise_row"),
        ({"prompt": ""}, "the prompt is blank"),
        ({"prompt": " \n\t\u3000"}, "the prompt is blank"),
        ({"prompt": ["a", ""]}, "one of the prompts is blank"),
        ({"prompt": []}, "prompts"),
        ({"prompt": None}, "prompt must be a text or a list of texts"),
        ({"prompt": ["a", 3]}, "prompt must be a text"),
        ({"prompt": b"a fox"}, "prompt must be a text"),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "characters"),
    ],
)
@pytest.mark.usefixtures("without_shape_hook")
def test_a_wrong_value_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"prompt": "a red fox"} | options
    with pytest.raises(RequestError, match=message) as caught:
        GenerationRequest(**given)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "size",
    [{"size": "1000x1000"}, {"height": 0, "width": 256}, {"height": -16, "width": 256},
     {"size": "1000000x1000000"}, {"aspect": "7:5"}, {"base": 7}, {"width": 256}],
)  # fmt: skip
def test_a_wrong_size_is_refused_with_a_hint(size: dict[str, Any]) -> None:
    with pytest.raises(ResolutionError) as caught:
        make_plan(GenerationRequest(prompt="a red fox", **size), DEFAULTS)
    assert caught.value.hint


@pytest.mark.usefixtures("without_shape_hook")
def test_numbers_of_numpy_are_numbers() -> None:
    options: dict[str, Any] = {
        "seed": np.int64(7), "steps": np.int32(3), "guidance": np.float32(1.5), "mu": np.float64(2),
        "height": np.int64(64), "width": np.int64(48), "num_images": np.uint8(2),
    }  # fmt: skip
    request = GenerationRequest(prompt="x", parity="microsoft", **options)
    assert request == GenerationRequest(
        prompt="x", parity="microsoft", seed=7, steps=3, guidance=1.5, mu=2.0,
        height=64, width=48, num_images=2,
    )  # fmt: skip
    plan = make_plan(request, DEFAULTS)
    assert [(image.seed, image.noise_row) for image in plan.images] == [(7, 0), (7, 1)]
    assert all(type(getattr(request, n)) in (int, float) for n in options)
    seeds: list[Any] = [np.int64(1), 2]
    listed = GenerationRequest(prompt="x", seed=seeds, num_images=2)
    assert listed.seed == (1, 2)


def _with(name: str, value: Any) -> GenerationRequest:
    options: dict[str, Any] = {"prompt": "x", name: value}
    return GenerationRequest(**options)


@pytest.mark.usefixtures("without_shape_hook")
@pytest.mark.parametrize("value", [np.bool_(True), np.float64("nan"), 10**400])
def test_odd_numbers_are_refused(value: Any) -> None:
    for name in ("guidance", "steps", "seed"):
        with pytest.raises(RequestError, match=name):
            _with(name, value)


def test_a_blank_prompt_is_drawn_where_it_is_meant() -> None:
    request = GenerationRequest(prompt="", allow_blank=True)
    assert make_plan(request, DEFAULTS).images[0].prompt == ""


def test_half_a_surrogate_pair_cannot_reach_a_file() -> None:
    assert GenerationRequest(prompt="fox \ud83e").prompts == ("fox \ufffd",)


def test_text_positions_must_fit_behind_a_huge_picture() -> None:
    request = GenerationRequest(
        prompt="x", height=65_536, width=16, allow_any_size=True, max_tokens=4096
    )
    with pytest.raises(RequestError, match="rotary positions"):
        make_plan(request, DEFAULTS)
