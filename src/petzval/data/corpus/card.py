"""A data card: what is in a corpus, what was dropped and why, and under which licences.

A Markdown page and its pictures, written from the columns alone, so that the same corpus gives the
same bytes. What has not run is said, not left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from petzval.data.corpus.card_facts import CaptionFacts, CorpusFacts, facts_of
from petzval.data.corpus.card_plots import plot_buckets, plot_crop_loss, plot_words, plot_yields
from petzval.data.corpus.manifest import Corpus, write_whole
from petzval.errors import DataError

MAX_REASONS = 3


def write_card(corpus: Corpus, page: Path | None = None) -> Path:
    """Write the page, and its pictures into the folder `<stem>-pictures` beside it.

    Args:
        corpus: with pictures; every stage that has run is told about.
        page: a Markdown file; `card.md` in the corpus where None.

    Raises:
        DataError: the corpus is empty or damaged, or the page cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    page = page or corpus.folder / "card.md"
    if not corpus.parts():
        raise DataError(
            f"{corpus.folder} holds no pictures", "run: petzval data import SOURCE --into FOLDER"
        )
    facts = facts_of(corpus)
    pictures = _pictures(facts)
    folder = page.parent / f"{page.stem}-pictures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in pictures.items():
            write_whole(folder / f"{name}.png", data)
        write_whole(page, markdown(facts, folder.name).encode())
    except OSError as error:
        raise DataError(f"{page}: cannot be written ({error.strerror})") from error
    return page


def _pictures(facts: CorpusFacts) -> dict[str, bytes]:
    pictures = {"yields": plot_yields(facts.steps, facts.num_pictures)}
    if facts.buckets is not None:
        pictures["buckets"] = plot_buckets(facts.buckets)
        pictures["crop-loss"] = plot_crop_loss(facts.crop_loss)
    if facts.captions:
        pictures["caption-lengths"] = plot_words(facts.captions)
    return pictures


def markdown(facts: CorpusFacts, pictures: str) -> str:
    """The page; pictures are expected in the folder of that name."""
    sections = (
        _opening(facts),
        _cleaning(facts, pictures),
        _captions(facts, pictures),
        _buckets(facts, pictures),
        _splits(facts),
        _licences(facts),
    )
    return "\n".join("\n".join(section) for section in sections)


def _opening(facts: CorpusFacts) -> Iterator[str]:
    share = facts.num_kept / facts.num_pictures
    yield f"# {_safe(facts.name)}: data card\n"
    yield "Written by `petzval data card`; not edited by hand.\n"
    yield (
        f"{facts.num_pictures:,} pictures were imported ({_size(facts.num_bytes)});"
        f" {facts.num_kept:,} of them ({share:.1%}) are kept: no cleaning step dropped them.\n"
    )


def _cleaning(facts: CorpusFacts, pictures: str) -> Iterator[str]:
    yield "## Cleaning\n"
    absent = [step for step, found in facts.steps if found is None or found.not_run]
    if len(absent) == len(facts.steps):
        yield "**No step has run**: `petzval data clean`.\n"
    elif absent:
        yield f"**Not run: {', '.join(absent)}.** Nothing was dropped for these reasons.\n"
    rows: list[tuple[str, ...]] = []
    for step, found in facts.steps:
        if found is None or found.not_run:
            why = "never asked for" if found is None else found.not_run
            rows.append((step, "–", "–", "–", f"**not run**: {_safe(_without_prefix(why))}"))
            continue
        reasons = [f"{_safe(reason)} ({count:,})" for reason, count in found.reasons]
        if len(reasons) > MAX_REASONS:
            reasons = [*reasons[:MAX_REASONS], f"{len(reasons) - MAX_REASONS} more"]
        if found.num_not_judged:
            reasons.append(f"not judged ({found.num_not_judged:,})")
        rows.append(
            (step, f"{found.num_in:,}", f"{found.num_dropped:,}", f"{found.share_left:.1%}",
             "; ".join(reasons))
        )  # fmt: skip
    yield _table(("step", "came", "dropped", "left", "reasons"), rows, numbers=(1, 2, 3))
    yield f"\n![What each cleaning step leaves]({pictures}/yields.png)\n"


