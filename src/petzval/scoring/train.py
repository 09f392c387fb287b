"""Train the detector and the dual encoder, in minutes, on one core, the same way every time.

How much is done is worked out from the minutes beforehand, by rates measured on one core, and not
by looking at a clock: the same minutes give the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from petzval.errors import TrainingError
from petzval.scoring.backbone import PictureFeatures
from petzval.scoring.bundle import ScorerBundle
from petzval.scoring.colours import BACKGROUND_COLOURS, OBJECT_COLOURS
from petzval.scoring.cutouts import disturb, paste, soften, to_tensor
from petzval.scoring.detector import Detector, detect, detection_loss, targets_of
from petzval.scoring.dual_encoder import (
    ConceptTower,
    PictureHead,
    contrastive_loss,
    initial_scale,
)
from petzval.scoring.examples import BLOCK, ScorerData, SpriteLabel
from petzval.scoring.judge import JudgeRules

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_THRESHOLDS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerPlan:
    """How much is done.

    Attributes:
        detector_steps: of `BLOCK` scenes each.
        num_views: cut-outs whose features are computed, spread evenly over the sprites.
        head_steps: of `head_batch` views each.
        calibration_scenes: fresh scenes on which the detector's threshold is chosen.
    """

    detector_steps: int
    num_views: int
    head_steps: int
    head_batch: int = 512
    detector_width: int = 48
    calibration_scenes: int = 256
    seed: int = 0

    @classmethod
    def of_minutes(cls, minutes: float, *, seed: int = 0) -> ScorerPlan:
        """A plan that takes about `minutes` of one server core.

        Raises:
            TrainingError: `minutes` is not a positive number.
        """
        if not (minutes > 0 and math.isfinite(minutes)):
            raise TrainingError(f"minutes must be positive, got {minutes}")
        return cls(
            detector_steps=max(1, round(100 * minutes)),
            num_views=max(1, round(2240 * minutes)),
            head_steps=max(1, round(80 * minutes)),
            seed=seed,
        )


def train_detector(
    data: ScorerData, plan: ScorerPlan, progress: Progress | None = None
) -> tuple[Detector, float]:
    """A trained detector and the confidence threshold that counts best on fresh scenes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = Detector(plan.detector_width)
    generator = torch.Generator().manual_seed(plan.seed + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.01)
    network.train()
    for step in range(plan.detector_steps):
        scenes = [data.scene(BLOCK * step + i) for i in range(BLOCK)]
        pictures = torch.stack([to_tensor(scene.picture) for scene in scenes])
        height, width = pictures.shape[2:]
        targets = [targets_of([one.box for one in s.objects], height, width) for s in scenes]
        pictures = soften(pictures, generator, smallest=0.4)
        _set_rate(optimizer, 2e-3, step, plan.detector_steps)
        optimizer.zero_grad()
        loss = detection_loss(
            network(pictures.contiguous(memory_format=torch.channels_last)), targets
        )
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if progress is not None and step % 20 == 0:
            progress(f"detector, loss {loss.item():.3f}", step, plan.detector_steps)
    network.eval()
    return network, _best_threshold(network, data, plan)


