"""A measured model as a page of Markdown with two pictures. Nothing on it is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from petzval.evals.pictures import contact_sheet, skill_bars
from petzval.evals.run import Evaluation
from petzval.evals.store import png_bytes
from petzval.evals.summary import (
    Line,
    by_check,
    by_skill,
    distinct,
    everything,
    select,
    shared_numbers,
)
from petzval.evals.tables import chance_table, percent, percent_with_interval, table
from petzval.evals.verdicts import Row
from petzval.inference.image import write_atomically
from petzval.scoring.scorer import CHECKS

LANGUAGE_NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese",
    "it": "Italian", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian",
    "ar": "Arabic", "hi": "Hindi",
}  # fmt: skip
ASKED = {
    "single": "the thing",
    "background": "the thing, background colour",
    "colour": "the thing, its colour",
    "two": "both things, how they lie",
    "count": "the thing, how many",
    "style": "the thing, drawing style",
    "position": "the thing, its place on a 3 × 3 grid",
}


def write_report(evaluation: Evaluation, page: Path) -> Path:
    """Write `page` (Markdown) and its pictures into the folder `pictures` beside it.

    Raises:
        RequestError: a file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    stem = page.stem
    folder = page.parent / "pictures"
    first = first_language(evaluation)
    trained, held_out = (
        by_skill(rows) if (rows := select(evaluation.rows, language=first, trained=side)) else []
        for side in (True, False)
    )
    title = f"{evaluation.model}: held-out prompts judged right"
    bars = skill_bars(trained, held_out, evaluation.examination.known, title=title)
    sheet = contact_sheet(
        [picture for _, picture in evaluation.sheet], [prompt for prompt, _ in evaluation.sheet]
    )
    write_atomically(folder / f"{stem}-skills.png", bars)
    write_atomically(folder / f"{stem}-contact-sheet.png", png_bytes(sheet))
    write_atomically(page, markdown(evaluation, stem).encode())
    return page


def first_language(evaluation: Evaluation) -> str:
    """The language that was asked in full."""
    return evaluation.rows[0].language


def markdown(evaluation: Evaluation, stem: str) -> str:
    """The page; pictures are expected at `pictures/<stem>-….png`."""
    first = first_language(evaluation)
    rows = select(evaluation.rows, language=first)
    parts = [
        _opening(evaluation, rows, stem),
        "## By skill\n\n"
        + _skills(evaluation, rows)
        + f"\n![Shares](pictures/{stem}-skills.png)\n",
        "## By the thing asked\n\n" + _checks(evaluation, rows),
        "## What it cannot do\n\n" + _failures(rows),
        _languages(evaluation.rows),
        _scorer(evaluation),
        _first_pictures(evaluation, stem),
    ]
    return "\n".join(part for part in parts if part)


def _opening(evaluation: Evaluation, rows: Sequence[Row], stem: str) -> str:
    painter = evaluation.painter
    prompts = len(distinct(row.prompt_id for row in rows))
    seeds = distinct(str(row.seed) for row in rows)
    return f"""# {evaluation.model}, measured

Written by `petzval evaluate`; not edited by hand.

{prompts} held-out {LANGUAGE_NAMES.get(rows[0].language, rows[0].language)} prompts, \
{len(rows)} pictures (seed {", ".join(seeds)}), {painter.get("height")} × {painter.get("width")}, \
{painter.get("steps")} steps, guidance {painter.get("guidance")}, {painter.get("dtype")} on \
{painter.get("device")}, checkpoint `{str(painter.get("checkpoint"))[:16]}`. The denoiser never
saw a caption in the words of these prompts. *Held-out concepts* are things it never saw a picture
of at all.

Judged by a small detector, a dual encoder and colour tables, not by people. A picture is right
when everything asked is. In brackets: 95 % interval, bootstrap over prompts. *Chance* is what blind
guesses would get. *Right pictures* are composed from the library for the same prompts: what the
scorer should pass, in the styles that models are trained on (*known style*) and in one that the
scorer never saw (*new style*). *Wrong prompt* is the latter under another prompt of the same skill:
what it passes by luck. A perfect model of known styles would get about the first of the three.
"""


def _skills(evaluation: Evaluation, rows: Sequence[Row]) -> str:
    known = {line.name: line for line in evaluation.examination.known}
    real = {line.name: line for line in evaluation.examination.real}
    wrong = {line.name: line for line in evaluation.examination.shuffled}
    body: list[list[str]] = []
    for line in by_skill(rows):
        fitting = select(rows, skill=None if line.name == "all" else line.name)
        body.append(
            [
                line.name,
                ASKED.get(line.name, ""),
                percent_with_interval(line.share),
                *(_side(select(fitting, trained=side)) for side in (True, False)),
                percent(line.chance),
                _mean(known.get(line.name)),
                _mean(real.get(line.name)),
                _mean(wrong.get(line.name)),
            ]
        )
    header = (
        "skill", "asked", "right", "trained concepts", "held-out concepts", "chance",
        "right pictures, known style", "right pictures, new style", "wrong prompt",
    )  # fmt: skip
    return table(header, body)


