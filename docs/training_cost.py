"""What training at full size costs, by count: the tables of docs/training.md, printed by cog.

Nothing here is timed. Operations are counted from the configuration (`petzval.models.flops`, which
tests hold against torch's own counter on a CPU), and ranks are loaded by the product's sampler.
"""

from __future__ import annotations

from petzval.data.balance import BASES, MEAN_TEXT_TOKENS, lens_table, measure
from petzval.data.bucket_sampler import LENS_BATCH_SIZES
from petzval.data.packed_sampler import PackedMode
from petzval.data.sampler import MODES, SamplerConfig, build_sampler
from petzval.models.flops import PEAK_BF16_FLOPS, forward_flops, training_flops
from petzval.models.sizes import LENS_MMDIT
from petzval.resolution import PRESETS

STEPS = 400_000
"""Of each stage (Lens paper, section 2.3)."""

RANKS = 128
PAPER_HOURS = 192_000
PAPER_DEVICE = "A100"
GOALS = (("A100", 0.4), ("H100", 0.35), ("H100", 0.5), ("H200", 0.5))
"""Devices and utilisations for which hours are predicted; the last is this project's aim."""


def batch(base: int) -> tuple[list[int], list[int]]:
    """Image and text tokens of the samples that one rank holds of a square size."""
    tokens = PRESETS[base]["1:1"].num_tokens
    size = dict(LENS_BATCH_SIZES)[tokens]
    return [tokens] * size, [MEAN_TEXT_TOKENS] * size


def forward_line() -> str:
    """One forward pass at 1024 x 1024, with and without text."""
    tokens = PRESETS[1024]["1:1"].num_tokens
    costs = [forward_flops(LENS_MMDIT, [tokens], [text]) / 1e12 for text in (0, 187, 206)]
    return (
        f"One forward pass at 1024 × 1024 ({tokens} image tokens) takes {costs[0]:.1f} TFLOP "
        f"without text, {costs[1]:.2f} with 187 text tokens and {costs[2]:.2f} with 206."
    )


def ranks_table() -> str:
    """What a rank does in a step, for each area of the paper's mixed stage."""
    lines = [
        "| size | samples | image tokens | text tokens | forward TFLOP | step TFLOP | to mean |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    steps = {base: training_flops(LENS_MMDIT, *batch(base)) for base in BASES}
    mean = sum(steps.values()) / len(steps)
    for base in BASES:
        image, text = batch(base)
        forward = forward_flops(LENS_MMDIT, image, text) / 1e12
        lines.append(
            f"| {base} × {base} | {len(image)} | {sum(image):,} | {sum(text):,} | {forward:.1f} "
            f"| {steps[base] / 1e12:.0f} | {steps[base] / mean:.3f} |"
        )
    return "\n".join(lines)


def idle_table(num_samples: int = 100_000, num_batches: int = 512) -> str:
    """Share of the ranks' time in which they wait for the dearest one, if time follows the count.

    Args:
        num_samples: of the modelled corpus (`petzval.data.balance`).
        num_batches: of ranks, over which is averaged.
    """
    corpus, budget = lens_table(num_samples), PackedMode().token_budget
    lines = ["| ranks | mode | waiting | worst step | padding |", "| --: | --- | --: | --: | --: |"]
    for ranks in (8, 32, RANKS):
        for mode in MODES:
            sampler = build_sampler(corpus, SamplerConfig(num_virtual_ranks=ranks, mode=mode))
            packed = mode == "packed"
            cost = PackedMode().cost_model
            found = measure(sampler, num_batches // ranks, cost, budget if packed else None)
            idle, worst = (1 - 1 / each for each in (found.imbalance, found.worst_imbalance))
            padding = f"{found.padding:.1%}" if packed else "–"
            lines.append(f"| {ranks} | {mode} | {idle:.1%} | {worst:.1%} | {padding} |")
    return "\n".join(lines)


def run_flops() -> tuple[float, float]:
    """Model FLOPs of the two stages: 512 x 512 alone, then the three areas alike often."""
    first = training_flops(LENS_MMDIT, *batch(512))
    mixed = sum(training_flops(LENS_MMDIT, *batch(base)) for base in BASES) / len(BASES)
    return STEPS * RANKS * float(first), STEPS * RANKS * float(mixed)


def run_table() -> str:
    """What the published run did, and what the same work would take elsewhere."""
    work = sum(run_flops())
    spent = PAPER_HOURS * 3600 * PEAK_BF16_FLOPS[PAPER_DEVICE]
    lines = [
        "| where | MFU | device hours | days on 128 |",
        "| --- | --: | --: | --: |",
        f"| {PAPER_DEVICE}, as the paper reports | {work / spent:.1%} | {PAPER_HOURS:,} "
        f"| {PAPER_HOURS / RANKS / 24:.0f} |",
    ]
    for device, utilisation in GOALS:
        hours = work / (utilisation * PEAK_BF16_FLOPS[device]) / 3600
        lines.append(
            f"| {device}, predicted | {utilisation:.0%} | {hours:,.0f} | {hours / RANKS / 24:.1f} |"
        )
    return "\n".join(lines)


def run_line() -> str:
    """Operations of the two stages in a sentence."""
    first, mixed = run_flops()
    return (
        f"The two stages of {STEPS:,} steps on {RANKS} ranks are {first:.2e} and {mixed:.2e} "
        f"model FLOPs, {first + mixed:.2e} together, with {MEAN_TEXT_TOKENS} text tokens a sample."
    )
