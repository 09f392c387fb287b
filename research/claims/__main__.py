"""Run what is not recorded yet: `python -m research.claims [--arm NAME] [--seed N]`.

One process, one thread. Seeds come in turn, each with all arms, so that differences can be taken
as early as possible. A run that was stopped goes on from its newest checkpoint; a finished one is a
line of research/results/claims.jsonl and is skipped. `--plots` draws the pictures of the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from itertools import product
from pathlib import Path

import torch

from petzval.data.miniature.captions import brief_forms, dense
from petzval.models.mmdit import MMDiT
from petzval.training.checkpoint import CHECKPOINTS, list_checkpoints, load_weights
from research.claims.arms import ARMS, PROTOCOL, Arm, Protocol
from research.claims.learning import Split, learn
from research.claims.record import RECORD, Run, append, load, protocol_id
from research.claims.text import Features
from research.claims.trial import examine

MACHINE = "two shared cores of an AMD EPYC, no GPU"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when all that was asked for is recorded."""
    parser = argparse.ArgumentParser(prog="python -m research.claims", description=__doc__)
    parser.add_argument("--arm", choices=[arm.name for arm in ARMS], help="this one alone")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--folder", type=Path, default=Path("build/claims"), help="of checkpoints")
    parser.add_argument("--record", type=Path, default=RECORD, help="where lines are added")
    parser.add_argument("--machine", default=MACHINE, help="what the record calls this machine")
    parser.add_argument("--plots", action="store_true", help="draw what is recorded, run nothing")
    options = parser.parse_args(arguments)
    if options.plots:
        try:
            from research.claims import plots
        except ImportError:
            parser.error("plots need matplotlib: pip install 'petzval[eval]'")
        plots.write_all()
        return 0
    torch.set_num_threads(1)
    arms = [arm for arm in ARMS if options.arm in (None, arm.name)]
    seeds = PROTOCOL.seeds if options.seed is None else (options.seed,)
    run_all(arms, PROTOCOL, seeds, options.folder, options.record, machine=options.machine)
    return 0


def run_all(
    arms: list[Arm],
    protocol: Protocol,
    seeds: tuple[int, ...],
    folder: Path,
    record: Path,
    *,
    machine: str = MACHINE,
) -> None:
    """Every arm with every seed that the record lacks."""
    split = Split.of(protocol)
    features: Features | None = None
    for seed, arm in product(seeds, arms):
        if any((run.arm, run.seed) == (arm.name, seed) for run in load(protocol, record)):
            continue
        features = features or _features(split)
        run = run_one(arm, protocol, seed, split, features, folder)
        append(dataclasses.replace(run, facts={**run.facts, "machine": machine}), record)
        scores = "  ".join(f"{name} {value:.3f}" for name, value in run.final.items())
        print(f"{arm.name}, seed {seed}: {scores}", flush=True)


def run_one(
    arm: Arm, protocol: Protocol, seed: int, split: Split, features: Features, folder: Path
) -> Run:
    """Train, then try the average of the weights as it was at each checkpoint."""
    own = folder / protocol_id(protocol) / f"{arm.name.replace(' ', '-')}-{seed}"
    started = time.process_time()
    state = learn(arm, protocol, seed, split, features, own)
    assert state.ema is not None and isinstance(state.model, MMDiT)
    every = protocol.num_steps // protocol.checkpoints
    scores: dict[int, dict[str, float]] = {}
    for checkpoint in list_checkpoints(own / CHECKPOINTS):
        step = int(checkpoint.name.split("-")[-1])
        if step % every == 0:
            load_weights(checkpoint, state)
            with state.ema.applied_to(state.model):
                scores[step] = examine(state.model, arm, protocol, split, features)
    facts = {
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "seconds": round(time.process_time() - started, 1),
        "skipped": state.guard.num_skipped,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "encoder": features.identity,
    }
    return Run(arm=arm.name, seed=seed, protocol=protocol_id(protocol), scores=scores, facts=facts)


def _features(split: Split) -> Features:
    """Of every caption that training can draw."""
    features = Features()
    scenes = [scene for group in split.trained for scene in group]
    features.learn(dense(scene).text for scene in scenes)
    features.learn(form.text for scene in scenes for form in brief_forms(scene))
    return features


if __name__ == "__main__":
    raise SystemExit(main())
