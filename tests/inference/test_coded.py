"""A quantised denoiser's file in memory as it is on the disk: planned for, followed, the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import AUTOENCODER, DENOISER, ENCODER, Placement
from petzval.inference.planner import Budget, Planner
from petzval.inference.planning import Planning
from petzval.inference.residency import Residency
from petzval.models.coded import CodedLinear
from tests.support import SPEEDS, TINY_CHECKPOINT
from tests.weights.formats import nvfp4, quantised_denoiser, saved, settings

SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 2.0, "seed": 3}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("coded") / "denoiser.safetensors"
    return saved(place, quantised_denoiser(nvfp4), settings("denoiser"))


@pytest.fixture(scope="module")
def loaded(file: Path) -> Pipeline:
    return Pipeline.load(TINY_CHECKPOINT, denoiser=file, device="cpu", dtype="float32")


def _planner(loaded: Pipeline, **changes: Any) -> Planner:
    planning = loaded.planning
    assert planning is not None
    work = planning.work(loaded.plan("two words", **SMALL))
    options: dict[str, Any] = {"baseline": 0} | changes
    dtype = options.pop("dtype", torch.float32)
    return Planner(planning.checkpoint, torch.device("cpu"), dtype, work, SPEEDS, **options)


def _coded(pipeline: Pipeline) -> int:
    return sum(isinstance(each, CodedLinear) for each in pipeline.networks.denoiser.modules())


def _of(planner: Planner, residence: str, *, folded: bool, coded: bool) -> Placement:
    """The one whose other networks are resident, the picture decoded at once."""
    for each in planner.placements:
        strategy = each.of(DENOISER).strategy
        others = (each.of(ENCODER).strategy, each.of(AUTOENCODER).strategy)
        if (
            (strategy.residence, strategy.folded, strategy.coded) == (residence, folded, coded)
            and all(other.residence == "resident" for other in others)
            and not others[1].strip_rows
        ):
            return each
    raise AssertionError((residence, folded, coded))


def test_without_a_limit_the_file_s_codes_are_kept(loaded: Pipeline) -> None:
    assert _coded(loaded) == 10 * loaded.networks.denoiser.config.num_layers
    assert loaded.placement is None


@pytest.mark.parametrize("residence", ["resident", "staged", "streamed"])
def test_every_plan_of_a_coded_file_draws_the_decoded_picture(
    loaded: Pipeline, residence: str
) -> None:
    """Resident and decoded is the reference; what is kept in codes is the same to the bit."""
    planner, planning = _planner(loaded), loaded.planning
    assert planning is not None
    pictures: list[bytes] = []
    for coded in (False, True):
        kept = "resident" if not coded else residence
        placement = _of(planner, kept, folded=kept == "streamed", coded=coded)
        pipeline = Pipeline(
            name=loaded.name,
            identity=loaded.identity,
            text=loaded.text,
            denoiser=loaded.denoiser,
            autoencoder=loaded.autoencoder,
            defaults=loaded.defaults,
            residency=planning.follow(placement),
            planning=planning,
        )
        assert bool(_coded(pipeline)) == coded
        pictures += [image.encode() for image in pipeline.generate("a red fox", **SMALL)]
    assert pictures[0] == pictures[1]


def test_codes_cost_less_memory_and_more_time_and_a_budget_decides(loaded: Pipeline) -> None:
    planner = _planner(loaded)
    decoded = _of(planner, "resident", folded=False, coded=False)
    coded = _of(planner, "resident", folded=False, coded=True)
    first, second = decoded.of(DENOISER), coded.of(DENOISER)
    matrices = sum(
        each.numel() * 4
        for name, each in _decoded_denoiser(loaded).named_parameters()
        if name.endswith(".weight") and each.dim() == 2 and (".attn." in name or "_mlp." in name)
    )
    assert first.weight_bytes - second.weight_bytes > 0.8 * matrices  # 4.5 bits for 32
    assert coded.further_seconds > decoded.further_seconds
    assert second.stored == first.stored
    assert second.stored[0][0] == "nvfp4" or "nvfp4" in dict(second.stored)
    assert not planner.choose(Budget()).of(DENOISER).strategy.coded
    least = min(each.peak_bytes for each in planner.placements)
    assert planner.choose(Budget(memory=least)).of(DENOISER).strategy.coded
    assert "coded as its file" in str(coded)


def _decoded_denoiser(loaded: Pipeline) -> torch.nn.Module:
    assert loaded.planning is not None
    return loaded.planning.checkpoint.load_denoiser(torch.float32)


def test_what_cannot_stay_in_codes_is_not_planned_for(loaded: Pipeline) -> None:
    for changes in ({"storage": "int8"}, {"dtype": torch.float16}):
        planner = _planner(loaded, **changes)
        assert not any(each.of(DENOISER).strategy.coded for each in planner.placements)
    plain = Pipeline.load(TINY_CHECKPOINT, device="cpu", dtype="float32")
    assert not any(each.of(DENOISER).strategy.coded for each in _planner(plain).placements)


def test_what_is_held_is_what_was_planned(loaded: Pipeline) -> None:
    planning = loaded.planning
    assert isinstance(planning, Planning)
    placement = _of(_planner(loaded), "resident", folded=False, coded=True)
    residency: Residency = planning.follow(placement)
    denoiser = residency.denoiser
    held = sum(each.nbytes for each in (*denoiser.parameters(), *denoiser.buffers()))
    assert held == placement.of(DENOISER).weight_bytes
