from __future__ import annotations

from pathlib import Path

import pytest

from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.split import HELD_OUT, TRAIN, Split, SplitSettings, split_of
from petzval.data.corpus.stages import run_corpus_stage
from petzval.errors import ConfigError, DataError
from tests.data.corpus.ready import raw_corpus, write_duplicates

CLUSTERS = [(0, 7, 13), (2, 3), (4, 5, 6, 16)]


def sides(corpus: Corpus) -> dict[int, str]:
    return {
        int(Path(row["path"]).stem): row["split.split"]
        for part in corpus.parts()
        for row in corpus.read(part, ("split",)).to_pylist()
    }


def test_no_cluster_is_on_both_sides(tmp_path: Path) -> None:
    corpus = raw_corpus(tmp_path, 17, rows_per_part=4)
    write_duplicates(corpus, CLUSTERS)
    seen: set[str] = set()
    for number in range(12):
        run_corpus_stage(corpus, Split(settings=SplitSettings(share=0.5, salt=str(number))))
        found = sides(corpus)
        for cluster in CLUSTERS:
            assert len({found[each] for each in cluster}) == 1
        seen |= {found[0]}
        assert set(found.values()) == {TRAIN, HELD_OUT}
    assert seen == {TRAIN, HELD_OUT}


def test_the_smallest_id_decides_whichever_is_kept(tmp_path: Path) -> None:
    corpus = raw_corpus(tmp_path, 17, rows_per_part=4)
    settings = SplitSettings(share=0.5)
    for order in (CLUSTERS, [tuple(reversed(cluster)) for cluster in CLUSTERS]):
        write_duplicates(corpus, order)
        run_corpus_stage(corpus, Split(settings=settings))
        for part in corpus.parts():
            for row in corpus.read(part, ("split",)).to_pylist():
                assert row["split.smallest"] <= row["id"]
                assert row["split.split"] == split_of(row["split.smallest"], settings)
    kept_first = sides(corpus)
    write_duplicates(corpus, CLUSTERS)
    run_corpus_stage(corpus, Split(settings=settings))
    assert sides(corpus) == kept_first


def test_the_share_is_kept() -> None:
    for share in (0.0, 0.01, 0.3, 1.0):
        settings = SplitSettings(share=share)
        held_out = sum(split_of(f"{n:064x}", settings) == HELD_OUT for n in range(20_000))
        assert held_out / 20_000 == pytest.approx(share, abs=0.01)
    smaller, larger = SplitSettings(share=0.1), SplitSettings(share=0.2)
    for n in range(2000):
        if split_of(f"{n:064x}", smaller) == HELD_OUT:
            assert split_of(f"{n:064x}", larger) == HELD_OUT, "a larger share holds out more"


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share"):
        SplitSettings(share=1.5)
    corpus = raw_corpus(tmp_path, 2)
    with pytest.raises(DataError, match="needs 'duplicates', which has not run") as caught:
        run_corpus_stage(corpus, Split())
    assert "petzval data clean" in caught.value.hint
