from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from petzval.data.corpus.buckets import Buckets
from petzval.data.corpus.card import markdown, write_card
from petzval.data.corpus.card_facts import facts_of
from petzval.data.corpus.clean import STEPS
from petzval.data.corpus.manifest import Corpus, base_table
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.split import Split, SplitSettings
from petzval.data.corpus.stages import run_corpus_stage
from petzval.data.corpus.verdicts import NOT_RUN, Verdict, verdict_table
from petzval.errors import DataError
from tests.data.corpus.ready import raw_corpus, ready_corpus, tree

COUNT = 400
DROPPING = {"decodes": 0.02, "area": 0.1, "clarity": 0.05, "luminance": 0.03, "duplicates": 0.08}


def told_corpus(folder: Path) -> Corpus:
    """A corpus of columns alone, as if all had run but two steps that had no model."""
    rng = np.random.default_rng(0)
    corpus = Corpus.create(folder, "a | strange [name](javascript:x)", rows_per_part=COUNT // 2)
    for part in range(2):
        ids = [hashlib.sha256(f"{part} {n}".encode()).hexdigest() for n in range(COUNT // 2)]
        corpus.append(
            base_table(
                {
                    "id": each, "source": ("photographs", "texts")[n % 2], "path": f"{each}.png",
                    "member": "", "offset": 0, "num_bytes": 100_000, "caption": "",
                    "licence": ("CC0-1.0", "CC-BY-4.0", "")[n % 3], "metadata": "{}",
                }
                for n, each in enumerate(ids)
            )
        )  # fmt: skip
        sizes = np.exp(rng.normal(6.9, 0.35, (len(ids), 1)) + rng.normal(0, 0.22, (len(ids), 2)))
        pixels = pa.table({"height": sizes[:, 0].astype(int), "width": sizes[:, 1].astype(int)})
        corpus.write_columns("pixels", part, pixels, {})
        for step in STEPS:
            if step == "watermark":
                continue
            table = verdict_table([_verdict(step, rng) for _ in ids])
            if step == "duplicates":
                table = table.append_column("cluster", pa.array(ids))
            corpus.write_columns(step, part, table, {"step": step})
        rows = corpus.read(part, ("pixels",))
        buckets = Buckets().run(rows, PictureReader(folder))
        corpus.write_columns("buckets", part, buckets, {})
        words = np.exp(rng.normal(4.6, 0.4, len(ids))).astype(int)
        status = ["refusal" if n % 50 == 0 else "caption" for n in range(len(ids))]
        captions = pa.table(
            {
                "text": [
                    "" if s != "caption" else "word " * w
                    for s, w in zip(status, words, strict=True)
                ],
                "status": status,
                "model": ["seer"] * len(ids),
            }
        )
        corpus.write_columns("captions-dense", part, captions, {})
    run_corpus_stage(corpus, Split(settings=SplitSettings(share=0.05)))
    return corpus


def _verdict(step: str, rng: np.random.Generator) -> Verdict:
    if step == "aesthetic":
        return Verdict(score=None, keep=None, reason=f"{NOT_RUN}: no weights ship")
    if rng.random() < DROPPING.get(step, 0):
        return Verdict(
            score=0.0, keep=False, reason=("below 20", "damaged JPEG")[step == "decodes"]
        )
    return Verdict(score=1.0, keep=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return told_corpus(tmp_path_factory.mktemp("told") / "corpus")


def test_the_counts_agree_with_the_columns(corpus: Corpus) -> None:
    facts = facts_of(corpus)
    assert facts.num_pictures == COUNT
    last = [found for _, found in facts.steps if found is not None][-1]
    assert facts.num_kept == last.num_left < COUNT
    assert facts.buckets is not None and sum(facts.buckets.values()) == facts.num_kept
    assert len(facts.buckets) == 27
    assert facts.splits is not None and sum(facts.splits.values()) == facts.num_kept
    assert len(facts.crop_loss) == facts.num_kept
    assert sum(imported for imported, _ in facts.sources.values()) == COUNT
    assert sum(left for _, left in facts.sources.values()) == facts.num_kept
    [dense] = facts.captions
    assert dense.kind == "dense" and sum(dense.statuses.values()) == facts.num_kept
    assert dense.statuses["refusal"] == facts.num_kept - len(dense.words)


def test_the_page_says_what_did_not_run(corpus: Corpus) -> None:
    text = markdown(facts_of(corpus), "pictures")
    assert "**Not run: aesthetic, watermark.** Nothing was dropped for these reasons." in text
    assert "| aesthetic | – | – | – | **not run**: no weights ship |" in text
    assert "| watermark | – | – | – | **not run**: never asked for |" in text
    assert "**not stated**" in text and "refusal (" in text


def test_words_of_a_source_stay_words(corpus: Corpus) -> None:
    text = markdown(facts_of(corpus), "pictures")
    assert text.startswith("# a \\| strange \\[name\\](javascript:x): data card")
    widths = {
        line.replace("\\|", "").count("|")
        for line in text.splitlines()
        if line.startswith("| step")
    }
    assert widths == {6}


def test_page_and_pictures_are_the_same_every_time(corpus: Corpus, tmp_path: Path) -> None:
    write_card(corpus, tmp_path / "a" / "card.md")
    write_card(corpus, tmp_path / "b" / "card.md")
    found = tree(tmp_path / "a")
    assert found == tree(tmp_path / "b")
    assert sorted(found) == [
        "card-pictures/buckets.png",
        "card-pictures/caption-lengths.png",
        "card-pictures/crop-loss.png",
        "card-pictures/yields.png",
        "card.md",
    ]
    page = found["card.md"].decode()
    for name, data in found.items():
        if name.endswith(".png"):
            assert f"({name})" in page
            with Image.open(io.BytesIO(data)) as picture:
                assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_card_of_a_corpus_on_which_little_has_run(tmp_path: Path) -> None:
    corpus = raw_corpus(tmp_path / "raw", 3)
    page = write_card(corpus)
    text = page.read_text(encoding="utf-8")
    assert page == corpus.folder / "card.md"
    assert "**No step has run**" in text and "**Not assigned**" in text and "**Not made**" in text
    assert "Those of the import" in text
    assert text.count("**not run**: never asked for") == 9
    done = ready_corpus(tmp_path / "ready", 4)
    assert "| 128 | 128x128 | 64 |" in write_card(done).read_text(encoding="utf-8")


def test_mistakes(corpus: Corpus, tmp_path: Path) -> None:
    empty = Corpus.create(tmp_path / "empty", "empty")
    with pytest.raises(DataError, match="holds no pictures"):
        write_card(empty)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_card(corpus, tmp_path / "file" / "card.md")
    corpus.columns_path("area", 1).unlink()
    with pytest.raises(DataError, match="'area' has not run on part 1"):
        write_card(corpus, tmp_path / "card.md")
