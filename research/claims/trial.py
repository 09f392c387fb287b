"""Pictures for held-out prompts, judged: what an arm can do, by kind of prompt and size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from petzval.data.miniature.captions import Caption, brief, dense
from petzval.data.miniature.freedom import variety
from petzval.data.miniature.judge import judge, read
from petzval.data.miniature.world import SMALL, Canvas, Scene, to_pictures
from petzval.flow.guidance import guide
from petzval.flow.noise import initial_noise
from petzval.flow.sampler import sample
from petzval.flow.schedule import empirical_mu, sigmas
from petzval.models.mmdit import MMDiT
from petzval.models.rope import mmdit_rope
from petzval.shapes import Images
from research.claims.arms import TRIED_SIZES, Arm, Protocol
from research.claims.learning import Split
from research.claims.text import Features


def prompts(split: Split, protocol: Protocol, kind: str) -> list[Caption]:
    """Captions of held-out scenes, dense or brief; the same ones for all arms and seeds."""
    rng = np.random.default_rng(1)
    captions: list[Caption] = []
    for number in range(protocol.num_prompts):
        group: Sequence[Scene] = split.held_out[number % len(split.held_out)]
        scene = group[int(rng.integers(len(group)))]
        captions.append(dense(scene) if kind == "dense" else brief(scene, rng))
    return captions


@torch.no_grad()
def paint(
    model: MMDiT,
    captions: Sequence[Caption],
    canvas: Canvas,
    arm: Arm,
    protocol: Protocol,
    features: Features,
) -> Images:
    """One picture for each caption, seeds 0, 1, 2 …, by Euler steps on the product's schedule."""
    rows = features.rows([caption.text for caption in captions])
    text = model.embed_text(features.of_rows(rows, arm.layers))
    mask = torch.arange(text.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    num_steps = protocol.sampling_steps
    levels = sigmas(num_steps, empirical_mu(canvas.num_tokens, num_steps))
    modulations = model.modulations(levels[:-1])
    axes = model.config.axes_dims_rope
    rope, blank = mmdit_rope(canvas.grid, text.shape[1], axes), mmdit_rope(canvas.grid, 0, axes)

    def denoise(tokens: Tensor, sigma: float, call: int) -> Tensor:
        del sigma  # the modulation knows it
        conditional = model(tokens, text, modulations[call], rope, mask)
        if protocol.guidance == 1:
            return conditional
        return guide(conditional, model(tokens, None, modulations[call], blank), protocol.guidance)

    tokens = initial_noise(range(len(captions)), canvas.grid, model.config.in_channels)
    for step in sample(denoise, tokens, levels):
        tokens = step.tokens
    return to_pictures(tokens, canvas)


def examine(
    model: MMDiT, arm: Arm, protocol: Protocol, split: Split, features: Features
) -> dict[str, float]:
    """Scores by name: `dense 12x12`, and `right dense 12x12` for whole prompts; same for brief.

    Brief prompts are tried on the small canvas alone. `offsets` and `grey` are the variety there.
    """
    scores: dict[str, float] = {}
    for kind, canvases in (("dense", TRIED_SIZES), ("brief", (SMALL,))):
        captions = prompts(split, protocol, kind)
        features.learn(caption.text for caption in captions)
        for canvas in canvases:
            readings = read(paint(model, captions, canvas, arm, protocol, features))
            verdicts = [judge(r, caption) for r, caption in zip(readings, captions, strict=True)]
            name = f"{kind} {canvas}"
            scores[name] = float(np.mean([verdict.rubric for verdict in verdicts]))
            scores[f"right {name}"] = float(np.mean([verdict.is_right for verdict in verdicts]))
            if name == f"dense {SMALL}" and any(reading.things for reading in readings):
                found = variety(readings, canvas)
                scores |= {"offsets": found.offsets, "grey": found.grey}
    return scores
