"""One picture under one placement in a process of its own: predicted and measured peak and seconds.

`python -m benchmarks.memory_run FOLDER` prints one JSON object. The first picture is small: it
brings in what python, torch and its libraries need at any size, and is the baseline. Seconds are
those that a plan predicts: of loading what stays and of drawing, the planning itself left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from petzval.inference.pipeline import Pipeline
    from petzval.inference.request import GenerationRequest

STRATEGIES = {
    "all resident": ("resident", "resident", False, 0, 0),
    "staged": ("staged", "staged", False, 0, 0),
    "staged, folded, strips": ("staged", "staged", True, 64, 0),
    "streamed, folded, strips": ("streamed", "streamed", True, 64, 0),
    "streamed, half of it kept": ("streamed", "streamed", True, 64, 2),
}
"""Name → residence of encoder and denoiser, folding, rows of a strip, layers of each kept."""


def main() -> None:
    """Draw and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_run", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strategy", choices=sorted(STRATEGIES))
    parser.add_argument("--memory", help="plan for this much in place of a strategy")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="pictures that run together")
    parser.add_argument("--mixed", action="store_true", help="of prompts that differ in length")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    with _tight() if options.strategy else nullcontext():
        print(json.dumps(run(options)))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The picture; see `main`."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    from petzval.inference.pipeline import Pipeline
    from petzval.inference.request import GenerationRequest
    from petzval.kernels import backends

    words = ["on a white background"] * options.batch
    if options.mixed:
        words = [" ".join(["and a pear"] * number) for number in range(options.batch)]
    request = GenerationRequest(
        prompt=[f"a red apple {number} {each}" for number, each in enumerate(words)],
        size=options.size,
        steps=options.steps,
        guidance=options.guidance,
    )
    Pipeline.load("mini", device="cpu", dtype=options.dtype).generate(
        "an apple", size="64x64", steps=1, guidance=1.0
    )
    start = time.perf_counter()
    with _loading_watched() as loading:
        if options.memory:
            pipeline = Pipeline.load(
                options.folder,
                device="cpu",
                dtype=options.dtype,
                memory=options.memory,
                request=request,
            )
        else:
            pipeline = _follow(options, request)
    assert pipeline.placement is not None
    assert pipeline.planning is not None
    work = pipeline.planning.work(pipeline.plan(request), batch_size=options.batch)
    planner = pipeline.planning.planner(work, pipeline.placement.baseline_bytes)
    placement = planner.again(pipeline.placement)
    events = pipeline.steps(request, batch_size=options.batch)  # more pictures are planned for here
    planned = time.perf_counter()
    image, *_ = [image for event in events for image in event.images]
    finished = time.perf_counter()
    drawing = finished - planned
    return {
        "plan": str(placement),
        "predicted": placement.peak_bytes,
        "baseline": placement.baseline_bytes,
        "measured": backends.peak_resident_bytes(),
        "predicted_seconds": placement.seconds,
        "measured_seconds": sum(loading) + drawing,
        "seconds": finished - start,
        "planning": planned - start - sum(loading),
        "load": sum(loading),
        "predicted_stages": {
            each.network: placement.seconds_of(each.network) for each in placement.networks
        },
        "stages": image.seconds,
        "batch": work.batch,
        "stages_bytes": {each.network: each.peak_bytes for each in placement.networks},
        "spread": float(image.pixels.std()),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _tight() -> Generator[None]:
    """As under a limit that the placement just keeps, in the block: no room for a heap's holes."""
    from petzval.inference.terms import Budget

    def leaves_holes(self: Budget, device: str, ram_bytes: int) -> bool:
        del self, device, ram_bytes
        return False

    with patch.object(Budget, "leaves_holes", leaves_holes):
        yield


@contextmanager
def _loading_watched() -> Generator[list[float]]:
    """Seconds of each placement that is followed in the block."""
    from petzval.inference.placement import Placement
    from petzval.inference.planning import Planning
    from petzval.inference.residency import Residency
    from petzval.inference.terms import Terms

    follow = Planning.follow
    seconds: list[float] = []

    def timed(self: Planning, placement: Placement, terms: Terms | None = None) -> Residency:
        start = time.perf_counter()
        try:
            return follow(self, placement, terms)
        finally:
            seconds.append(time.perf_counter() - start)

    with patch.object(Planning, "follow", timed):
        yield seconds


def _follow(options: argparse.Namespace, request: GenerationRequest) -> Pipeline:
    """A placement by its strategies, in place of one by its budget."""
    from petzval.inference.pipeline import Pipeline
    from petzval.inference.placement import AUTOENCODER, DENOISER, ENCODER, Placement
    from petzval.inference.planner import Planner

    encoder, denoiser, folded, rows, kept = STRATEGIES[options.strategy]
    last = "resident" if encoder == "resident" else "staged"

    def choose(self: Planner, budget: object) -> Placement:
        del budget
        for each in self.placements:
            first, second, third = (each.of(n).strategy for n in (ENCODER, DENOISER, AUTOENCODER))
            form = (first.residence, second.residence, second.folded, third.strip_rows)
            layers = (first.kept_layers, second.kept_layers)
            wanted = form == (encoder, denoiser, folded, rows) and layers == (kept, kept)
            if wanted and third.residence == last:
                return replace(each, clears=True)  # see `_tight`
        raise AssertionError(options.strategy)

    with patch.object(Planner, "choose", choose):
        return Pipeline.load(
            options.folder, device="cpu", dtype=options.dtype, memory="1000GB", request=request
        )


if __name__ == "__main__":
    main()
