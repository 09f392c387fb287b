"""The bench counts what the paper's arithmetic says, and measures ways that agree."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import waterfall as waterfalls
from benchmarks.report import summary_table, write
from benchmarks.waterfall import command_of, in_haste
from petzval.bench import setting as settings
from petzval.bench import waterfall as measuring
from petzval.bench.ceilings import Ceilings
from petzval.bench.floor import denoiser_share, encoder_share, stage_costs
from petzval.bench.networks import Scene, make_scene
from petzval.bench.setting import SIZES, Setting, Sizes, usual_settings
from petzval.bench.table import fastest, table
from petzval.bench.ways import Studio, Way, ladder
from petzval.errors import RequestError
from petzval.models.quantised import QuantisedLinear

CPU = torch.device("cpu")
LENS = Setting(model="lens", height=1024, width=1024, text_tokens=128, dtype="bfloat16", steps=1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Two pictures of 32 x 32 from one block and one encoder layer, with a second branch."""
    mini = SIZES["mini"]
    small = Sizes(
        encoder=dataclasses.replace(
            mini.encoder, num_hidden_layers=1, layer_types=("sliding_attention",)
        ),
        denoiser=dataclasses.replace(mini.denoiser, num_layers=2, selected_layer_index=(0,)),
        autoencoder=mini.autoencoder,
    )
    monkeypatch.setattr(settings, "SIZES", {"mini": small})
    monkeypatch.setattr(
        measuring, "measure_ceilings", lambda device, dtype: Ceilings(flops=1e11, bytes=1e10)
    )
    return Setting(height=32, width=32, steps=2, guidance=3.0, batch=2, rounds=2, text_tokens=5)


def test_the_published_sizes_cost_what_was_counted_by_hand() -> None:
    """A step with one branch and a picture at 1024 x 1024; doublings are counted collapsed."""

    def saved(side: int) -> int:  # nine taps of four pixels become four, on one more row and column
        return sum(
            2 * channels**2 * (36 * (scale * side) ** 2 - 16 * (scale * side + 1) ** 2)
            for channels, scale in ((512, 1), (512, 2), (256, 4))
        )

    costs = stage_costs(LENS)
    assert costs["denoise"].flops == pytest.approx(16.7434e12, rel=2e-4)
    assert costs["decode"].flops == pytest.approx(10.4747e12 - saved(128), rel=2e-4)
    assert costs["encode"].bytes == pytest.approx(11.44e9, rel=2e-3)
    guided = stage_costs(dataclasses.replace(LENS, guidance=5.0, steps=20))["denoise"]
    assert guided.flops == pytest.approx(20 * (16.7434e12 + 16.0863e12), rel=2e-4)
    large = stage_costs(dataclasses.replace(LENS, height=1440, width=1440))
    assert large["denoise"].flops == pytest.approx(42.3296e12, rel=2e-4)
    assert large["decode"].flops == pytest.approx(21.7768e12 - saved(180), rel=2e-4)


def test_what_is_built_in_part_is_scaled_by_its_work() -> None:
    part = dataclasses.replace(LENS, blocks=2, encoder_layers=1)
    assert 23.5 < denoiser_share(part) < 24.5
    assert encoder_share(part) == 24
    assert denoiser_share(LENS) == encoder_share(LENS) == 1
    assert stage_costs(part) == stage_costs(LENS)
    assert part.built().denoiser.num_layers == 2
    assert "2 blocks measured" in part.title


def test_ceilings_bound_by_whichever_is_slower() -> None:
    ceilings = Ceilings(flops=10.0, bytes=2.0)
    assert ceilings.seconds(flops=30.0, num_bytes=2.0) == 3.0
    assert ceilings.seconds(flops=3.0, num_bytes=2.0) == 1.0


