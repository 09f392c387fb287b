"""Plans of memory: what each strategy costs, and predicted against measured peaks and seconds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Prepared
from benchmarks.memory_run import STRATEGIES
from benchmarks.random_checkpoint import write_random_checkpoint
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE

SIZE, STEPS = "384x384", 2
BATCH = 4
LIMIT = 0.10
"""Share of the prediction by which the measured peak may lie above or below."""

DENOISER = dataclasses.replace(
    LENS_MMDIT, num_layers=4, enc_hidden_dim=640, selected_layer_index=(0, 1)
)
ENCODER = dataclasses.replace(
    LENS_GPT_OSS,
    hidden_size=640,
    intermediate_size=640,
    num_hidden_layers=4,
    layer_types=(),
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=16,
    vocab_size=8192,
)
VAE = dataclasses.replace(LENS_VAE, block_out_channels=(64, 128, 256, 256))


def measured(folder: Path, *words: str) -> dict[str, Any]:
    """The report of one run in a process of its own, on one thread."""
    command = [sys.executable, "-m", "benchmarks.memory_run", str(folder), *words, "--threads", "1"]
    place = Path(__file__).resolve().parents[2]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=place)
    report: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return report


def difference(report: dict[str, Any]) -> float:
    """Share by which the prediction is off; negative where less was needed."""
    return report["measured"] / report["predicted"] - 1


def keeps_to(report: dict[str, Any]) -> bool:
    """Whether prediction and peak agree, see `LIMIT`."""
    return abs(difference(report)) <= LIMIT


def _in_words(report: dict[str, Any]) -> str:
    """Predicted and measured peak and seconds; loading counts in both, planning in none."""
    predicted, found = (
        f"{report[peak] / 1e6:.0f} MB and {report[seconds]:.1f} s"
        for peak, seconds in (("predicted", "predicted_seconds"), ("measured", "measured_seconds"))
    )
    return f"predicted {predicted}, measured {found}"


def _prepare() -> Prepared:
    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-")) / "random"
    write_random_checkpoint(folder, DENOISER, ENCODER, VAE)
    options = ("--size", SIZE, "--steps", str(STEPS))
    facts: dict[str, float | str] = {}
    for name in STRATEGIES:
        report = measured(folder, "--strategy", name, *options)
        assert keeps_to(report), (name, report)
        facts[name] = _in_words(report)

    name = "streamed, folded, strips"  # little but the batch is in memory
    report = measured(folder, "--strategy", name, "--batch", str(BATCH), *options)
    assert report["batch"] == BATCH
    assert keeps_to(report), (BATCH, report)
    facts[f"{name}, {BATCH} at once"] = _in_words(report)

    def run(name: str) -> None:
        measured(folder, "--strategy", name, *options)

    return Prepared(
        ways={name: (lambda name=name: run(name)) for name in STRATEGIES},
        dtype="float32",
        facts=facts,
    )


CASES = (
    Case(
        name="memory-plans",
        title=f"one picture of {SIZE} under each strategy, four blocks of the published width",
        why="a plan is worth following if its peak is what happens, within a tenth",
        prepare=_prepare,
        rounds=1,
    ),
)
