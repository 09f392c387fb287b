"""Every form of source, brought into a corpus: captions, licences, places, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petzval.data.corpus.illustrations import SceneSource
from petzval.data.corpus.importing import Imported, import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.sources import FolderSource, ParquetSource, Source, TarSource
from petzval.errors import DataError
from tests.conftest import REPOSITORY
from tests.data.corpus.planted import encoded, jpeg, scene, tree

PICTURES = [jpeg(scene(seed, 40, 60)) for seed in range(8)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """An empty corpus, three rows a part."""
    return Corpus.create(tmp_path / "corpus", "test", rows_per_part=3)


def rows_of(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for part in corpus.parts() for row in corpus.read(part).to_pylist()]


def check_bytes(corpus: Corpus) -> None:
    """Every row opens, and is what it is called."""
    reader = PictureReader(corpus.folder)
    for row in rows_of(corpus):
        assert hashlib.sha256(reader.read(row)).hexdigest() == row["id"]
        assert reader.load(row).flags == ()


def reasons(done: Imported) -> dict[str, str]:
    return {r.member or Path(r.path).name: r.reason for r in done.refusals}


# ── folders ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures with every kind of sidecar, one of them twice."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, data in enumerate(PICTURES[:5]):
        (folder / f"{number}.jpg").write_bytes(data)
    (folder / "below" / "again.JPEG").write_bytes(PICTURES[2])
    (folder / "0.txt").write_text("  a plain caption\n", encoding="utf-8-sig")
    (folder / "1.json").write_text('{"caption": "from JSON", "license": "MIT", "width": 60}')
    (folder / "2.txt").write_text("from text")
    (folder / "2.json").write_text('{"score": NaN, "nested": {"a": [1]}}')
    (folder / "notes.md").write_text("not a picture")
    return folder


def test_a_folder_with_sidecars(corpus: Corpus, folder: Path) -> None:
    done = import_source(corpus, FolderSource(folder))
    assert (done.num_new, done.num_present, done.num_duplicates) == (5, 0, 1)
    assert done.refusals == () and corpus.parts() == (0, 1)
    rows = {Path(row["path"]).stem: row for row in rows_of(corpus)}
    assert all(row["source"] == "photos" and row["member"] == "" for row in rows.values())
    assert rows["0"]["caption"] == "a plain caption" and rows["0"]["metadata"] == "{}"
    assert (rows["1"]["caption"], rows["1"]["licence"]) == ("from JSON", "MIT")
    assert json.loads(rows["1"]["metadata"]) == {"width": 60}
    # The second appearance goes: "below" comes after the digits in order of path.
    assert rows["2"]["caption"] == "from text"
    assert json.loads(rows["2"]["metadata"]) == {"score": None, "nested": {"a": [1]}}
    assert rows["3"]["caption"] == rows["3"]["licence"] == ""
    check_bytes(corpus)


def test_importing_again_adds_nothing_and_another_source_adds_parts(
    corpus: Corpus, folder: Path, tmp_path: Path
) -> None:
    import_source(corpus, FolderSource(folder))
    before = tree(corpus.folder)
    again = import_source(corpus, FolderSource(folder))
    assert (again.num_new, again.num_present, again.num_duplicates) == (0, 5, 1)
    assert tree(corpus.folder) == before
    other = tmp_path / "other"
    other.mkdir()
    for number in (3, 6, 7):
        (other / f"{number}.jpg").write_bytes(PICTURES[number])
    more = import_source(corpus, FolderSource(other))
    assert (more.num_new, more.num_duplicates) == (2, 1) and corpus.parts() == (0, 1, 2)
    assert {k: v for k, v in tree(corpus.folder).items() if k in before} == before
    ids = [row["id"] for row in rows_of(corpus)]
    assert len(ids) == len(set(ids)) == 7


def test_damaged_sidecars_are_remarked_and_the_picture_stays(corpus: Corpus, folder: Path) -> None:
    (folder / "0.txt").write_bytes(b"\xff\xfe caf\xe9")
    (folder / "1.json").write_text('["no object"]')
    (folder / "2.json").write_text('{"caption": ' * 9000)
    (folder / "3.txt").write_bytes(b"x" * (2 << 20))
    (folder / "4.json").write_text('{"caption": "half \\ud83d of a pair", "text": "other"}')
    done = import_source(corpus, FolderSource(folder))
    assert done.num_new == 5
    assert reasons(done) == {
        "0.jpg": "its .txt is not UTF-8",
        "1.jpg": "its .json is not a JSON object",
        "2.jpg": "its .json has more than 64 levels",
        "3.txt": "more than 1048576 bytes",
    }
    written = json.loads((corpus.folder / "refusals" / "photos.json").read_text())
    assert [row["reason"] for row in written] == [r.reason for r in sorted(done.refusals)]
    rows = {Path(row["path"]).stem: row for row in rows_of(corpus)}
    assert rows["4"]["caption"] == "half ? of a pair"


def test_hostile_files_of_a_folder_are_refused(corpus: Corpus, folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / "round").symlink_to(folder)
    (folder / "folder.jpg").mkdir()
    with (folder / "vast.png").open("wb") as file:
        file.truncate(1 << 40)
    strange = os.fsencode(folder) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(strange)).write_bytes(PICTURES[7])
    done = import_source(corpus, FolderSource(folder))
    assert done.num_new == 5
    assert reasons(done) == {
        "pipe.png": "not a plain file",
        "device.png": "not a plain file",
        "gone.png": "the file is gone",
        "vast.png": "more than 268435456 bytes",
        "\\udcff\\udcfe.jpg": "its name is not printable UTF-8",
    }


def test_a_folder_that_is_none_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no pictures") as error:
        FolderSource(tmp_path)
    assert ".webp" in error.value.hint


def test_a_killed_import_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    pictures = tmp_path / "many"
    pictures.mkdir()
    for number in range(60):
        (pictures / f"{number:02d}.png").write_bytes(encoded(scene(number, 24, 24), "PNG"))
    corpora = [Corpus.create(tmp_path / n / "corpus", "c", rows_per_part=4) for n in "ab"]
    import_source(corpora[0], FolderSource(pictures))
    program = Path(__file__).with_name("crash_program.py")
    process = subprocess.Popen(
        [sys.executable, str(program), "import", str(corpora[1].folder), str(pictures)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 10:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert 2 <= len(corpora[1].parts()) < 15
    import_source(corpora[1], FolderSource(pictures))
    assert tree(corpora[0].folder) == tree(corpora[1].folder)


# ── tars ─────────────────────────────────────────────────────────────────────────────────────────


def write_tar(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))


def img2dataset_members(number: int) -> list[tuple[str, bytes]]:
    """Picture, caption and JSON as that program names and fills them."""
    key, caption = f"{number:09d}", f"caption {number}"
    told = {
        "caption": caption, "url": f"https://example.org/{number}.jpg", "key": key,
        "status": "success", "error_message": None, "width": 60, "height": 40, "exif": "{}",
        "license": "CC-BY-4.0",
    }  # fmt: skip
    return [
        (f"{key}.jpg", PICTURES[number]),
        (f"{key}.json", json.dumps(told).encode()),
        (f"{key}.txt", caption.encode()),
    ]


def test_tars_as_img2dataset_writes_them(corpus: Corpus, tmp_path: Path) -> None:
    tars = tmp_path / "laion"
    tars.mkdir()
    for tar in range(2):
        members = [m for n in range(4 * tar, 4 * tar + 4) for m in img2dataset_members(n)]
        write_tar(tars / f"{tar:05d}.tar", list(members))
    (tars / "00000_stats.json").write_text("{}")
    heard: list[tuple[str, int, int]] = []
    done = import_source(corpus, TarSource(tars), progress=lambda *words: heard.append(words))
    assert done.num_new == 8 and done.refusals == ()
    assert heard[-1] == ("import", 2, 2)
    rows = rows_of(corpus)
    assert [row["caption"] for row in rows] == [f"caption {n}" for n in range(8)]
    assert {row["licence"] for row in rows} == {"CC-BY-4.0"}
    assert json.loads(rows[5]["metadata"])["url"] == "https://example.org/5.jpg"
    assert (rows[5]["member"], Path(rows[5]["path"]).name) == ("000000005.jpg", "00001.tar")
    check_bytes(corpus)


def test_a_long_tar_is_read_to_its_end(corpus: Corpus, tmp_path: Path) -> None:
    members = [(f"a/{n:04d}.png", encoded(scene(0, 8, 8 + n % 50), "PNG")) for n in range(50)]
    write_tar(tmp_path / "t.tar", [(f"{name}", data) for name, data in members])
    assert import_source(corpus, TarSource(tmp_path / "t.tar")).num_new == 50
    assert [row["member"] for row in rows_of(corpus)] == [name for name, _ in members]


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    write_tar(
        path,
        [
            ("good.jpg", PICTURES[0]),
            ("../../outside.jpg", PICTURES[1]),
            ("/absolute.jpg", PICTURES[1]),
            ("a/../../b.jpg", PICTURES[1]),
            ("line\nbreak.jpg", PICTURES[1]),
            link("symbolic.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            link("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
            link("device.jpg", tarfile.CHRTYPE),
            link("pipe.jpg", tarfile.FIFOTYPE),
            link("folder", tarfile.DIRTYPE),
            ("empty.jpg", b""),
            ("mask.jpg", PICTURES[2]),
            ("mask.json", b"{"),
            ("last.jpg", PICTURES[3]),
        ],
    )
    done = import_source(corpus, TarSource(path))
    assert reasons(done) == {
        "../../outside.jpg": "its name leads out of the tar",
        "/absolute.jpg": "its name leads out of the tar",
        "a/../../b.jpg": "its name leads out of the tar",
        "line\nbreak.jpg": "its name is not printable UTF-8",
        "symbolic.jpg": "a link",
        "hard.jpg": "a link",
        "device.jpg": "not a plain file",
        "pipe.jpg": "not a plain file",
        "mask.jpg": "its .json is not a JSON object",
    }
    names = [row["member"] for row in rows_of(corpus)]
    assert names == ["good.jpg", "empty.jpg", "mask.jpg", "last.jpg"]


def test_a_tar_that_is_damaged_in_the_middle_gives_what_stands_before(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "cut.tar"
    write_tar(path, [(f"{n}.jpg", PICTURES[n]) for n in range(3)])
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    path.write_bytes(whole[:third] + b"?" * 512 + whole[third + 512 :])
    done = import_source(corpus, TarSource(path))
    assert done.num_new == 2
    assert reasons(done) == {"cut.tar": "the tar is damaged, and read up to there"}
    path.write_bytes(whole[: third + 700])
    again = import_source(corpus, TarSource(path))
    assert again.num_present == 2 and reasons(again)["2.jpg"] == "the tar ends before it does"


def test_a_header_that_claims_a_quarter_of_a_gigabyte_is_not_read(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "headers.tar"
    write_tar(path, [("0.jpg", PICTURES[0])])
    with tarfile.open(path) as tar:
        end = tar.getmembers()[0].offset_data + -(-len(PICTURES[0]) // 512) * 512
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 28
    with path.open("r+b") as file:
        file.seek(end)
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(end + 512 + (1 << 28))
    tracemalloc.start()
    done = import_source(corpus, TarSource(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.num_new == 1 and peak < 1 << 26
    assert reasons(done) == {"headers.tar": "the tar is damaged, and read up to there"}


def test_what_is_no_plain_tar_is_refused(tmp_path: Path) -> None:
    compressed = tmp_path / "a.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match="compressed tar"):
        TarSource(compressed)
    (tmp_path / "text.tar").write_text("hello " * 200)
    with pytest.raises(DataError, match="is not a tar"):
        TarSource(tmp_path / "text.tar")
    for path in ("gone.tar", "/dev/zero"):
        with pytest.raises(DataError, match="there is no such tar"):
            TarSource(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tar is named"):
        TarSource(tmp_path / "empty")


# ── parquet ──────────────────────────────────────────────────────────────────────────────────────


def test_a_table_of_paths(corpus: Corpus, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(PICTURES[number])
    table = {
        "image_path": ["0.jpg", str(tmp_path / "1.jpg"), "2.jpg", "gone.jpg", None, "/dev/zero"],
        "text": ["zero", "one", None, "", "", ""],
        "license": ["MIT"] * 6,
        "score": [0.5, None, 1.5, 0.0, 0.0, 0.0],
    }
    pq.write_table(pa.table(table), str(tmp_path / "list.parquet"))
    done = import_source(corpus, ParquetSource(tmp_path / "list.parquet"))
    rows = rows_of(corpus)
    assert [row["caption"] for row in rows] == ["zero", "one", ""]
    assert [json.loads(row["metadata"])["score"] for row in rows] == [0.5, None, 1.5]
    assert {row["licence"] for row in rows} == {"MIT"}
    assert reasons(done) == {
        "gone.jpg": "the file is gone",
        "list.parquet": "row 5: image_path is not a path",
        "zero": "not a plain file",
    }
    check_bytes(corpus)


def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["https://example.org"]}), str(tmp_path / "urls.parquet"))
    with pytest.raises(DataError, match="no column of paths among url"):
        ParquetSource(tmp_path / "urls.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a parquet file"):
        ParquetSource(tmp_path / "bad.parquet")


# ── scenes ───────────────────────────────────────────────────────────────────────────────────────


def test_scenes_of_a_library(corpus: Corpus, library_folder: Path) -> None:
    def source() -> Source:
        return SceneSource(library_folder, num_scenes=5, seed=3, base=128)

    done = import_source(corpus, source())
    assert done.num_new == 5 and done.refusals == ()
    before = tree(corpus.folder)
    rows = rows_of(corpus)
    assert [row["path"] for row in rows] == [f"pictures/scenes-3/{n:08d}.png" for n in range(5)]
    assert all(row["caption"] and "CC0-1.0" in row["licence"] for row in rows)
    assert json.loads(rows[4]["metadata"])["index"] == 4
    check_bytes(corpus)
    (corpus.folder / rows[1]["path"]).unlink()
    assert import_source(corpus, source()).num_present == 5
    assert tree(corpus.folder) == before


def test_scenes_that_cannot_be_drawn_are_refused(library_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 scenes are none"):
        SceneSource(library_folder, num_scenes=0)
    with pytest.raises(DataError, match="unknown base size 500"):
        SceneSource(library_folder, num_scenes=1, base=500)
    with pytest.raises(DataError, match="holds no sprite library"):
        SceneSource(tmp_path, num_scenes=1)


def test_metadata_is_json_that_anybody_can_read(corpus: Corpus, tmp_path: Path) -> None:
    """Nested so that the deepest stack reads it, and without what is no JSON: NaN, 1e999."""
    raw = tmp_path / "raw"
    raw.mkdir()
    told = {
        "0": '{"score": 1e999, "deep": ' + "[" * 63 + "]" * 63 + "}",
        "1": '{"caption": "lost", "deep": ' + "[" * 64 + "]" * 64 + "}",
    }
    for name, text in told.items():
        (raw / f"{name}.jpg").write_bytes(PICTURES[int(name)])
        (raw / f"{name}.json").write_text(text)
    done = import_source(corpus, FolderSource(raw))
    assert reasons(done) == {"1.jpg": "its .json has more than 64 levels"}
    (raw / "2.jpg").write_bytes(PICTURES[2])
    table = pa.table({"path": ["2.jpg"], "aesthetic": [float("nan")], "seen": [float("inf")]})
    pq.write_table(table, raw / "more.parquet")
    import_source(corpus, ParquetSource(raw / "more.parquet"))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    first, second, third = (
        json.loads(row["metadata"], parse_constant=refuse) for row in rows_of(corpus)
    )
    assert first["score"] is None and len(first) == 2
    assert second == {}
    assert third == {"aesthetic": None, "seen": None}


@pytest.mark.parametrize("name", ["a/b", "..", "../../elsewhere", "a\\b", "bell\a", "x" * 201])
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_written(
    corpus: Corpus, tmp_path: Path, name: str
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "raw" / "whole.jpg").write_bytes(PICTURES[0])
    before = tree(tmp_path)
    with pytest.raises(DataError, match="a source cannot be called"):
        import_source(corpus, FolderSource(tmp_path / "raw", name))
    assert tree(tmp_path) == before


def test_tars_of_the_current_folder_are_called_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tars").mkdir()
    tarfile.open(tmp_path / "tars" / "0.tar", "w").close()
    monkeypatch.chdir(tmp_path / "tars")
    assert TarSource(Path()).name == "tars"
