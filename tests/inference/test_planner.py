"""Plans of memory: amounts, what strategies need, and which of them is chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.config import from_mapping
from petzval.errors import ConfigError, PlacementError, RequestError
from petzval.inference.footprint import Footprints
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    Placement,
    Residence,
    Strategy,
    choose_storage,
    parse_bytes,
    spell_bytes,
)
from petzval.inference.planner import Budget, whole_seconds
from petzval.inference.planning import as_json
from petzval.inference.speeds import measure_speeds
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.source import total_bytes
from tests.inference.test_placement import WORK, planner_of
from tests.support import SPEEDS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(golden_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(golden_checkpoint)


# ── amounts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("8 gib", 8 * 2**30),
        ("1.5MB", 1_500_000),
        ("1234567", 1234567),
        ("2k", 0),
    ],
)
def test_amounts_of_memory(text: str, count: int) -> None:
    if count:
        assert parse_bytes(text) == count
    else:
        with pytest.raises(RequestError, match="as an amount of memory"):
            parse_bytes(text)


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.0GB", "1e9", "8 GB RAM", "9" * 40, "∞"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(RequestError, match="cannot read"):
        parse_bytes(text)


def test_a_bare_number_lacks_its_unit() -> None:
    with pytest.raises(RequestError, match="'8' has no unit") as caught:
        parse_bytes("8")
    assert "8GB" in caught.value.hint


def test_amounts_for_people() -> None:
    assert [spell_bytes(n) for n in (12, 3_400, 8_208_450_304)] == ["12 B", "3.4 kB", "8.21 GB"]


def test_storages_by_name() -> None:
    assert choose_storage("int4") == "int4"
    assert choose_storage("auto") == "auto"
    with pytest.raises(RequestError, match="unknown storage 'int2'"):
        choose_storage("int2")


# ── what is planned ───────────────────────────────────────────────────────────────────────────────


def test_every_strategy_needs_what_it_should(checkpoint: Checkpoint) -> None:
    footprints = Footprints(checkpoint, torch.float32, WORK, SPEEDS)

    def weights(network: str, residence: Residence, **more: Any) -> int:
        strategy = Strategy(residence=residence, device="cpu", **more)
        return footprints.of(network, strategy).weight_bytes

    denoiser = sum(p.nbytes for p in checkpoint.load_denoiser(torch.float32).parameters())
    assert weights(DENOISER, "resident") == weights(DENOISER, "staged") == denoiser
    folded = weights(DENOISER, "staged", folded=True)
    width, blocks = checkpoint.denoiser_config.hidden_size, checkpoint.denoiser_config.num_layers
    assert denoiser - folded == blocks * 2 * 4 * (6 * width * width + 6 * width)
    assert weights(DENOISER, "streamed", folded=True) < 0.6 * folded
    assert weights(DENOISER, "staged", folded=True, storage="int8") < 0.5 * folded
    assert weights(ENCODER, "streamed") < 0.5 * weights(ENCODER, "staged")
    assert weights(AUTOENCODER, "staged") == total_bytes(checkpoint.vae_source)
    strips = footprints.of(AUTOENCODER, Strategy(residence="staged", device="cpu", strip_rows=8))
    whole = footprints.of(AUTOENCODER, Strategy(residence="staged", device="cpu"))
    assert strips.working_bytes < 0.7 * whole.working_bytes


def test_the_fastest_that_fits_is_chosen(checkpoint: Checkpoint) -> None:
    planner = planner_of(checkpoint)
    free = planner.choose(Budget())
    assert all(each.strategy.residence == "resident" for each in free.networks)
    peaks = sorted({each.peak_bytes for each in planner.placements})
    for limit in peaks:
        chosen = planner.choose(Budget(memory=limit))
        assert chosen.peak_bytes <= limit
        rivals = [each for each in planner.placements if each.peak_bytes <= limit]
        assert whole_seconds(chosen) <= 1.06 * min(whole_seconds(each) for each in rivals)
    assert peaks[0] < 0.5 * peaks[-1]


def test_nothing_fits_and_the_hint_does(checkpoint: Checkpoint) -> None:
    planner = planner_of(checkpoint)
    with pytest.raises(PlacementError, match="no plan for 48x64 fits in 1 kB") as caught:
        planner.choose(Budget(memory=1000))
    amount = caught.value.hint.split("--memory ")[1].split(",")[0]
    assert planner.choose(Budget(memory=parse_bytes(amount))).peak_bytes <= parse_bytes(amount)


def test_where_nothing_exact_fits_the_quantised_plan_is_named_and_auto_takes_it(
    checkpoint: Checkpoint,
) -> None:
    exact, auto = planner_of(checkpoint), planner_of(checkpoint, storage="auto")
    quantised = {name: planner_of(checkpoint, storage=name) for name in ("int8", "int4")}
    least = {
        name: min(each.peak_bytes for each in planner.placements)
        for name, planner in {"exact": exact, **quantised}.items()
    }
    assert least["int4"] < least["int8"] < least["exact"]
    for name in least:
        chosen = auto.choose(Budget(memory=least[name]))
        assert chosen.of(DENOISER).strategy.storage == name
        assert chosen.peak_bytes <= least[name]
        if name != "exact":
            with pytest.raises(PlacementError) as caught:
                exact.choose(Budget(memory=least[name]))
            assert f"--quantise {name}: {chosen} needs" in caught.value.hint
    for planner in (exact, auto):
        with pytest.raises(PlacementError) as caught:
            planner.choose(Budget(memory=least["int4"] - 1))
        assert "--quantise" not in caught.value.hint
    with pytest.raises(PlacementError) as caught:
        quantised["int8"].choose(Budget(memory=least["int4"]))
    assert "--quantise int4" in caught.value.hint
    smallest = min(exact.placements, key=lambda each: each.peak_bytes)
    enough = int(least["int8"] / 0.9) + 2  # of which the next plan may need nine tenths
    more = enough - smallest.peak_bytes
    networks = (dataclasses.replace(n, kept_bytes=0) for n in smallest.networks)
    first, *others = networks
    kept = sum(each.kept_bytes for each in smallest.networks)
    first = dataclasses.replace(first, kept_bytes=kept + more)
    large = dataclasses.replace(smallest, networks=(first, *others))
    assert auto.smaller(large).of(DENOISER).strategy.storage == "int8"
    with pytest.raises(PlacementError) as caught:
        exact.smaller(large)
    assert "or --quantise int8" in caught.value.hint


def test_the_encoder_may_stay_in_ram_and_ram_has_its_own_limit(checkpoint: Checkpoint) -> None:
    planner = planner_of(checkpoint, device="meta")  # an accelerator that is not the CPU
    on_cpu = [each for each in planner.placements if each.of(ENCODER).strategy.device == "cpu"]
    assert on_cpu
    for each in on_cpu:  # the denoiser's layers pass through RAM, beside what stays there
        there = each.of(ENCODER).staying_bytes + each.of(DENOISER).host_bytes
        assert each.ram_bytes >= each.baseline_bytes + there
    assert min(each.peak_bytes for each in on_cpu) <= min(p.peak_bytes for p in planner.placements)
    least = min(planner.placements, key=lambda each: each.ram_bytes)
    assert planner.choose(Budget(ram=least.ram_bytes)).ram_bytes == least.ram_bytes
    with pytest.raises(PlacementError, match="of RAM"):
        planner.choose(Budget(ram=least.ram_bytes - 1))
    narrow = min(each.peak_bytes for each in planner.placements)
    with pytest.raises(PlacementError, match="of RAM beside") as caught:
        planner.choose(Budget(memory=narrow, ram=least.ram_bytes))
    enough = parse_bytes(caught.value.hint.removeprefix("give --ram ").split(",")[0])
    assert planner.choose(Budget(memory=narrow, ram=enough)).peak_bytes <= narrow


def test_smaller_and_smaller_ends(checkpoint: Checkpoint) -> None:
    planner = planner_of(checkpoint)
    placement, steps = planner.choose(Budget()), 0
    with pytest.raises(PlacementError, match="memory ran out, and no plan for 48x64"):
        while steps < 100:
            smaller = planner.smaller(placement)
            assert smaller.peak_bytes <= 0.9 * placement.peak_bytes
            placement, steps = smaller, steps + 1
    assert 2 <= steps < 20


def test_a_placement_is_a_value(checkpoint: Checkpoint) -> None:
    placement = planner_of(checkpoint).choose(Budget())
    document = json.loads(json.dumps(as_json(placement)))
    assert document["peak_bytes"] == placement.peak_bytes
    names = {field.name for field in dataclasses.fields(Placement)}
    again = from_mapping(Placement, {k: v for k, v in document.items() if k in names}, where="plan")
    assert again == placement


def test_speeds_are_measured_or_given(checkpoint: Checkpoint) -> None:
    found = measure_speeds(CPU, torch.float32, checkpoint.denoiser_source.files)
    assert min(dataclasses.astuple(found)) > 1e5
    with pytest.raises(ConfigError, match="flops"):
        dataclasses.replace(SPEEDS, flops=0.0)
