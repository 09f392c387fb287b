"""Plans for the published sizes, on cards that this machine need not have.

Headers and holes stand for the files, so that what is held here is what `petzval plan` prints:
sums that were counted by hand from the published shapes, and the targets of memory.
"""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace

import pytest
import torch

from benchmarks.random_checkpoint import write_random_checkpoint
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import from_mapping
from petzval.errors import CheckpointError, PlacementError
from petzval.inference import lone_encoder
from petzval.inference.dry_networks import Work
from petzval.inference.forms import Reckoned
from petzval.inference.opening import open_checkpoint
from petzval.inference.placement import AUTOENCODER, DENOISER, ENCODER, Placement, Strategy
from petzval.inference.planner import Budget, Planner
from petzval.inference.planning import Planning
from petzval.inference.speeds import Speeds
from petzval.inference.variants import locate
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.registry import find_mirror
from petzval.weights.unfetched import unfetched_component
from tests.conftest import REPOSITORY

GIBIBYTE = 2**30
CUDA = torch.device("cuda")
TURBO = Work(grid=(64, 64), calls=4, branches=1)
SPEEDS = Speeds(
    flops=1e14,
    cpu_flops=2e11,
    decoded=3e10,
    cpu_decoded=3e8,
    copied=6e11,
    cpu_copied=2e10,
    cleared=2e9,
    read=2e9,
    sent=2e10,
)
"""A card of 100 TFLOP/s on PCIe 4.0, a good disk, a desktop's CPU."""


RECKONED = Reckoned()
"""Of `full_size`."""


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("hollow") / "full"
    write_random_checkpoint(folder, hollow=True)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def turbo(full_size: Checkpoint) -> Planner:
    return _planner(full_size, TURBO)


def _planner(checkpoint: Checkpoint, work: Work, dtype: torch.dtype = torch.bfloat16) -> Planner:
    return Planner(checkpoint, CUDA, dtype, work, SPEEDS, baseline=400_000_000, reckoned=RECKONED)


def _residences(placement: Placement) -> list[str]:
    return [f"{each.strategy.residence} on {each.strategy.device}" for each in placement.networks]


def test_weights_are_those_counted_by_hand(turbo: Planner) -> None:
    resident = turbo.choose(Budget())
    assert _residences(resident) == ["resident on cuda"] * 3
    denoiser = resident.of(DENOISER)
    assert denoiser.weight_bytes == 8_208_450_304
    folded = next(
        each.of(DENOISER)
        for each in turbo.placements
        if each.of(DENOISER).strategy.folded and each.of(DENOISER).strategy.residence == "resident"
    )
    assert denoiser.weight_bytes - folded.weight_bytes == 2 * 1_359_839_232  # modulation
    rows = (97 + TURBO.text_tokens) * 2**16  # pages of the table around each token
    assert resident.of(ENCODER).weight_bytes == 11_444_725_248 + rows
    parameters = 49_620_259 + 34_425_856
    assert resident.of(AUTOENCODER).weight_bytes == 2 * parameters + 4 * 256 + 8
    # 48 blocks of 2 x 6 widths and the last norm's two, in bfloat16, for each call
    assert denoiser.kept_bytes == 4 * (48 * 12 + 2) * 1536 * 2
    assert resident.of(ENCODER).kept_bytes == 4 * 2880 * TURBO.text_tokens * 2


def test_the_targets_of_memory(turbo: Planner) -> None:
    everything = turbo.choose(Budget(memory=17 * GIBIBYTE))
    assert _residences(everything) == ["resident on cuda"] * 3
    assert everything.exact
    streamed = turbo.choose(Budget(memory=2 * GIBIBYTE))
    assert streamed.exact
    assert _residences(streamed)[:2] == ["streamed on cuda"] * 2
    assert streamed.peak_bytes <= 2 * GIBIBYTE
    assert streamed.ram_bytes <= 2 * GIBIBYTE


