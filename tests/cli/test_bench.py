from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.bench import waterfall as measuring
from petzval.bench.ceilings import Ceilings
from tests.cli.conftest import Run

SMALL = (
    "bench", "--model", "mini", "--size", "32x32", "--steps", "1", "--rounds", "1",
    "--device", "cpu", "--text-tokens", "3", "--blocks", "1", "--encoder-layers", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        measuring, "measure_ceilings", lambda device, dtype: Ceilings(flops=1e11, bytes=1e10)
    )


def test_a_row_as_json_and_in_a_file(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SMALL, "--json", "--out", "rows.jsonl")
    assert (code, err) == (0, "")
    row = json.loads(out)
    assert row["extrapolated"].keys() == {"encode", "denoise"}
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8")) == row


def test_a_disk_that_is_full_loses_no_row(run: Run) -> None:
    code, out, err = run(*SMALL, "--out", "/dev/full")
    assert code == 2
    assert "cannot be written" in err
    assert '"case"' in err  # the measurement is not lost
    assert out == ""


def test_mistakes_are_answered_before_anything_is_measured(run: Run) -> None:
    code, _, err = run("bench", "--model", "maxi")
    assert code == 2
    assert "known: mini, lens" in err
    assert run("bench", "--model", "mini", "--size", "100x100")[0] == 2
    assert run("bench", "--model", "mini", "--dtype", "int3")[0] == 2
    assert run("bench", "--model", "mini", "--text-tokens", "99999")[0] == 2
    code, _, err = run("bench", "--out", "no/such/folder.jsonl")
    assert code == 2
    assert "no/such is no folder" in err
