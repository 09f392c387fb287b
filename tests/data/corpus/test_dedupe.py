"""Near-duplicates: planted clusters found exactly, the best kept, in whatever order they come."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from petzval.data.corpus import clean as cleaning
from petzval.data.corpus.clean import CleaningSettings, clean
from petzval.data.corpus.dedupe import (
    Clusters,
    Duplicates,
    DuplicateSettings,
    similar_pairs,
)
from petzval.data.corpus.embedding import (
    NUM_FEATURES,
    Embed,
    EmbeddingSettings,
    embed,
    vectors_of,
)
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.stages import run_corpus_stage, run_stage
from tests.data.corpus.planted import encoded, jpeg, make_corpus, names_of, scene

NUM_SCENES, NUM_LONE = 8, 12


def variants(seed: int) -> dict[str, bytes]:
    """One picture five times over, the last the largest."""
    image = scene(seed)
    inside = image.crop((3, 3, image.width - 3, image.height - 3))
    return {
        f"{seed:02d}-a.jpg": jpeg(image, 90),
        f"{seed:02d}-b.jpg": jpeg(image, 60),
        f"{seed:02d}-c.png": encoded(image, "PNG"),
        f"{seed:02d}-d.webp": encoded(inside, "WEBP", quality=80),
        f"{seed:02d}-e.jpg": jpeg(image.resize((450, 433), Image.Resampling.LANCZOS), 85),
    }


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Eight clusters of five, and a dozen pictures that are like no other."""
    found: dict[str, bytes] = {}
    for seed in range(NUM_SCENES):
        found |= variants(seed)
    return found | {f"{99 - n}-lone.jpg": jpeg(scene(500 + n)) for n in range(NUM_LONE)}


