"""The scorer of this project: what a prompt asked, checked thing by thing on the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from petzval.scoring.colours import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    background_shares,
    colour_shares,
    object_mask,
)
from petzval.scoring.cutouts import cut_out, to_tensor
from petzval.scoring.detector import Detection, Detector, detect
from petzval.scoring.dual_encoder import DualEncoder
from petzval.scoring.positions import POSITIONS, position_of
from petzval.scoring.scorer import RELATIONS, Expectation, ExpectedObject, Picture, Verdict

MAX_OBJECTS = 8
"""Only this many of the surest things are looked at closer; more are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRules:
    """When an answer counts as right.

    Attributes:
        num_distractors: concepts that the asked one is compared with.
        top: the asked concept must be among this many nearest (1 = nearest of all).
        threshold: smallest detector confidence that makes a thing.
        most_counted: a blind guess at a number picks one of 1 to this.
        styles_asked: the styles that prompts ask for; a picture's style is the likeliest of these.
    """

    num_distractors: int = 299
    top: int = 5
    threshold: float = 0.35
    most_counted: int = 5
    styles_asked: tuple[str, ...] = ("fluent-3d", "fluent-flat", "noto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One found object: where it is, and what the picture tower makes of it."""

    detection: Detection
    embedding: Float[Tensor, " embedding"]
    style_logits: Float[Tensor, " styles"]


class Judge:
    """A `Scorer` made of a detector, a dual encoder and colour tables.

    Args:
        identity: hash of the weights the two networks were read from.
    """

    def __init__(
        self,
        detector: Detector,
        encoder: DualEncoder,
        *,
        identity: str,
        rules: JudgeRules | None = None,
    ) -> None:
        self._detector = detector.eval()
        self._encoder = encoder
        self._rules = rules or JudgeRules()
        self._identity = f"{identity}/{self._rules}"

    @property
    def identity(self) -> str:
        """Hash of the weights, and the rules."""
        return self._identity

    def look(self, picture: Picture) -> list[Thing]:
        """The things in a picture [height, width, 3], surest first."""
        found = detect(self._detector, picture, threshold=self._rules.threshold)
        if not found:
            return []
        height, width = picture.shape[:2]
        tensor = to_tensor(picture)
        side = self._encoder.side
        near = found[:MAX_OBJECTS]
        cutouts = [cut_out(tensor, one.pixels(height, width), side) for one in near]
        embeddings, styles = self._encoder.embed(torch.stack(cutouts))
        things = [
            Thing(detection=one, embedding=embedding, style_logits=logits)
            for one, embedding, logits in zip(near, embeddings, styles, strict=True)
        ]
        # The unseen rest borrow the last one's looks; only their number is ever used.
        rest = found[MAX_OBJECTS:]
        return things + [
            Thing(detection=one, embedding=embeddings[-1], style_logits=styles[-1]) for one in rest
        ]

    def rank(self, picture: Picture, concept: str) -> int:
        """The best place that anything in a picture gives `concept`, 1 to distractors + 1."""
        ranks = [self._rank(thing, concept) for thing in self.look(picture)[:MAX_OBJECTS]]
        return min(ranks, default=self._rules.num_distractors + 1)

    def score(self, picture: Picture, expectation: Expectation) -> Verdict:
        """Judge `picture` by everything that `expectation` asks.

        Colour and position are judged on the thing that looks most like the asked one, whether or
        not it looks enough like it to pass: each check speaks for itself.
        """
        things = self.look(picture)
        matched = self._match(things[:MAX_OBJECTS], expectation.objects)
        checks: dict[str, bool] = {}
        reasons: dict[str, str] = {}
        for name in expectation.asked():
            match name:
                case "concept":
                    answer = self._concepts(things, matched, expectation.objects)
                case "count":
                    answer = _count(things, expectation.objects)
                case "colour":
                    answer = _colours(picture, matched, expectation.objects)
                case "position":
                    answer = _positions(picture, matched, expectation.objects)
                case "relation":
                    answer = _relation(matched, expectation.relation)
                case "background":
                    answer = _background(picture, expectation.background)
                case _:
                    answer = self._style(matched, expectation.style)
            checks[name], reasons[name] = answer
        return Verdict(checks=checks, reasons=reasons)

    def chance(self, expectation: Expectation) -> Mapping[str, float]:
        """For each thing asked, the share a blind guess of one answer each would get right."""
        objects = expectation.objects
        single = {
            "concept": (self._rules.top / (self._rules.num_distractors + 1)) ** len(objects),
            "count": 1 / self._rules.most_counted,
            "colour": len(OBJECT_COLOURS) ** -sum(one.colour is not None for one in objects),
            "position": len(POSITIONS) ** -sum(one.position is not None for one in objects),
            "relation": 1 / len(RELATIONS),
            "background": 1 / len(BACKGROUND_COLOURS),
            "style": 1 / len(self._rules.styles_asked),
        }
        return {name: single[name] for name in expectation.asked()}

    def _rank(self, thing: Thing, concept: str) -> int:
        if not self._encoder.knows(concept):
            return self._rules.num_distractors + 1
        return self._encoder.rank(thing.embedding, concept, self._rules.num_distractors)

    def _match(
        self, things: Sequence[Thing], objects: Sequence[ExpectedObject]
    ) -> list[Thing | None]:
        """The thing meant by each asked object: distinct things, smallest ranks in all."""
        if not things:
            return [None] * len(objects)
        ranks = [[self._rank(thing, one.concept) for thing in things] for one in objects]
        slots = list(range(len(things))) + [-1] * max(0, len(objects) - len(things))
        worst = self._rules.num_distractors + 1

        def cost(choice: tuple[int, ...]) -> int:
            pairs = zip(ranks, choice, strict=True)
            return sum(worst + 1 if slot < 0 else row[slot] for row, slot in pairs)

        best = min(itertools.permutations(slots, len(objects)), key=cost)
        return [None if slot < 0 else things[slot] for slot in best]

    def _concepts(
        self,
        things: Sequence[Thing],
        matched: Sequence[Thing | None],
        objects: Sequence[ExpectedObject],
    ) -> tuple[bool, str]:
        right, words = True, list[str]()
        for one, thing in zip(objects, matched, strict=True):
            if thing is None:
                right = False
                words.append(f"no {one.concept}: no object left")
                continue
            rank = self._rank(thing, one.concept)
            right = right and rank <= self._rules.top
            seen = self._encoder.nearest(thing.embedding)
            words.append(f"{one.concept}: place {rank}, looks most like {seen}")
        return right, "; ".join(words)

    def _style(self, matched: Sequence[Thing | None], wanted: str | None) -> tuple[bool, str]:
        logits = [thing.style_logits for thing in matched if thing is not None]
        if not logits:
            return False, "no object found"
        mean: list[float] = torch.stack(logits).mean(dim=0).tolist()
        likelihood = dict(zip(self._encoder.styles, mean, strict=True))
        seen = max(self._rules.styles_asked, key=lambda style: likelihood.get(style, -math.inf))
        return seen == wanted, f"drawn as {seen}"


def _count(things: Sequence[Thing], objects: Sequence[ExpectedObject]) -> tuple[bool, str]:
    wanted = sum(one.count if one.count is not None else 1 for one in objects)
    return len(things) == wanted, f"{len(things)} objects"


def _colours(
    picture: Picture, matched: Sequence[Thing | None], objects: Sequence[ExpectedObject]
) -> tuple[bool, str]:
    height, width = picture.shape[:2]
    right, words = True, list[str]()
    for one, thing in zip(objects, matched, strict=True):
        if one.colour is None:
            continue
        if thing is None:
            right = False
            words.append("no object found")
            continue
        box = thing.detection.pixels(height, width)
        top, left, bottom, right_edge = box
        inside = picture[top:bottom, left:right_edge][object_mask(picture, box)]
        shares = colour_shares(inside)
        seen = next(iter(shares), "nothing")
        right = right and seen == one.colour
        words.append(f"{seen} ({shares.get(seen, 0.0):.0%})")
    return right, "; ".join(words)


def _positions(
    picture: Picture, matched: Sequence[Thing | None], objects: Sequence[ExpectedObject]
) -> tuple[bool, str]:
    height, width = picture.shape[:2]
    right, words = True, list[str]()
    for one, thing in zip(objects, matched, strict=True):
        if one.position is None:
            continue
        seen = (
            "no object found"
            if thing is None
            else position_of(thing.detection.centre, height, width)
        )
        right = right and seen == one.position
        words.append(seen)
    return right, "; ".join(words)


def _relation(matched: Sequence[Thing | None], wanted: str | None) -> tuple[bool, str]:
    """The direction in which the two centres are furthest apart."""
    if len(matched) != 2 or matched[0] is None or matched[1] is None:
        return False, "fewer than two objects found"
    first, second = matched[0].detection.centre, matched[1].detection.centre
    down, across = first[0] - second[0], first[1] - second[1]
    if abs(across) >= abs(down):
        seen = "left of" if across < 0 else "right of"
    else:
        seen = "above" if down < 0 else "below"
    return seen == wanted, seen


def _background(picture: Picture, wanted: str | None) -> tuple[bool, str]:
    shares = background_shares(picture)
    seen = next(iter(shares))
    return seen == wanted, f"{seen} ({shares[seen]:.0%} of the frame)"