def _best_threshold(network: Detector, data: ScorerData, plan: ScorerPlan) -> float:
    """The middle of the thresholds that count the most fresh scenes right."""
    first = BLOCK * plan.detector_steps
    right = np.zeros(len(_THRESHOLDS), np.int64)
    for index in range(first, first + plan.calibration_scenes):
        scene = data.scene(index)
        found = detect(network, scene.picture, threshold=_THRESHOLDS[0])
        for place, threshold in enumerate(_THRESHOLDS):
            counted = sum(one.confidence >= threshold for one in found)
            right[place] += counted == len(scene.objects)
    best = np.flatnonzero(right == right.max())
    return _THRESHOLDS[int(best[len(best) // 2])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Features of disturbed cut-outs, with what they show.

    Attributes:
        styles: index of the style, or -1 for a sprite that the style head must not learn from.
    """

    features: Float[Tensor, "views features"]
    concepts: Tensor
    styles: Tensor


def make_views(
    data: ScorerData,
    backbone: PictureFeatures,
    plan: ScorerPlan,
    progress: Progress | None = None,
    *,
    batch_size: int = 64,
) -> Views:
    """Paste sprites on plain colours, disturb them, and look at them once with the backbone."""
    rng = np.random.Generator(np.random.Philox(plan.seed + 2))
    generator = torch.Generator().manual_seed(plan.seed + 2)
    labels = data.sprites
    concept_index = {concept: index for index, concept in enumerate(data.concepts)}
    style_index = {style: index for index, style in enumerate(styles_of(data))}
    order = [
        int(i)
        for _ in range(-(-plan.num_views // max(1, len(labels))))
        for i in rng.permutation(len(labels))
    ][: plan.num_views]
    features: list[Tensor] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        cutouts = torch.stack([_pasted(data, i, labels[i], rng) for i in chosen])
        features.append(backbone(disturb(cutouts, backbone.side, generator)).clone())
        if progress is not None and start % (16 * batch_size) == 0:
            progress("views", start, len(order))
    return Views(
        features=torch.cat(features),
        concepts=torch.tensor([concept_index[labels[i].concept] for i in order]),
        styles=torch.tensor(
            [-1 if labels[i].measured_only else style_index[labels[i].style] for i in order]
        ),
    )


def _pasted(
    data: ScorerData, index: int, label: SpriteLabel, rng: np.random.Generator
) -> Float[Tensor, "3 side side"]:
    behind = list(BACKGROUND_COLOURS.values())[int(rng.integers(len(BACKGROUND_COLOURS)))]
    paints = [paint for paint in OBJECT_COLOURS.values() if math.dist(paint, behind) > 80]
    paint = paints[int(rng.integers(len(paints)))] if label.paintable else None
    return paste(data.pixels(index), behind, paint)


def styles_of(data: ScorerData) -> tuple[str, ...]:
    """The drawing styles of a data set, sorted."""
    return tuple(sorted({label.style for label in data.sprites}))


def train_head(
    data: ScorerData, views: Views, plan: ScorerPlan, progress: Progress | None = None
) -> tuple[PictureHead, Float[Tensor, "concepts embedding"]]:
    """A trained picture head and the table of concept embeddings."""
    # Dropout draws from the global generator, which is put back as it was afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + 3)
        head = PictureHead(views.features.shape[1], len(styles_of(data)))
        tower = ConceptTower(list(data.concepts.values()))
        head.standardise(views.features)
        head.train()
        scale = nn.Parameter(initial_scale())
        parameters = [*head.parameters(), *tower.parameters(), scale]
        optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.05)
        for step in range(plan.head_steps):
            chosen = torch.randint(len(views.features), (plan.head_batch,))
            loss = _head_loss(head, tower, scale, views, chosen)
            _set_rate(optimizer, 2e-3, step, plan.head_steps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            if progress is not None and step % 50 == 0:
                progress(f"dual encoder, loss {loss.item():.3f}", step, plan.head_steps)
    return head.eval(), tower().detach()


def _head_loss(
    head: PictureHead, tower: ConceptTower, scale: Tensor, views: Views, chosen: Tensor
) -> Float[Tensor, ""]:
    """The right concept among all, and a little of the right style among all."""
    pictures, style_logits = head(views.features[chosen])
    bounded = scale.clamp(max=math.log(50.0)).exp()
    loss = contrastive_loss(pictures, tower(), views.concepts[chosen], bounded)
    styles = views.styles[chosen]
    if bool((styles >= 0).any()):
        loss = loss + 0.2 * F.cross_entropy(style_logits, styles, ignore_index=-1)
    return loss


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, total: int) -> None:
    """Up over the first 5 % of the steps, then down along a cosine."""
    warm = max(1, total // 20)
    rate = peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / total))
    for group in optimizer.param_groups:
        group["lr"] = rate


def train_scorers(
    data: ScorerData,
    backbone: PictureFeatures,
    plan: ScorerPlan,
    progress: Progress | None = None,
    *,
    detector_of: ScorerBundle | None = None,
) -> ScorerBundle:
    """Both networks, ready to be saved.

    Args:
        detector_of: take the detector and its threshold from these, and train the rest only.

    Raises:
        TrainingError: there is nothing to learn from.
    """
    if not data.sprites or not data.concepts:
        raise TrainingError("scorers need at least one sprite and one concept")
    missing = sorted({label.concept for label in data.sprites} - data.concepts.keys())
    if missing:
        raise TrainingError(f"sprites show {missing[0]!r}, which is no concept of the data")
    if detector_of is None:
        detector, threshold = train_detector(data, plan, progress)
    else:
        detector, threshold = detector_of.detector, detector_of.rules.threshold
    views = make_views(data, backbone, plan, progress)
    head, table = train_head(data, views, plan, progress)
    names: Mapping[str, str] = data.names
    return ScorerBundle(
        detector=detector,
        head=head,
        table=table,
        concepts={concept: names[concept] for concept in data.concepts},
        styles=styles_of(data),
        side=backbone.side,
        rules=JudgeRules(threshold=threshold),
    )
