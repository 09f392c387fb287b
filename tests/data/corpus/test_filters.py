"""The analytic steps: each formula by hand, and the planted defects found."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from petzval.data.corpus.clean import CleaningSettings, clean
from petzval.data.corpus.filters import Band, clarity, entropy, grey_of, luminance
from petzval.data.corpus.manifest import Corpus
from petzval.errors import ConfigError
from tests.data.corpus import planted

ANALYTIC = ("decodes", "area", "clarity", "entropy", "luminance")
NUM_EACH, NUM_CLEAN = 30, 90

DEFECTS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "decodes": ("broken", lambda seed: planted.jpeg(planted.scene(seed))[: 3000 + seed]),
    "area": ("small", lambda seed: planted.jpeg(planted.small(seed))),
    "clarity": ("blurred", lambda seed: planted.jpeg(planted.blurred(seed))),
    "entropy": ("plain", lambda seed: planted.encoded(planted.plain(seed), "PNG")),
    "luminance": (
        "unlit",
        lambda seed: planted.encoded((planted.dark, planted.bright)[seed % 2](seed), "PNG"),
    ),
}
"""Step → (name of its defect, how it is made)."""


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Ninety good pictures, and thirty with each defect, cleaned."""
    files = {f"good-{n:03d}.jpg": planted.jpeg(planted.scene(n)) for n in range(NUM_CLEAN)}
    for defect, make in DEFECTS.values():
        files |= {f"{defect}-{n:03d}.jpg": make(1000 + n) for n in range(NUM_EACH)}
    corpus = planted.make_corpus(tmp_path_factory.mktemp("planted"), files)
    clean(corpus, CleaningSettings(), only=ANALYTIC)
    return corpus


@pytest.mark.parametrize("step", ANALYTIC)
def test_a_step_finds_its_defect_and_nothing_else(cleaned: Corpus, step: str) -> None:
    defect = DEFECTS[step][0]
    dropped: set[str] = set()
    planted_ones: set[str] = set()
    names = planted.names_of(cleaned)
    for part in cleaned.parts():
        rows = cleaned.read(part, (step,))
        for key, keep in zip(rows["id"].to_pylist(), rows[f"{step}.keep"].to_pylist(), strict=True):
            name = names[key]
            if keep is False:
                dropped.add(name)
            if name.startswith(defect):
                planted_ones.add(name)
    assert len(planted_ones) == NUM_EACH
    found = len(dropped & planted_ones)
    assert found / len(dropped) >= 0.99, sorted(dropped - planted_ones)[:5]
    assert found / len(planted_ones) >= 0.99, sorted(planted_ones - dropped)[:5]


def test_a_picture_that_cannot_be_read_is_not_judged_by_the_others(cleaned: Corpus) -> None:
    names = planted.names_of(cleaned)
    for part in cleaned.parts():
        for row in cleaned.read(part, ANALYTIC).to_pylist():
            if names[row["id"]].startswith("broken"):
                assert row["decodes.reason"].startswith("damaged JPEG")
                assert row["clarity.keep"] is None and row["clarity.score"] is None
                assert row["clarity.reason"] == "not judged: unreadable"


# ── formulas ─────────────────────────────────────────────────────────────────────────────────────


def test_clarity_is_the_variance_of_the_laplacian() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 64), np.uint8)
    g = grey.astype(np.float64)
    laplacian = [
        g[y - 1, x] + g[y + 1, x] + g[y, x - 1] + g[y, x + 1] - 4 * g[y, x]
        for y in range(1, 39)
        for x in range(1, 63)
    ]
    assert clarity(grey, 64) == pytest.approx(np.var(laplacian))


def test_clarity_hardly_depends_on_the_resolution_of_the_same_picture() -> None:
    large = planted.scene(3).resize((1600, 1538), Image.Resampling.LANCZOS)
    greys = [grey_of(large), grey_of(large.reduce(2))]
    scaled = [clarity(grey, 512) for grey in greys]
    as_they_are = [clarity(grey, max(grey.shape)) for grey in greys]
    assert 0.8 < scaled[0] / scaled[1] < 1.25
    assert as_they_are[1] / as_they_are[0] > 4


def test_a_strip_of_one_pixel_can_be_measured() -> None:
    assert clarity(np.zeros((1, 3000), np.uint8), 512) == 0
    assert clarity(np.zeros((1, 1), np.uint8), 512) == 0


def test_entropy_of_known_histograms() -> None:
    assert entropy(np.full((8, 8), 7, np.uint8)) == 0
    assert math.copysign(1, entropy(np.full((8, 8), 7, np.uint8))) == 1
    assert entropy(np.arange(256, dtype=np.uint8).reshape(16, 16)) == pytest.approx(8)
    assert entropy(np.array([[0, 0, 0, 9]], np.uint8)) == pytest.approx(
        -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    )


def test_luminance_is_the_mean_of_the_largest_channel() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    assert luminance(Image.fromarray(pixels)) == pytest.approx(pixels.max(axis=2).mean() / 255)
    assert luminance(Image.new("RGB", (2, 2))) == 0


def test_a_band_keeps_its_ends() -> None:
    band = Band(minimum=2.0, maximum=3.0)
    assert [band.judge(score).keep for score in (1.9, 2.0, 3.0, 3.1)] == [False, True, True, False]
    assert band.judge(1.9).reason == "below 2" and band.judge(3.1).reason == "above 3"


def test_settings_out_of_range_are_refused() -> None:
    from petzval.data.corpus.filters import MeasureSettings

    with pytest.raises(ConfigError, match="clarity_side"):
        MeasureSettings(clarity_side=2)