def test_a_row_holds_every_way_and_its_table_says_so(tiny: Setting, tmp_path: Path) -> None:
    heard: list[str] = []
    row = measuring.waterfall(tiny, CPU, progress=heard.append)
    names = [way["name"] for way in row["ways"]]
    assert names[0] == "the original's way"
    assert len(names) == 5
    assert len(heard) == 1 + 5 + 2 * 5
    for way in row["ways"]:
        assert way["exact"]
        assert way["error"] < 1e-5, way["name"]  # float32: to rounding
        assert way["total_ms"] == pytest.approx(sum(way["stages_ms"].values()), rel=0.5)
    assert row["ways"][0]["ratio"] == 1.0
    assert row["share_of_floor"] > 0
    assert row["extrapolated"] == {}
    assert json.loads(json.dumps(row)) == row
    text = table(row)
    assert all(name in text for name in names)
    assert "*the floor*" in text
    assert "xtrapolated" not in text

    kept = row | {
        "date": "2026-01-01",
        "commit": "abc",
        "changed": False,
        "machine": {"processor": "a processor", "cores": 2},
        "load": 0.1,
        "versions": {"torch": "2.13.0"},
        "extrapolated": {"denoise": 24.0},
    }
    (tmp_path / "cpu.jsonl").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    write(tmp_path, tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"## {tiny.name}" in report
    assert "*Extrapolated* from a part of the networks by the count of work: denoise x 24" in report
    assert "(cpu, extrapolated)" in summary_table(tmp_path)


def test_an_extrapolated_row_times_each_decoder_once_a_round(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the full width the decoder alone is whole: minutes of a CPU, the same for four ways."""
    decoders: list[str] = []
    decode = Studio.decode

    def counted(studio: Studio, way: Way, tokens: torch.Tensor) -> torch.Tensor:
        decoders.append(way.arithmetic)
        return decode(studio, way, tokens)

    monkeypatch.setattr(Studio, "decode", counted)
    row = measuring.waterfall(dataclasses.replace(tiny, blocks=1), CPU)
    assert decoders == ["unfused", "portable"] * 3  # to warm up, and in two rounds
    seconds = [way["stages_ms"]["decode"] for way in row["ways"]]
    assert seconds[0] == seconds[1] == seconds[3] != seconds[4]
    assert "A decoder that several ways share was timed once a round." in table(row)


def test_a_way_that_fails_takes_no_other_with_it(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nine ways on a card that nobody tried, one will; and those after it do without it."""
    sixth = "+ a kernel that this card has not"
    drawn: list[Way] = []

    def longer(scene: Scene, *, compile: bool) -> list[Way]:
        ways = ladder(scene, compile=compile)
        broken = dataclasses.replace(ways[-1], name=sixth, graphs=True)
        last = dataclasses.replace(broken, name="+ float8", float8=True, exact=False)
        return [*ways, broken, last]

    def drawing(studio: Studio, way: Way, features: list[torch.Tensor]) -> torch.Tensor:
        drawn.append(way)
        if way.graphs:
            raise RuntimeError("no kernel image\nis available")
        return denoise(studio, way, features)

    denoise = Studio.denoise
    monkeypatch.setattr(measuring, "ladder", longer)
    monkeypatch.setattr(Studio, "denoise", drawing)
    row = measuring.waterfall(tiny, CPU)
    assert row["failed"] == {sixth: "RuntimeError: no kernel image"}
    assert [way["name"] for way in row["ways"]][-1] == "+ float8"
    assert drawn[-1].float8
    assert not drawn[-1].graphs
    assert f"Not measured: {sixth}: RuntimeError: no kernel image." in table(row)
    assert fastest(row["ways"])["exact"]


def test_the_fastest_exact_way_need_not_be_the_last() -> None:
    ways = [
        {"name": name, "exact": exact, "total_ms": total}
        for name, exact, total in (("a", True, 9.0), ("b", True, 5.0), ("c", True, 7.0))
    ]
    assert fastest(ways)["name"] == "b"
    assert fastest([*ways, {"name": "d", "exact": False, "total_ms": 1.0}])["name"] == "b"
    assert fastest([{"name": "d", "exact": False, "total_ms": 1.0}])["name"] == "d"


def test_a_row_ends_in_time_with_every_way_that_was_begun(tiny: Setting) -> None:
    row = measuring.waterfall(dataclasses.replace(tiny, rounds=50), CPU, seconds=0.0)
    assert row["rounds"] == 1
    assert [way["name"] for way in row["ways"]] == ["the original's way"]
    assert set(row["failed"].values()) == {"no time was left"}
    assert len(row["failed"]) == 4


def test_a_part_of_the_steps_is_extrapolated_and_labelled(tiny: Setting) -> None:
    part = dataclasses.replace(tiny, steps=20, steps_measured=2, rounds=1)
    assert part.name.endswith("-2-measured")
    assert "2 steps measured" in part.title
    row = measuring.waterfall(part, CPU)
    assert row["extrapolated"] == {"denoise": 10.0}


def test_all_rows_together_keep_to_their_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that hangs or crashes is given up, and the others are told of."""
    monkeypatch.setattr(waterfalls, "_LEAST_SECONDS", 0.2)
    hangs = ["sh", "-c", "exec sleep 600"]
    crashes = ["sh", "-c", "exit 3"]  # at once, which Python does not
    commands = iter([crashes, hangs])
    monkeypatch.setattr(waterfalls, "command_of", lambda *_: next(commands))
    begun = time.monotonic()
    assert waterfalls.main(["--device", "cpu", "--seconds", "3", "--dry-run"]) == 8
    assert time.monotonic() - begun < 300
    told = capsys.readouterr().err
    assert "exit code 3" in told
    assert "the time was up" in told
    assert told.count("no time was left") == 6


def test_float8_and_compiled_ways_leave_the_networks_as_they_were(tiny: Setting) -> None:
    studio = Studio(make_scene(tiny, CPU))
    plain = ladder(studio.scene, compile=False)[-1]
    features = studio.encode(plain)
    before = studio.denoise(plain, features)
    way = dataclasses.replace(plain, name="float8", float8=True, exact=False)
    changed = studio.denoise(way, features)
    error = float((changed - before).norm() / before.norm())
    assert 1e-4 < error < 0.05  # weights in float8, the products of a CPU in float32
    assert torch.equal(studio.denoise(plain, features), before)
    modules = studio.scene.denoiser.modules()
    assert not any(isinstance(module, QuantisedLinear) for module in modules)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "maxi"}, "no sizes named 'maxi'"),
        ({"height": 100}, "16-pixel grid"),
        ({"steps": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"steps_measured": 5}, "5 of 4 steps"),
        ({"blocks": 7}, "mini has 6 blocks"),
        ({"encoder_layers": -1}, "4 encoder layers"),
        ({"dtype": "float16"}, "float16"),
        ({"guidance": -1.0}, "negative"),
    ],
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Setting(**wrong)


def test_the_rows_of_a_cpu_and_of_a_gpu() -> None:
    for device, count in (("cpu", 8), ("cuda", 8)):
        rows = usual_settings(torch.device(device))
        assert len({row.name for row in rows}) == len(rows) == count
    gpu = usual_settings(torch.device("cuda"))
    assert {(row.height, row.steps, row.guidance, row.batch) for row in gpu} == {
        (side, steps, guidance, batch)
        for side in (1024, 1440)
        for steps, guidance in ((4, 1.0), (20, 5.0))
        for batch in (1, 8)
    }
    assert not any(row.blocks or row.encoder_layers for row in gpu)
    assert [in_haste(row).steps_measured for row in gpu] == [0, 0, 0, 4] * 2
    words = command_of(gpu[0], "cuda", rounds=2, compile=True)
    assert words[1:5] == ["-m", "petzval", "bench", "--json"]
    assert words[words.index("--rounds") + 1] == "2"
    assert words[-1] == "--compile"


@pytest.mark.gpu
def test_every_way_of_a_gpu_draws_the_same_picture() -> None:
    """mini whole, bfloat16: exact ways to rounding, float8 within the error that is stated."""
    row = measuring.waterfall(
        Setting(height=256, width=256, dtype="bfloat16", rounds=1), torch.device("cuda")
    )
    assert row["failed"] == {}
    names = [way["name"] for way in row["ways"]]
    assert {"+ Triton's kernels", "+ CUDA graphs"} <= set(names)
    for way in row["ways"]:
        assert way["error"] < (0.05 if way["exact"] else 0.2), way["name"]
