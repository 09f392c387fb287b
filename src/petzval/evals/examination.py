"""Examine the scorer: how often is it right where the truth is known?

What comes out is written beside its weights, and every report of a model shows it beside the
model's own shares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from petzval.data.scene import sample_scene
from petzval.data.sprites import SpriteLibrary
from petzval.errors import DataError
from petzval.evals.drawing import Progress
from petzval.evals.questions import Question
from petzval.evals.real_scenes import lone_picture, real_picture, shuffled
from petzval.evals.scorer_data import is_measured_only, labelled
from petzval.evals.statistics import Share, cluster_bootstrap
from petzval.evals.summary import Line, by_check, by_skill
from petzval.evals.verdicts import Row, judge
from petzval.inference.image import write_atomically
from petzval.resolution import Resolution
from petzval.scoring.bundle import SHIPPED
from petzval.scoring.cutouts import soften, to_tensor
from petzval.scoring.judge import Judge, JudgeRules
from petzval.scoring.positions import POSITIONS
from petzval.scoring.scorer import Expectation, ExpectedObject, Picture, Scorer

FILE = "examination.json"
_SIZE = Resolution(height=256, width=256)
_SERIES = 4242
"""Scene series that neither scorers nor models are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What a scorer answers where the truth is known.

    Attributes:
        real: by skill, on right pictures of the evaluation prompts, in styles new to the scorer.
        known: on right pictures in the styles that models and scorers are trained on.
        blurred: those, blurred and grained as a small model's pictures are.
        shuffled: `real` pictures under another prompt of the same skill: what passes by luck.
        real_checks, known_checks, shuffled_checks: the same by the thing asked.
        abilities: on random scenes in styles new to the scorer, all concepts alike.
    """

    real: tuple[Line, ...]
    known: tuple[Line, ...]
    blurred: tuple[Line, ...]
    shuffled: tuple[Line, ...]
    real_checks: tuple[Line, ...]
    known_checks: tuple[Line, ...]
    shuffled_checks: tuple[Line, ...]
    abilities: tuple[Line, ...]


def examine(
    judge_: Judge,
    library: SpriteLibrary,
    asked: Sequence[Question],
    *,
    num_random: int = 300,
    progress: Progress | None = None,
) -> Examination:
    """Examine on the pictures of `asked`, and on `num_random` random scenes for each ability."""
    rows: dict[str, list[Row]] = {"real": [], "known": [], "blurred": [], "shuffled": []}
    pictures: dict[str, Picture] = {}
    for index, question in enumerate(asked):
        if progress is not None:
            progress("examine", index, len(asked))
        new = real_picture(library, question, index, _SIZE)
        known = real_picture(library, question, index, _SIZE, known_style=True)
        pictures[question.prompt_id] = new
        for name, picture in (("real", new), ("known", known), ("blurred", blur(known, index))):
            rows[name].append(judge(question, 0, name, picture, judge_))
    for question, other in shuffled(asked):
        picture = pictures[question.prompt_id]
        rows["shuffled"].append(judge(other, 0, "shuffled", picture, judge_))
    return Examination(
        real=tuple(by_skill(rows["real"])),
        known=tuple(by_skill(rows["known"])),
        blurred=tuple(by_skill(rows["blurred"])),
        shuffled=tuple(by_skill(rows["shuffled"])),
        real_checks=tuple(by_check(rows["real"])),
        known_checks=tuple(by_check(rows["known"])),
        shuffled_checks=tuple(by_check(rows["shuffled"])),
        abilities=tuple(abilities(judge_, library, num_random, progress)),
    )


def blur(picture: Picture, seed: int) -> Picture:
    """A picture softened to between a third of its detail and all of it, with grain."""
    generator = torch.Generator().manual_seed(seed)
    soft = soften(to_tensor(picture)[None], generator, smallest=0.33)[0]
    return (soft * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def abilities(
    judge_: Judge, library: SpriteLibrary, count: int, progress: Progress | None = None
) -> list[Line]:
    """One line for each thing a scorer must be able to tell, on `count` random scenes each."""
    lines = list(_concepts(judge_, library, count, progress))
    for skill in ("count", "position", "colour"):
        split = "trained_styles" if skill == "colour" else "held_out_styles"
        results: list[bool] = []
        for index in range(count):
            if progress is not None:
                progress(skill, index, count)
            results.append(_right(judge_, library, split, skill, index))
        lines.append(_line(skill, results, {"count": 1 / 5, "position": 1 / 9}.get(skill, 1 / 11)))
    lines.append(_line("style", _styles(judge_, library, count), 1 / 3))
    lines.append(_line("background", list(_backgrounds(judge_, library, count)), 1 / 14))
    return lines


def _concepts(
    judge_: Judge, library: SpriteLibrary, count: int, progress: Progress | None
) -> Iterable[Line]:
    """Is the thing among the first 1 and 5 of 300, over all concepts alike?"""
    known = sorted({one.concept for one in library.sprites if one.style_held_out})
    step = max(1, len(known) // count)
    ranks: list[int] = []
    for index, concept in enumerate(known[::step][:count]):
        if progress is not None:
            progress("concepts", index, count)
        question = Question(
            prompt_id=concept, number=concept, skill="single", language="en", prompt=concept,
            trained=True, expectation=Expectation(objects=(ExpectedObject(concept=concept),)),
        )  # fmt: skip
        picture = real_picture(library, question, index, _SIZE)
        ranks.append(judge_.rank(picture, concept))
    for top in (1, 5):
        name = f"concept, first {top} of 300" if top > 1 else "concept, first of 300"
        yield _line(name, [rank <= top for rank in ranks], top / 300)


def _right(scorer: Scorer, library: SpriteLibrary, split: str, skill: str, index: int) -> bool:
    scene = sample_scene(
        library, seed=_SERIES, index=index, resolution=_SIZE, split=split, skill=skill
    )
    truth = labelled(library, scene)
    thing = scene.objects[0]
    row, column = thing.cell
    wanted = ExpectedObject(
        concept=thing.concept,
        count=scene.count if skill == "count" else None,
        position=POSITIONS[3 * row + column] if skill == "position" else None,
        colour=thing.colour if skill == "colour" else None,
    )
    return scorer.score(truth.picture, Expectation(objects=(wanted,))).checks[skill]


def _styles(judge_: Judge, library: SpriteLibrary, count: int) -> list[bool]:
    """Pictures that the style classifier was not trained on, in the styles that prompts ask for."""
    asked = JudgeRules().styles_asked
    kept = [one for one in library.sprites if one.style in asked and is_measured_only(one)]
    results: list[bool] = []
    for index, sprite in enumerate(kept[:: max(1, len(kept) // count)][:count]):
        picture = lone_picture(library, sprite, index, _SIZE)
        expectation = Expectation(
            objects=(ExpectedObject(concept=sprite.concept),), style=sprite.style
        )
        results.append(judge_.score(picture, expectation).checks["style"])
    return results


def _backgrounds(scorer: Scorer, library: SpriteLibrary, count: int) -> Iterable[bool]:
    index = found = 0
    while found < count:
        scene = sample_scene(
            library, seed=_SERIES, index=index, resolution=_SIZE, split="held_out_styles",
            skill="single",
        )  # fmt: skip
        index += 1
        truth = labelled(library, scene)
        if truth.background is not None:
            found += 1
            expectation = Expectation(objects=(), background=truth.background)
            yield scorer.score(truth.picture, expectation).checks["background"]


def _line(name: str, results: Sequence[bool], chance: float) -> Line:
    values = [float(one) for one in results]
    return Line(name=name, share=cluster_bootstrap(values, range(len(values))), chance=chance)


def save_examination(examination: Examination, folder: Path) -> None:
    """Write it beside the scorer's weights."""
    text = json.dumps(asdict(examination), indent=1)
    write_atomically(folder / FILE, (text + "\n").encode())


def load_examination(folder: Path = SHIPPED) -> Examination:
    """The examination of the scorers in a folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / FILE
    try:
        fields: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
        return Examination(**{name: tuple(map(_read, rows)) for name, rows in fields.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read {path}: {error}", "reinstall petzval") from error


def _read(row: Mapping[str, Any]) -> Line:
    return Line(name=row["name"], share=Share(**row["share"]), chance=row["chance"])