@pytest.fixture(scope="module")
def corpus(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Cleaned as a whole."""
    corpus = make_corpus(tmp_path_factory.mktemp("twins"), files, rows_per_part=16)
    clean(corpus, CleaningSettings())
    return corpus


def verdicts(corpus: Corpus) -> dict[str, tuple[bool | None, str]]:
    """File name → (keep, cluster)."""
    names = names_of(corpus)
    return {
        names[row["id"]]: (row["duplicates.keep"], names[row["duplicates.cluster"]])
        for part in corpus.parts()
        for row in corpus.read(part, ("duplicates",)).to_pylist()
    }


def test_planted_clusters_are_found_exactly_and_the_largest_is_kept(corpus: Corpus) -> None:
    found = verdicts(corpus)
    for name, (keep, cluster) in found.items():
        best = name if "lone" in name else f"{name[:2]}-e.jpg"
        assert (keep, cluster) == (name == best, best), name
    assert len(found) == 5 * NUM_SCENES + NUM_LONE


def test_scores_and_reasons_name_the_likeness(corpus: Corpus) -> None:
    for part in corpus.parts():
        for row in corpus.read(part, ("duplicates",)).to_pylist():
            if "lone" in row["path"]:
                assert row["duplicates.score"] is None and row["duplicates.reason"] == ""
            else:
                assert 0.985 < row["duplicates.score"] <= 1
            if row["duplicates.keep"] is False:
                assert row["duplicates.reason"] == f"like {row['duplicates.cluster'][:12]}"


def test_the_order_of_parts_changes_nothing(corpus: Corpus) -> None:
    stage = Duplicates(judged_by=cleaning.STEPS[:-1])
    parts = [corpus.read(part, stage.needs) for part in corpus.parts()]
    whole = pa.concat_tables(parts)
    expected = {
        row["id"]: (row["duplicates.keep"], row["duplicates.cluster"], row["duplicates.score"])
        for part in corpus.parts()
        for row in corpus.read(part, ("duplicates",)).to_pylist()
    }
    order = list(range(whole.num_rows))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        mixed = whole.take(pa.array(order))
        split = [mixed.slice(0, 5), mixed.slice(5, 1), mixed.slice(6)]
        results = pa.concat_tables(stage.run_corpus(split)).to_pylist()
        for key, row in zip(mixed["id"].to_pylist(), results, strict=True):
            assert (row["keep"], row["cluster"], row["score"]) == expected[key]


def test_the_inverted_file_index_finds_the_same(corpus: Corpus) -> None:
    rows = pa.concat_tables([corpus.read(part, ("embedding",)) for part in corpus.parts()])
    _, vectors = vectors_of(rows)
    exact = list(similar_pairs(vectors, DuplicateSettings()))
    approximate = list(similar_pairs(vectors, DuplicateSettings(exact_up_to=0, num_probes=8)))
    assert len(exact) > 40 and approximate == exact


def test_pairs_are_those_of_the_plain_matrix() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, NUM_FEATURES))
    noisy = base[:20] + rng.normal(size=(20, NUM_FEATURES)) * np.linspace(0.05, 0.3, 20)[:, None]
    vectors = np.concatenate([base, noisy]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    expected = {(i, j) for i in range(60) for j in range(i + 1, 60) if cosines[i, j] > 0.985}
    found = {(first, second) for first, second, _ in similar_pairs(vectors, DuplicateSettings())}
    assert found == expected and 3 < len(found) < 20


def test_clusters_are_transitive_and_rooted_at_the_smallest() -> None:
    clusters = Clusters(6)
    for first, second in ((4, 5), (1, 4), (0, 2)):
        clusters.join(first, second)
    assert clusters.members() == {0: [0, 2], 1: [1, 4, 5], 3: [3]}


def test_a_copy_that_another_step_drops_does_not_stand_for_a_good_one(tmp_path: Path) -> None:
    image = scene(40)
    small = image.resize((200, 192), Image.Resampling.LANCZOS)
    corpus = make_corpus(tmp_path, {"good.jpg": jpeg(image), "small.jpg": jpeg(small)})
    clean(corpus, CleaningSettings())
    assert verdicts(corpus) == {"good.jpg": (True, "good.jpg"), "small.jpg": (None, "small.jpg")}


def test_of_equal_areas_the_better_looking_is_kept(corpus: Corpus) -> None:
    stage = Duplicates(judged_by=cleaning.STEPS[:-1])
    parts = [corpus.read(part, stage.needs) for part in corpus.parts()]
    whole = pa.concat_tables(parts)
    names = names_of(corpus)
    scores = [9.0 if names[key].endswith("-b.jpg") else 5.0 for key in whole["id"].to_pylist()]
    place = whole.column_names.index("aesthetic.score")
    rated = whole.drop_columns("aesthetic.score").add_column(
        place, "aesthetic.score", pa.array(scores, pa.float64())
    )
    flat = rated.drop_columns("pixels.area").append_column(
        "pixels.area", pa.array([160_000] * rated.num_rows, pa.int64())
    )
    (result,) = stage.run_corpus([flat])
    kept = {
        names[key]
        for key, keep in zip(flat["id"].to_pylist(), result["keep"].to_pylist(), strict=True)
        if keep and "lone" not in names[key]
    }
    assert kept == {f"{seed:02d}-b.jpg" for seed in range(NUM_SCENES)}


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


def test_a_vector_does_not_depend_on_its_batch(corpus: Corpus) -> None:
    pictures = [np.asarray(scene(seed, 64, 96)) for seed in range(3)]
    together = embed(pictures, 64)
    alone = np.concatenate([embed([picture], 64) for picture in pictures])
    assert together.shape == (3, NUM_FEATURES)
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_without_the_network_nothing_is_compared_and_that_is_said(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(scene(1)), "b.jpg": jpeg(scene(1), 70)}
    corpus = make_corpus(tmp_path, files)
    absent = EmbeddingSettings(weights="")
    clean(corpus, CleaningSettings(embedding=absent))
    rows = corpus.read(0, ("embedding", "duplicates"))
    assert rows["embedding.vector"].null_count == 2
    assert all(r.startswith("not run: pip install") for r in rows["duplicates.reason"].to_pylist())
    assert rows["duplicates.keep"].to_pylist() == [None, None]


def test_embedding_again_gives_the_same_bytes(corpus: Corpus) -> None:
    before = [corpus.columns_path("embedding", part).read_bytes() for part in corpus.parts()]
    corpus.marker_path("embedding", 1).unlink()
    assert run_stage(corpus, Embed()).num_run == 1
    after = [corpus.columns_path("embedding", part).read_bytes() for part in corpus.parts()]
    assert before == after
    assert run_corpus_stage(corpus, Duplicates(judged_by=cleaning.STEPS[:-1])).num_run == 0