def test_the_guide_s_table_is_what_is_planned() -> None:
    """For the published files, with the speeds that the guide gives as an example."""
    guide = (REPOSITORY / "docs/guides/memory.md").read_text(encoding="utf-8")
    example = guide[guide.index('{"flops"') :].split("}")[0] + "}"
    speeds = from_mapping(Speeds, json.loads(example), where="guide")
    published = open_checkpoint(locate("lens-turbo", unfetched=True))
    planner = Planner(published, CUDA, torch.bfloat16, TURBO, speeds, baseline=400_000_000)
    table = guide.split("| `--memory` | encoder |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 8
    for row in table:
        memory, *strategies, peak, seconds = (cell.strip() for cell in row.strip("|").split("|"))
        plan = planner.choose(Budget.of(memory, None))
        assert [str(each.strategy) for each in plan.networks] == strategies
        assert f"{plan.peak_bytes / GIBIBYTE:.2f} GiB" == peak
        assert f"{plan.other_seconds:.1f} s" == seconds


@pytest.mark.parametrize(
    ("gibibytes", "kept", "seconds", "without"),
    [(4, (0, 24, 0), 14.8, 21.7), (12, (12, 0, 0), 5.2, 8.8), (16, (21, 0, 0), 2.4, 5.7)],
)
def test_room_that_is_left_keeps_layers(
    turbo: Planner,
    monkeypatch: pytest.MonkeyPatch,
    gibibytes: int,
    kept: tuple[int, ...],
    seconds: float,
    without: float,
) -> None:
    """Of the network whose coming and going takes longest; docs/guides/memory.md states these."""
    budget = Budget(memory=gibibytes * GIBIBYTE)
    plan = turbo.choose(budget)
    assert plan.exact
    assert plan.peak_bytes <= gibibytes * GIBIBYTE
    assert tuple(each.strategy.kept_layers for each in plan.networks) == kept
    assert plan.other_seconds == pytest.approx(seconds, abs=0.051)
    every = [x for x in turbo.placements if not any(n.strategy.kept_layers for n in x.networks)]
    monkeypatch.setattr(turbo, "_placements", {"exact": every})
    assert turbo.choose(budget).other_seconds == pytest.approx(without, abs=0.051)


def test_a_lone_encoder_keeps_layers_in_the_room_that_is_left(full_size: Checkpoint) -> None:
    """The last one, that is: those before it leave the room to it."""

    def strategy(gibibytes: float, *, beside: int = 0, last: bool = True) -> Strategy:
        planning = Planning(
            checkpoint=full_size,
            tokenizer=PromptTokenizer(full_size.tokenizer),
            device=CUDA,
            dtype=torch.bfloat16,
            budget=Budget(memory=int(gibibytes * GIBIBYTE)),
            speeds=SPEEDS,
        )
        return lone_encoder._strategy(planning, beside, last=last)[0]

    kept = [strategy(size).kept_layers for size in (2, 4, 6, 8, 10)]
    assert kept[0] == 0 < kept[1] < kept[2] < kept[3] < kept[4] < 24
    assert strategy(13).residence == "resident"
    assert strategy(8, last=False) == strategy(2)
    assert strategy(13, last=False) == strategy(13)
    assert strategy(10, beside=2 * GIBIBYTE) == strategy(8)
    with pytest.raises(PlacementError, match="the text encoder alone needs"):
        strategy(1)


@pytest.mark.parametrize(("side", "branches"), [(64, 1), (90, 2)])
def test_a_larger_card_is_never_slower(full_size: Checkpoint, side: int, branches: int) -> None:
    calls = 4 if branches == 1 else 20
    planner = _planner(full_size, Work(grid=(side, side), calls=calls, branches=branches))
    plans = [
        planner.choose(Budget(memory=gigabytes * 10**9)) for gigabytes in (4, 6, 8, 12, 16, 24)
    ]
    for smaller, larger in zip(plans, plans[1:], strict=False):
        assert larger.other_seconds <= 1.02 * smaller.other_seconds
    for plan in plans:
        # A minute of the CPU's decoding is never taken for a second of the card's.
        assert plan.of(ENCODER).strategy.device == "cuda"
        assert plan.exact
    assert _residences(plans[-1]) == ["resident on cuda"] * 3


def test_a_card_without_bfloat16_is_planned_for_too(full_size: Checkpoint) -> None:
    planner = _planner(full_size, TURBO, torch.float16)
    plan = planner.choose(Budget(memory=6 * 10**9))
    assert plan.exact
    # The decoder is in float32 there: twice the bytes of bfloat16's.
    assert plan.of(AUTOENCODER).weight_bytes > 4 * 84_000_000
    with pytest.raises(PlacementError, match="no plan for 1024x1024 fits in 1 GB"):
        planner.choose(Budget(memory=10**9))


def test_a_blank_negative_prompt_costs_the_encoder_nothing(full_size: Checkpoint) -> None:
    one = Work(grid=(4, 4), calls=2, branches=2)
    two = Work(grid=(4, 4), calls=2, branches=2, texts=2)
    encoders = [_planner(full_size, work).choose(Budget()).of(ENCODER) for work in (one, two)]
    assert encoders[1].kept_bytes == 2 * encoders[0].kept_bytes
    assert encoders[1].other_seconds == pytest.approx(2 * encoders[0].other_seconds)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sizes_that_are_known_without_files_give_the_plans_of_the_files(
    full_size: Checkpoint, device: str
) -> None:
    located = locate("lens-turbo-sceneworks", unfetched=True)
    assert located.unfetched is not None
    unfetched = open_checkpoint(located)
    place, budget = torch.device(device), Budget(memory=8 * 10**9)
    here, there = (
        Planner(each, place, torch.bfloat16, TURBO, SPEEDS, baseline=400_000_000).choose(budget)
        for each in (full_size, unfetched)
    )
    for mine, its in zip(here.networks, there.networks, strict=True):
        if mine.network == ENCODER:  # the published one has a head as well, which is not used
            assert sum(dict(its.stored).values()) == 13_761_264_768
        assert replace(its, stored=mine.stored) == mine
    with pytest.raises(CheckpointError, match="cannot be read"):
        unfetched.denoiser_source.read("img_in.weight")


def test_what_was_reckoned_before_gives_the_same_plans_in_no_time(
    full_size: Checkpoint, turbo: Planner
) -> None:
    assert turbo.placements  # forms and runs of another size are known
    other = replace(TURBO, grid=(48, 80), text_tokens=96)
    fresh = Planner(full_size, CUDA, torch.bfloat16, other, SPEEDS, baseline=400_000_000)
    assert _planner(full_size, other).placements == fresh.placements
    start = time.process_time()
    assert _planner(full_size, other).placements == fresh.placements
    assert time.process_time() - start < 0.3  # some milliseconds where nothing else runs


def test_seconds_count_all_that_takes_time(full_size: Checkpoint) -> None:
    """On a machine where nothing but one thing takes any, at a byte a second."""
    never = {field.name: 1e30 for field in fields(Speeds)}

    def plans(**slow: float) -> dict[str, Placement]:
        speeds, cpu = Speeds(**(never | slow)), torch.device("cpu")
        planner = Planner(
            full_size, cpu, torch.float32, TURBO, speeds, baseline=0, reckoned=RECKONED
        )
        return {
            residence: next(
                replace(each, clears=True)
                for each in planner.placements
                if _residences(each)[:2] == [f"{residence} on cpu"] * 2
                and each.of(DENOISER).strategy.folded
                and not any(one.strategy.kept_layers for one in each.networks)
            )
            for residence in ("resident", "streamed")
        }

    copied, cleared = plans(cpu_copied=1.0), plans(cleared=1.0)
    of_blocks = (8_208_450_304 - 2 * 1_359_839_232) / 2  # numbers, nearly all of them in blocks
    streamed, resident = (copied[name].of(DENOISER) for name in ("streamed", "resident"))
    # bfloat16 becomes float32 at each of four calls: two bytes are read and four are written.
    converting = streamed.further_seconds - resident.further_seconds
    assert converting == pytest.approx(4 * of_blocks * 6, rel=0.02)
    picture = 3 * 1024**2 * 4
    assert copied["resident"].of(AUTOENCODER).further_seconds > 100 * picture
    streamed, resident = (cleared[name].of(DENOISER) for name in ("streamed", "resident"))
    converting = streamed.clearing_seconds - resident.clearing_seconds
    assert converting == pytest.approx(4 * of_blocks * 4, rel=0.02)
    # A prompt decodes 24 x 32 experts; a value takes 2 bytes of indices, then 4.
    decoding = 24 * 32 * 3 * 2880**2 * 6
    encoder = cleared["resident"].of(ENCODER).clearing_seconds
    assert encoder == pytest.approx(decoding, rel=0.1)
    there = cleared["resident"]
    assert there.other_seconds - there.further_seconds == pytest.approx(encoder)
    assert replace(there, clears=False).other_seconds < 1e-6


def test_the_size_of_a_mirror_tells_how_its_denoiser_is_stored() -> None:
    stored: dict[str, dict[str, int]] = {}
    for name in ("lens", "lens-sceneworks"):
        mirror = find_mirror(name)
        infos = unfetched_component(mirror, "denoiser").source.infos.values()
        stored[name] = {info.dtype: sum(each.num_bytes for each in infos) for info in infos}
    assert stored == {"lens": {"F32": 16_416_900_608}, "lens-sceneworks": {"BF16": 8_208_450_304}}
    unknown = replace(find_mirror("lens"), approximate_bytes=None)
    infos = unfetched_component(unknown, "denoiser").source.infos.values()
    assert {info.dtype for info in infos} == {"BF16"}
