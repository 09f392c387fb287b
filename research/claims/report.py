"""The claims that are put to the test, and the tables of docs/training.md from the record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petzval.data.miniature.judge import Verdict, score
from petzval.data.miniature.world import SMALL, TALL, all_scenes, draw_all
from research.claims.arms import ARMS, PROTOCOL, TRIED_SIZES, Protocol
from research.claims.learning import Split
from research.claims.record import Estimate, Run, difference, load, of_arm
from research.claims.trial import prompts

DENSE = tuple(f"dense {canvas}" for canvas in TRIED_SIZES)
BRIEF = f"brief {SMALL}"
TITLES = {
    "base": "dense captions, three sizes, four layers (*base*)",
    "brief": "brief captions",
    "mixed": "half dense, half brief",
    "single size": f"{SMALL} alone",
    "last layer": "the last layer alone",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """`arm` is said to be better than `other`, by these scores."""

    text: str
    arm: str
    other: str
    scores: tuple[str, ...]


CLAIMS = (
    Claim(
        text="dense captions over brief ones",
        arm="base",
        other="brief",
        scores=(DENSE[0], BRIEF),
    ),
    Claim(
        text="dense captions over half of each",
        arm="base",
        other="mixed",
        scores=(DENSE[0], BRIEF),
    ),
    Claim(text="three sizes over one", arm="base", other="single size", scores=DENSE),
    Claim(
        text="four layers over the last",
        arm="base",
        other="last layer",
        scores=(DENSE[0], BRIEF),
    ),
)


def name_of(score_name: str) -> str:
    """A score in words."""
    kind, size = score_name.split()
    unseen = ", unseen by all" if size == str(TALL) else ""
    return f"{kind} prompts, {size}{unseen}"


def arms_table(protocol: Protocol = PROTOCOL, runs: Sequence[Run] | None = None) -> str:
    """Rubric of each arm for each kind of prompt and size."""
    found = load(protocol) if runs is None else runs
    names = (*DENSE, BRIEF)
    lines = [
        "| trained with | seeds | " + " | ".join(name_of(name) for name in names) + " |",
        "| --- | --: |" + " --: |" * len(names),
    ]
    for arm in ARMS:
        count = len({run.seed for run in found if run.arm == arm.name})
        cells = [_cell(of_arm(found, arm.name, name)) for name in names]
        lines.append(f"| {TITLES[arm.name]} | {count} | " + " | ".join(cells) + " |")
    for clean, label in ((True, "right pictures"), (False, "the same, but not cleanly drawn,")):
        chance = [f"{chance_of(name.split()[0], protocol, clean=clean):.3f}" for name in names]
        lines.append(f"| *{label} under other prompts* | | " + " | ".join(chance) + " |")
    return "\n".join(lines)


def claims_table(protocol: Protocol = PROTOCOL, runs: Sequence[Run] | None = None) -> str:
    """Paired differences, and whether they are seen: more than two standard errors above 0."""
    found = load(protocol) if runs is None else runs
    lines = ["| claim | tried on | gain | |", "| --- | --- | --: | --- |"]
    for claim in CLAIMS:
        for name in claim.scores:
            gain = difference(found, claim.arm, claim.other, name)
            verdict = "no runs yet" if gain is None else gain.verdict
            lines.append(f"| {claim.text} | {name_of(name)} | {_cell(gain)} | {verdict} |")
    return "\n".join(lines)


def protocol_line(protocol: Protocol = PROTOCOL, runs: Sequence[Run] | None = None) -> str:
    """What all runs share, in a paragraph; from the settings and the record."""
    found = load(protocol) if runs is None else runs
    text = (
        f"Protocol: {protocol.num_steps} steps of {protocol.batch_tokens} image tokens, "
        f"{protocol.num_blocks} blocks {protocol.num_heads * protocol.head_dim} wide, AdamW at "
        f"{protocol.learning_rate:g} (falling to nothing over the last {protocol.cooldown:.0%}), "
        f"average of the weights {protocol.ema_decay:g}; {protocol.num_prompts} held-out prompts "
        f"of each kind, {protocol.sampling_steps} steps, guidance {protocol.guidance:g}."
    )
    if not found:
        return text + " No run is recorded yet."
    counts = sorted({run.facts["parameters"] for run in found})
    seconds = sum(run.facts["seconds"] for run in found)
    versions = ", ".join(sorted({run.facts["torch"] for run in found}))
    machines = ", ".join(sorted({run.facts["machine"] for run in found}))
    return (
        f"{text} {len(found)} runs, seeds {sorted({run.seed for run in found})}, "
        f"{' or '.join(f'{count:,}' for count in counts)} parameters, {seconds / 60:.0f} minutes "
        f"of processor time; torch {versions}; {machines}."
    )


def whole_line(protocol: Protocol = PROTOCOL, runs: Sequence[Run] | None = None) -> str:
    """How often everything was right at once: the best of all arms, sizes and kinds of prompt."""
    found = load(protocol) if runs is None else runs
    names = [f"right {name}" for name in (*DENSE, BRIEF)]
    best = max((run.final[name] for run in found for name in names if name in run.final), default=0)
    share = f"at most {best:.0%}" if best > 0 else "none"
    return f"Whole prompts right, clean drawing included: {share}, in any run and column."


@functools.cache
def chance_of(kind: str, protocol: Protocol, *, clean: bool) -> float:
    """What pictures of other scenes get under the prompts, with or without clean drawing."""
    captions = prompts(Split.of(protocol), protocol, kind)
    rng = np.random.default_rng(2)
    every = [all_scenes(count) for count in range(1, protocol.max_things + 1)]
    groups = [every[int(rng.integers(len(every)))] for _ in captions]
    scenes = [group[int(rng.integers(len(group)))] for group in groups]
    pictures, _ = draw_all(scenes, SMALL, rng)
    verdicts = score(pictures, captions)
    if not clean:
        verdicts = [Verdict({**verdict.criteria, "structure": 0.0}) for verdict in verdicts]
    return float(np.mean([verdict.rubric for verdict in verdicts]))


def _cell(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)
