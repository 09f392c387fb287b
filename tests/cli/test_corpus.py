"""`petzval data import` and `petzval data clean`, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.data.corpus.manifest import Corpus
from tests.cli.conftest import Run
from tests.data.corpus.planted import jpeg, scene, small

THRESHOLDS = '{"clarity": {"minimum": 1e9}}'


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two good pictures, a copy of one, and one that is too small."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in {
        "a": jpeg(scene(1)), "b": jpeg(scene(2)), "c": jpeg(scene(2)), "d": jpeg(small(3))
    }.items():  # fmt: skip
        (folder / f"{name}.jpg").write_bytes(data)
    (folder / "a.txt").write_text("discs on a ground")
    return folder


def test_import_then_clean(run: Run, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("data", "import", photos, "--into", "corpus", "--name", "mine")
    assert (code, out) == (0, f"{tmp_path / 'corpus'}\n")
    assert "3 pictures are new, 0 were there, 1 are the same bytes" in err
    code, out, err = run("data", "import", photos, "--into", "corpus", "--name", "mine")
    assert code == 0 and "0 pictures are new, 3 were there" in err
    rows = Corpus.open("corpus").read(0).to_pylist()
    assert [row["caption"] for row in rows] == ["discs on a ground", "", ""]

    code, out, err = run("data", "clean", "corpus")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 10
    assert lines[0].split()[:4] == ["step", "came", "dropped", "left"]
    assert lines[2].split()[:4] == ["area", "3", "1", "2"] and "below 147456 (1)" in lines[2]
    assert "warning: aesthetic did not run: no weights ship" in err
    assert "warning: watermark did not run" in err and "not run" in lines[4]

    (tmp_path / "strict.json").write_text(THRESHOLDS)
    words = ("--json", "--settings", "strict.json", "--only", "clarity", "--only", "area")
    code, out, _ = run("data", "clean", "corpus", *words)
    table = {row["step"]: row for row in json.loads(out)}
    assert code == 0 and list(table) == ["area", "clarity"]
    assert table["clarity"]["dropped"] == 2 and table["clarity"]["reasons"] == {"below 1e+09": 2}


def test_what_is_refused_is_shown(run: Run, photos: Path) -> None:
    for number in range(7):
        (photos / f"gone-{number}.png").symlink_to(photos / "nowhere")
    code, out, err = run("data", "import", photos, "--into", "corpus")
    assert code == 0 and out
    assert err.count("refused: ") == 5 and "gone-0.png: the file is gone" in err
    assert "7 refused in all" in err and "photos.json" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "nowhere", "--into", "c"), "is not a folder"),
        (("import", "file.zip", "--into", "c"), "no source that is known by its name"),
        (("import", "photos", "--into", "c", "--form", "zip"), "unknown form 'zip'"),
        (("import", "photos", "--into", "c", "--form", "scenes"), "holds no sprite library"),
        (("clean", "nowhere"), "holds no corpus"),
        (("clean", "empty"), "has no pictures"),
        (("clean", "empty", "--preset", "paintings"), "unknown preset 'paintings'"),
        (("clean", "empty", "--only", "beauty"), "unknown step 'beauty'"),
        (("clean", "empty", "--settings", "none.json"), "none.json"),
        (("clean", "empty", "--settings", "list.json"), "expected an object with settings"),
        (("clean", "empty", "--settings", "odd.json"), "unknown setting 'clearness'"),
    ],
)
def test_mistakes_are_answered_with_the_next_step(
    run: Run, photos: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    Corpus.create(tmp_path / "empty", "empty")
    (tmp_path / "file.zip").write_bytes(b"PK")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "odd.json").write_text('{"clearness": 3}')
    code, out, err = run("data", *words)
    assert (code, out) == (2, "") and "error: " in err and message in err, err
    assert not (tmp_path / "c").exists()


def test_weights_and_engines_that_are_none_are_refused(run: Run, photos: Path) -> None:
    run("data", "import", photos, "--into", "corpus")
    code, _, err = run("data", "clean", "corpus", "--aesthetic-weights", "none.onnx")
    assert code == 2 and "there are no weights" in err
    code, _, err = run("data", "clean", "corpus", "--engine", "spark", "--only", "area")
    assert code == 2 and "unknown engine 'spark'" in err and "local, ray" in err


def test_an_interruption_leaves_quietly(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("data", "import", photos, "--into", "corpus")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("petzval.data.corpus.filters.Measure.run", interrupted)
    code, out, err = run("data", "clean", "corpus")
    assert (code, out) == (130, "") and "interrupted" in err
