"""A corpus on disk: whole files, rows that belong together, damage that is named."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import petzval.data.corpus
from petzval.data.corpus.manifest import Corpus, read_parquet, write_parquet, write_whole
from petzval.errors import DataError, MissingExtraError
from tests.data.corpus.planted import make_corpus

FILES = {f"{n}.jpg": bytes([n]) * (n + 1) for n in range(5)}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Five rows in three parts; the pictures are none."""
    return make_corpus(tmp_path / "corpus", FILES, rows_per_part=2)


def test_what_is_made_can_be_opened(corpus: Corpus) -> None:
    opened = Corpus.open(corpus.folder)
    assert opened == corpus and opened.name == "planted" and opened.parts() == (0, 1, 2)
    assert [opened.read(part).num_rows for part in opened.parts()] == [2, 2, 1]


def test_columns_are_joined_by_stage(corpus: Corpus) -> None:
    for part in corpus.parts():
        table = pa.table({"value": list(range(corpus.read(part).num_rows))})
        corpus.write_columns("count", part, table, {"made": "here"})
    rows = corpus.read(1, ("count",))
    assert rows["count.value"].to_pylist() == [0, 1]
    assert "count.id" not in rows.column_names and corpus.stages() == ("count",)
    marker = corpus.marker("count", 1)
    assert marker is not None and marker["made"] == "here"


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    whole = pa.table({"a": list(range(100)), "b": [str(n) for n in range(100)]})
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7)])
    noted = pieces.replace_schema_metadata({"pandas": "{}"})
    write_parquet(tmp_path / "one.parquet", whole)
    write_parquet(tmp_path / "two.parquet", noted)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_marker_counts_only_for_the_file_it_was_written_for(corpus: Corpus) -> None:
    corpus.write_columns("count", 2, pa.table({"value": [1]}), {})
    assert corpus.marker("count", 2) is not None
    path = corpus.columns_path("count", 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    assert corpus.marker("count", 2) is None
    path.write_bytes(whole)
    corpus.marker_path("count", 2).write_text("{")
    assert corpus.marker("count", 2) is None
    assert corpus.marker("count", 1) is None


def test_columns_of_other_rows_are_refused(corpus: Corpus) -> None:
    corpus.write_columns("count", 0, pa.table({"value": [1, 2]}), {})
    target = corpus.columns_path("count", 1)
    target.write_bytes(corpus.columns_path("count", 0).read_bytes())
    with pytest.raises(DataError, match=r"its rows are not those of part-00001"):
        corpus.read(1, ("count",))
    target.write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read"):
        corpus.read(1, ("count",))


def test_a_stage_that_has_not_run_is_named(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="the stage 'area' has not run on part 0") as error:
        corpus.read(0, ("area",))
    assert "petzval data clean" in error.value.hint


def test_a_missing_part_is_named(corpus: Corpus) -> None:
    corpus.manifest_path(1).unlink()
    with pytest.raises(DataError, match="part-00001.parquet is missing"):
        corpus.parts()


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no corpus"):
        Corpus.open(tmp_path / "nowhere")
    for text, message in (
        ("{", "not JSON"),
        ('{"format": 9, "name": "x"}', "format 9, this version reads 1"),
        ('{"format": 1}', "'name'"),
        ('{"format": 1, "name": "x", "rows_per_part": 0}', "at least 1"),
    ):
        (tmp_path / "corpus.json").write_text(text)
        with pytest.raises(DataError, match=message):
            Corpus.open(tmp_path)


def test_a_corpus_is_not_made_twice(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="holds a corpus already"):
        Corpus.create(corpus.folder, "again")
    blocked = corpus.folder / "corpus.json" / "below"
    with pytest.raises(DataError, match="cannot be written"):
        Corpus.create(blocked, "under a file")


def test_one_program_writes_at_a_time(corpus: Corpus) -> None:
    with (
        corpus.writing(),
        pytest.raises(DataError, match="another program is writing"),
        Corpus.open(corpus.folder).writing(),
    ):
        pass
    with corpus.writing():
        pass


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_a_table_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.parquet: cannot be read \(absent\)"):
        read_parquet(tmp_path / "none.parquet")


def test_the_settings_are_json_that_a_person_can_read(corpus: Corpus) -> None:
    found = json.loads((corpus.folder / "corpus.json").read_text())
    assert found == {"format": 1, "name": "planted", "rows_per_part": 2}


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow") as error:
        importlib.reload(petzval.data.corpus)
    assert error.value.hint == "pip install 'petzval[data]'"
