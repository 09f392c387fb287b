"""Captions that the sources themselves bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petzval.data.corpus.captioner import MetadataCaptioner, Mode
from petzval.data.corpus.captions import caption_corpus
from petzval.data.corpus.filters import Decodes, Measure
from petzval.data.corpus.illustrations import SceneSource
from petzval.data.corpus.importing import import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.stages import run_stage
from tests.data.corpus.endpoint import cleaned_corpus, numbered, write_pictures


def captions(corpus: Corpus, mode: str = "dense") -> dict[int, dict[str, Any]]:
    return numbered(corpus, ("text", "status", "model"), f"captions-{mode}")


def test_the_captions_a_source_brings(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    corpus = cleaned_corpus_with_sidecars(tmp_path, folder)
    run = caption_corpus(corpus, MetadataCaptioner())
    assert run.counts == {"caption": 3, "empty": 1} and run.spent == (0, 0)
    caption_corpus(corpus, MetadataCaptioner(), mode="brief")
    dense, brief = captions(corpus), captions(corpus, "brief")
    assert dense[0]["text"] == "A long one. With two sentences." and brief[0]["text"] == "A tag"
    assert dense[1]["text"] == brief[1]["text"] == "Only one."
    assert len(dense[2]["text"].split()) == 500, "huge captions are shortened"
    assert dense[3]["status"] == "empty" and dense[3]["model"] == "metadata"


def test_composed_illustrations_bring_both_lengths(tmp_path: Path, library_folder: Path) -> None:
    corpus = Corpus.create(tmp_path / "corpus", "scenes")
    import_source(corpus, SceneSource(library_folder, num_scenes=8, base=128))
    run_stage(corpus, Measure())
    run_stage(corpus, Decodes())
    modes: tuple[Mode, ...] = ("dense", "brief")
    for mode in modes:
        assert caption_corpus(corpus, MetadataCaptioner(), mode=mode).counts == {"caption": 8}
    rows = corpus.read(0, ("captions-dense", "captions-brief")).to_pylist()
    dense, brief = ([len(row[f"captions-{mode}.text"].split()) for row in rows] for mode in modes)
    assert all(more > fewer for more, fewer in zip(dense, brief, strict=True))


def cleaned_corpus_with_sidecars(tmp_path: Path, folder: Path) -> Corpus:
    write_pictures(folder, 4)
    own = {
        "caption": "x",
        "captions": {"medium": "A long one. With two sentences.", "tag": "A tag"},
    }
    (folder / "000.json").write_text(json.dumps(own))
    (folder / "001.txt").write_text("Only one.\n")
    (folder / "002.txt").write_text("Two words. " * 1000)
    (folder / "003.txt").write_bytes(b"\xff\xfeno UTF-8")
    return cleaned_corpus(tmp_path, 4)