def _side(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    share = everything("", rows).share
    return f"{percent_with_interval(share)}, n {share.num_values}"


def _mean(line: Line | None) -> str:
    return "–" if line is None else percent(line.share.mean)


def _checks(evaluation: Evaluation, rows: Sequence[Row]) -> str:
    known = {line.name: line for line in evaluation.examination.known_checks}
    real = {line.name: line for line in evaluation.examination.real_checks}
    wrong = {line.name: line for line in evaluation.examination.shuffled_checks}
    trained = {line.name: line for line in by_check(select(rows, trained=True))}
    held_out = {line.name: line for line in by_check(select(rows, trained=False))}
    body: list[list[str]] = [
        [
            line.name,
            str(line.share.num_values),
            percent_with_interval(line.share),
            *(
                percent_with_interval(side[line.name].share) if line.name in side else "–"
                for side in (trained, held_out)
            ),
            percent(line.chance),
            _mean(known.get(line.name)),
            _mean(real.get(line.name)),
            _mean(wrong.get(line.name)),
        ]
        for line in by_check(rows)
    ]
    header = (
        "asked", "n", "right", "trained concepts", "held-out concepts", "chance",
        "right pictures, known style", "right pictures, new style", "wrong prompt",
    )  # fmt: skip
    return "Each thing on its own, wherever a prompt asks for it:\n\n" + table(header, body)


def _failures(rows: Sequence[Row]) -> str:
    """The skills and things whose interval does not clear chance, and the weakest ones."""
    sentences: list[str] = []
    for name, trained in (("trained", True), ("held-out", False)):
        side = select(rows, trained=trained)
        if not side:
            continue
        lines = [line for line in by_skill(side) if line.name != "all"]
        at_chance = [line.name for line in lines if line.share.low <= line.chance]
        clear = [line for line in lines if line.share.low > line.chance]
        weak = [f"{line.name} ({percent(line.share.mean)})" for line in clear
                if line.share.mean < 0.5]  # fmt: skip
        if at_chance:
            sentences.append(
                f"With {name} concepts it is not measurably above chance in: "
                f"{', '.join(at_chance)}."
            )
        if weak:
            sentences.append(
                f"With {name} concepts it is above chance but wrong more often than right in: "
                f"{', '.join(weak)}."
            )
        if not at_chance and not weak:
            sentences.append(f"With {name} concepts every skill is right more often than not.")
    sentences.append(
        "It draws illustrations of things on plain backgrounds. It was not trained on photographs, "
        "on scenes with more than five things, or on words longer than a few letters, and none of "
        "that is measured here."
    )
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


def _languages(rows: Sequence[Row]) -> str:
    """Languages on the prompts that all of them were asked."""
    languages = distinct(row.language for row in rows)
    if len(languages) < 2:
        return ""
    shared = shared_numbers(rows)
    common = select(rows, numbers=shared)
    checks = [check for check in CHECKS if any(check in row.checks for row in common)]
    body: list[list[str]] = []
    for language in languages:
        asked = select(common, language=language)
        lines = {line.name: line for line in by_check(asked)}
        body.append(
            [
                LANGUAGE_NAMES.get(language, language),
                percent_with_interval(everything("", asked).share),
                *(percent_with_interval(lines[c].share) for c in checks),
            ]
        )
    chance = {line.name: line.chance for line in by_check(common)}
    body.append(["*chance*", percent(everything("", common).chance),
                 *(percent(chance[c]) for c in checks)])  # fmt: skip
    return (
        f"## Languages\n\nThe same {len(shared)} prompts in every language. The denoiser was "
        "trained on English captions only; what it draws from other languages comes through the "
        "language encoder.\n\n" + table(["language", "everything", *checks], body)
    )


def _scorer(evaluation: Evaluation) -> str:
    examination = evaluation.examination
    known, blurred, real, wrong = (
        {line.name: line for line in lines}["all"].share
        for lines in (
            examination.known,
            examination.blurred,
            examination.real,
            examination.shuffled,
        )
    )
    return f"""## The scorer

Of {real.num_values} right pictures in known styles it passes {percent_with_interval(known)}, of the
same pictures blurred and grained {percent_with_interval(blurred)}, of right pictures in a new style
{percent_with_interval(real)}, and of those under a wrong prompt {percent_with_interval(wrong)}. On
random scenes in styles new to it, all concepts alike:

{chance_table(examination.abilities)}
How it was trained is in its card, `src/petzval/assets/scorers/README.md`. A concept counts as shown
when it is among the 5 nearest of 300: itself and 299 others drawn by a fixed hash.
"""


def _first_pictures(evaluation: Evaluation, stem: str) -> str:
    return f"""## The first {len(evaluation.sheet)} prompts

Seed {evaluation.rows[0].seed}, in the order of the list, none left out.

![Contact sheet](pictures/{stem}-contact-sheet.png)
"""