def _without_prefix(reason: str) -> str:
    return reason.partition(": ")[2] or reason


def _captions(facts: CorpusFacts, pictures: str) -> Iterator[str]:
    yield "## Captions\n"
    if not facts.captions:
        yield "**None**: `petzval data caption`.\n"
        return
    if facts.captions[0].kind == "source":
        yield "Those of the import; `petzval data caption` has not run.\n"
    rows = [_caption_row(each) for each in facts.captions]
    header = ("kind", "by", "captions", "mean words", "median", "longest", "without a caption")
    yield _table(header, rows, numbers=(2, 3, 4, 5))
    yield f"\n![Length of captions]({pictures}/caption-lengths.png)\n"


def _caption_row(each: CaptionFacts) -> tuple[str, ...]:
    words = each.words if each.words.size else np.zeros(1, np.int64)
    without = [
        f"{status} ({count:,})"
        for status, count in each.statuses.items()
        if status != "caption" and count
    ]
    return (
        each.kind,
        ", ".join(_safe(model) for model in each.models) or "the sources",
        f"{each.words.size:,}",
        f"{words.mean():.1f}",
        f"{np.median(words):.0f}",
        f"{words.max():,}",
        ", ".join(without) or "none",
    )


def _buckets(facts: CorpusFacts, pictures: str) -> Iterator[str]:
    yield "## Buckets\n"
    if facts.buckets is None:
        yield "**Not assigned**: `petzval data shard`.\n"
        return
    total = max(1, sum(facts.buckets.values()))
    rows = [
        (name.partition("/")[0], name.partition("/")[2], f"{facts.num_tokens[name]:,}",
         f"{count:,}", f"{count / total:.1%}")
        for name, count in facts.buckets.items()
    ]  # fmt: skip
    yield _table(("base", "width x height", "tokens", "pictures", "share"), rows, (2, 3, 4))
    yield f"\n![Pictures in each bucket]({pictures}/buckets.png)\n"
    losses = facts.crop_loss if facts.crop_loss.size else np.zeros(1)
    yield (
        f"The crop cuts off {losses.mean():.1%} of a picture on average, at the median"
        f" {np.median(losses):.1%}, of one in twenty more than {np.quantile(losses, 0.95):.1%},"
        f" and at most {losses.max():.1%}. {facts.num_enlarged:,} pictures are smaller than their"
        " bucket and enlarged.\n"
    )
    yield f"![Crop loss]({pictures}/crop-loss.png)\n"


def _splits(facts: CorpusFacts) -> Iterator[str]:
    yield "## Held-out split\n"
    if facts.splits is None:
        yield "**Not made**: `petzval data shard`.\n"
        return
    total = max(1, sum(facts.splits.values()))
    rows = [(side, f"{n:,}", f"{n / total:.2%}") for side, n in facts.splits.items()]
    yield _table(("side", "pictures", "share"), rows, numbers=(1, 2))
    clusters = "" if facts.num_clusters is None else f" ({facts.num_clusters:,} of two or more)"
    yield f"\nWhole clusters of near-duplicates{clusters} are on one side.\n"


def _licences(facts: CorpusFacts) -> Iterator[str]:
    yield "## Sources and licences\n"
    rows = [
        (_safe(source), _safe(licence) or "**not stated**", f"{imported:,}", f"{left:,}")
        for (source, licence), (imported, left) in facts.sources.items()
    ]
    yield _table(("source", "licence", "imported", "kept"), rows, numbers=(2, 3)) + "\n"


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    rules = ["---:" if place in numbers else "---" for place in range(len(header))]
    lines = [header, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """Words of a source, without the power to end a cell, make a link or command a terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter in "\\`*_[]<>|":
        plain = plain.replace(letter, f"\\{letter}")
    return " ".join(plain.split())[:200]


def _size(num_bytes: int) -> str:
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
