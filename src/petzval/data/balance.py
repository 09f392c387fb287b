"""How evenly a sampler loads its ranks, by its own cost model: the figures behind the two modes.

    python -m petzval.data.balance

prints them for a corpus of the 27 training sizes of Lens (paper section 3). The corpus is modelled:
as many batches of each area (so that ranks draw the three alike), upright and wide pictures in the
proportions of `RATIO_SHARES`, captions of log-normal length.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from petzval.data.bucket_sampler import LENS_BATCH_SIZES
from petzval.data.packed_sampler import PackedMode
from petzval.data.packing import CostModel
from petzval.data.sample_stream import GlobalStep, Sampler
from petzval.data.sample_table import SampleTable
from petzval.data.sampler import MODES, SamplerConfig, build_sampler, steps
from petzval.resolution import PRESETS

BASES = (512, 768, 1024)

RATIO_SHARES = (
    ("1:2", 1), ("9:16", 4), ("2:3", 6), ("3:4", 6), ("1:1", 6),
    ("4:3", 8), ("3:2", 8), ("16:9", 6), ("2:1", 1),
)  # fmt: skip
"""How common each ratio is. Our guess at photographs and drawings; the paper gives no histogram."""

MEAN_TEXT_TOKENS, TEXT_SPREAD = 170, 0.35
"""109 words (the paper's mean) at 1.35 tokens a word and 22 of the suffix; spread of the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Averages over some steps.

    Attributes:
        imbalance: cost of the dearest rank divided by the mean rank's; a step lasts as long as its
            dearest rank, so that 1 - 1 / imbalance of the time is waited.
        worst_imbalance: of the worst step.
        padding: share of the static token budget that no sample fills; 0 where there is no budget.
        samples: a step.
        tokens: image and text, a step.
        most_waiting: samples that waited for a next step, at most.
    """

    imbalance: float
    worst_imbalance: float
    padding: float
    samples: float
    tokens: float
    most_waiting: int


def lens_table(num_samples: int, seed: int = 0) -> SampleTable:
    """A corpus of the 27 sizes: bucket 9 i + j is ratio j of base i, in the order of `PRESETS`."""
    rng = np.random.default_rng(seed)
    sizes = np.array(
        [PRESETS[base][ratio].num_tokens for base in BASES for ratio, _ in RATIO_SHARES]
    )
    ratios = np.array([share for _, share in RATIO_SHARES], dtype=float)
    areas = np.array([samples for _, samples in LENS_BATCH_SIZES], dtype=float)
    shares = np.outer(areas / areas.sum(), ratios / ratios.sum()).ravel()
    buckets = np.sort(rng.choice(len(sizes), size=num_samples, p=shares))
    mean_log = np.log(MEAN_TEXT_TOKENS) - TEXT_SPREAD**2 / 2
    text = rng.lognormal(mean_log, TEXT_SPREAD, num_samples).clip(23, 415).astype(np.int16)
    return SampleTable.from_columns(buckets, sizes[buckets], text)


def measure(
    sampler: Sampler, num_steps: int, cost_model: CostModel, token_budget: int | None = None
) -> Balance:
    """Run a sampler for some steps from its start."""
    drawn = list(islice(steps(sampler, sampler.start()), num_steps))
    ratios = [_imbalance(step, cost_model) for step, _ in drawn]
    tokens = [sum(sample.num_tokens for sample in step.samples) for step, _ in drawn]
    room = sum(len(step.batches) for step, _ in drawn) * (token_budget or 0)
    return Balance(
        imbalance=float(np.mean(ratios)),
        worst_imbalance=max(ratios),
        padding=1 - sum(tokens) / room if room else 0.0,
        samples=float(np.mean([len(step.samples) for step, _ in drawn])),
        tokens=float(np.mean(tokens)),
        most_waiting=max(len(state.waiting) for _, state in drawn),
    )


def _imbalance(step: GlobalStep, cost_model: CostModel) -> float:
    costs = [sum(cost_model.cost(sample.num_tokens) for sample in batch) for batch in step.batches]
    return max(costs) * len(costs) / sum(costs)


def main(
    num_samples: int = 400_000, rank_counts: tuple[int, ...] = (8, 32, 128), num_batches: int = 1920
) -> None:
    """Print a table in Markdown: each mode at each number of virtual ranks."""
    corpus = lens_table(num_samples)
    packed = PackedMode()
    budgets = {"bucket": None, "packed": packed.token_budget}
    print("| ranks | mode | cost, dearest / mean | worst step | padding | waiting at most |")
    print("| --: | --- | --: | --: | --: | --: |")
    for num_ranks in rank_counts:
        for mode in MODES:
            sampler = build_sampler(corpus, SamplerConfig(num_virtual_ranks=num_ranks, mode=mode))
            budget = budgets[mode]
            found = measure(sampler, num_batches // num_ranks, packed.cost_model, budget)
            padding = "–" if budget is None else f"{found.padding:.1%}"
            print(
                f"| {num_ranks} | {mode} | {found.imbalance:.3f} | {found.worst_imbalance:.3f} "
                f"| {padding} | {found.most_waiting} |"
            )


if __name__ == "__main__":
    main()
