from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from petzval.data.corpus.buckets import Bucket, fit
from petzval.data.corpus.captioner import MetadataCaptioner
from petzval.data.corpus.captions import caption_corpus
from petzval.data.corpus.crop import FileSettings, crop, encode, profile_of
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.shard_plan import ShardSettings, caption_stage, make_plan
from petzval.data.corpus.shard_reader import ShardReader
from petzval.data.corpus.shards import write_shards
from petzval.data.decode import Decoded, decode
from petzval.errors import DataError
from petzval.resolution import Resolution
from tests.data.corpus.ready import raw_corpus, ready_corpus, tree

SMALL = ShardSettings(target_bytes=30_000)
COUNT = 18


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return ready_corpus(tmp_path_factory.mktemp("ready"), COUNT, clusters=[(1, 5, 9)])


@pytest.fixture(scope="module")
def shards(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(corpus, folder, SMALL)
    return folder


def rows_of(corpus: Corpus) -> dict[str, dict[str, Any]]:
    stages = ("buckets", "split", "captions-dense")
    return {
        row["id"]: row for part in corpus.parts() for row in corpus.read(part, stages).to_pylist()
    }


def test_every_picture_is_in_one_shard_of_its_bucket_and_side(corpus: Corpus, shards: Path) -> None:
    index = ShardReader(shards).index.to_pylist()
    rows = rows_of(corpus)
    assert sorted(row["id"] for row in index) == sorted(rows) and len(index) == COUNT
    for entry in index:
        row = rows[entry["id"]]
        assert entry["bucket"] == row["buckets.bucket"] and entry["split"] == row["split.split"]
        assert entry["num_tokens"] == row["buckets.num_tokens"]
        assert entry["num_tokens"] == entry["height"] * entry["width"] // 256
        assert entry["caption_length"] == len(row["captions-dense.text"].split())
        assert entry["shard"].startswith(entry["split"] + "/" + entry["bucket"].replace("/", "-"))
    of_shard: dict[str, set[tuple[str, str]]] = {}
    for entry in index:
        of_shard.setdefault(entry["shard"], set()).add((entry["bucket"], entry["split"]))
    assert all(len(kinds) == 1 for kinds in of_shard.values())
    assert {side for kinds in of_shard.values() for _, side in kinds} == {"train", "held_out"}
    assert set(of_shard) == {name for name in tree(shards) if name.endswith(".tar")}
    assert sorted(tree(shards)) == sorted([*of_shard, "index.parquet", "shards.json"])


def test_samples_are_read_by_their_offset(corpus: Corpus, shards: Path) -> None:
    reader = pickle.loads(pickle.dumps(ShardReader(shards)))
    rows = rows_of(corpus)
    for place in reversed(range(len(reader))):
        sample = reader[place]
        row = rows[sample.row["id"]]
        assert sample.caption == reader.caption(place) == row["captions-dense.text"]
        assert sample.pixels.shape == (sample.row["height"], sample.row["width"], 3)
        assert sample.record["licence"] == row["licence"]
        assert sample.record["metadata"] == {"number": int(Path(row["path"]).stem)}
        original = Image.open(row["path"])
        height, width = original.height, original.width
        fitted = fit(height, width, Bucket(128, Resolution(*sample.pixels.shape[:2])))
        wanted = original.resize(
            sample.pixels.shape[1::-1], Image.Resampling.LANCZOS, box=fitted.box
        )
        error = np.abs(np.asarray(wanted, np.int16) - sample.pixels).mean()
        assert error < 3, "the picture, but for what JPEG loses"
    with pytest.raises(IndexError):
        reader[len(reader)]


# The library leaves closing its files to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them_too(shards: Path) -> None:
    webdataset: Any = import_module("webdataset")
    index = ShardReader(shards).index.to_pylist()
    for name in sorted({entry["shard"] for entry in index})[:2]:
        dataset: Any = webdataset.WebDataset(str(shards / name), shardshuffle=False)
        samples = list(dataset)
        assert [s["__key__"] for s in samples] == [e["id"] for e in index if e["shard"] == name]
        assert all({"jpg", "txt", "json"} <= set(sample) for sample in samples)


def test_a_run_of_bytes_is_a_tar_of_its_own(shards: Path) -> None:
    entry = ShardReader(shards).index.to_pylist()[-1]
    with (shards / entry["shard"]).open("rb") as file:
        file.seek(entry["offset"])
        data = file.read(entry["num_bytes"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [
        f"{entry['id']}.{suffix}" for suffix in ("jpg", "txt", "json")
    ]
    assert all(m.mtime == 0 and m.uid == 0 and m.uname == "" for m in members)


def test_a_shard_has_about_the_bytes_that_are_wanted(corpus: Corpus, tmp_path: Path) -> None:
    everything = make_plan(corpus, ShardSettings())
    groups = {(row["split"], row["bucket"]) for row in everything.rows.to_pylist()}
    assert len(everything.shards) == len(groups)
    run = write_shards(corpus, tmp_path / "one", ShardSettings(target_bytes=1024))
    assert run.num_shards == run.num_samples == COUNT
    sizes = [len(data) for name, data in tree(tmp_path / "one").items() if name.endswith(".tar")]
    assert max(sizes) < 60_000
    few = make_plan(corpus, ShardSettings(target_bytes=3 * max(sizes)))
    assert len(groups) <= len(few.shards) < COUNT


def test_the_same_bytes_on_two_workers_and_again(
    corpus: Corpus, shards: Path, tmp_path: Path
) -> None:
    run = write_shards(corpus, tmp_path / "two", SMALL, workers=2)
    assert tree(tmp_path / "two") == tree(shards) and run.num_written == run.num_shards
    again = write_shards(corpus, tmp_path / "two", SMALL)
    assert again.num_written == 0 and tree(tmp_path / "two") == tree(shards)


def test_a_shard_that_was_lost_or_cut_is_made_again(
    corpus: Corpus, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    tars = sorted((tmp_path / "copy").rglob("*.tar"))
    tars[0].unlink()
    tars[1].write_bytes(tars[1].read_bytes()[:-512])
    run = write_shards(corpus, tmp_path / "copy", SMALL)
    assert run.num_written == 2 and tree(tmp_path / "copy") == tree(shards)


KILLED = """
import os, signal, sys, tarfile
from pathlib import Path
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.shard_plan import ShardSettings
from petzval.data.corpus.shards import write_shards

corpus, out = Corpus.open(sys.argv[1]), Path(sys.argv[2])

def shards_in_a_child(folder, deadly=None):
    # Whether it lived: a child that is killed at its `deadly`-th step towards the disk.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    steps = 0
    def counted(function):
        def run(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return run
    # A killed program's writes are kept by the system, so that none has to reach the disk here.
    os.replace, os.fsync = counted(os.replace), counted(lambda descriptor: None)
    tarfile.TarFile.addfile = counted(tarfile.TarFile.addfile)
    write_shards(corpus, folder, ShardSettings(target_bytes=int(sys.argv[3])))
    (out.parent / "steps").write_text(str(steps))
    os._exit(0)

assert shards_in_a_child(out / "never")
last = int((out.parent / "steps").read_text())
for deadly in (3, 9, 10, 11, last - 1):
    assert not shards_in_a_child(out / str(deadly), deadly)
    assert shards_in_a_child(out / str(deadly))
# And one that is killed again and again, each time a little later.
deadly = 3
while not shards_in_a_child(out / "often", deadly):
    deadly += 12
"""


def test_killed_anywhere_and_run_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    corpus = ready_corpus(tmp_path, 6)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(corpus.folder)]
    command += [str(tmp_path / "out"), "8000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr
    run = write_shards(corpus, tmp_path / "whole", ShardSettings(target_bytes=8000))
    assert run.num_shards >= 4
    expected = tree(tmp_path / "whole")
    folders = sorted((tmp_path / "out").iterdir())
    assert len(folders) == 7
    for folder in folders:
        assert tree(folder) == expected, folder.name


def test_pictures_and_captions_that_are_left_out_are_counted(tmp_path: Path) -> None:
    corpus = ready_corpus(tmp_path, 8, max_area=150.0 * 150)
    for path in sorted((tmp_path / "pictures").glob("00[0-3].json")):
        path.unlink()
    bare = ready_corpus(tmp_path / "bare", 4)
    assert write_shards(bare, tmp_path / "all", SMALL).left_out == {}
    run = write_shards(corpus, tmp_path / "some", SMALL)
    assert run.left_out == {"dropped in cleaning": 4} and run.num_samples == 4
    told = json.loads((tmp_path / "some" / "shards.json").read_text())
    assert told["num_samples"] == 4 and told["left_out"] == run.left_out
    assert sum(told["splits"].values()) == sum(told["buckets"].values()) == 4


def test_forms_of_files(tmp_path: Path) -> None:
    corpus = ready_corpus(tmp_path, 2)
    for form, suffix in (("png", "png"), ("webp", "webp")):
        files = FileSettings(form=form)  # type: ignore[arg-type]
        write_shards(corpus, tmp_path / form, ShardSettings(files=files))
        sample = ShardReader(tmp_path / form)[0]
        assert sample.pixels.shape[2] == 3
        with tarfile.open(tmp_path / form / sample.row["shard"]) as tar:
            assert tar.getnames()[0].endswith(f".{suffix}")


def test_colours_of_another_profile_are_brought_to_srgb() -> None:
    pixels = np.full((160, 160, 3), (200, 60, 30), np.uint8)
    fitted = fit(160, 160, Bucket(128, Resolution(128, 128)))
    decoded = Decoded(pixels=pixels, form="PNG")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = np.asarray(crop(decoded, fitted, srgb))
    assert np.abs(same.astype(int) - (200, 60, 30)).max() <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for unfit in (lab, b"no profile", b""):
        assert np.asarray(crop(decoded, fitted, unfit))[0, 0].tolist() == [200, 60, 30]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", icc_profile=srgb)
    assert profile_of(buffer.getvalue(), "PNG") == srgb
    swapped = swapped_primaries(srgb)
    changed = np.asarray(crop(decoded, fitted, swapped))[0, 0]
    assert changed[2] > changed[0], "red and blue primaries are exchanged in this profile"


def swapped_primaries(srgb: bytes) -> bytes:
    """An RGB profile whose red is sRGB's blue, made by exchanging two tags of equal size."""
    data = bytearray(srgb)
    place = {data[at : at + 4].decode(): at for at in range(132, 132 + 12 * data[131], 12)}
    red, blue = place["rXYZ"], place["bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data)


def test_shrinking_does_not_alias() -> None:
    rows, columns = np.mgrid[0:1024, 0:1024]
    fine = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
    decoded = Decoded(pixels=np.repeat(fine[..., None], 3, axis=2), form="PNG")
    small = np.asarray(crop(decoded, fit(1024, 1024, Bucket(128, Resolution(128, 128)))))
    assert np.abs(small.astype(int) - 127).max() <= 3
    assert decode(encode(Image.fromarray(small), FileSettings())).pixels.shape == (128, 128, 3)


def test_stages_that_have_not_run_are_named(tmp_path: Path) -> None:
    corpus = raw_corpus(tmp_path, 2)
    with pytest.raises(DataError, match="no captions have been written") as caught:
        write_shards(corpus, tmp_path / "out")
    assert "petzval data caption" in caught.value.hint
    with pytest.raises(DataError, match="has not been cleaned") as caught:
        write_shards(corpus, tmp_path / "out", ShardSettings(captions="source"))
    assert "petzval data clean" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_which_captions(corpus: Corpus, tmp_path: Path) -> None:
    assert caption_stage(corpus, "") == "captions-dense"
    with pytest.raises(DataError, match="unknown captions 'long'"):
        caption_stage(corpus, "long")
    with pytest.raises(DataError, match="no brief captions"):
        caption_stage(corpus, "brief")
    two = ready_corpus(tmp_path, 2)
    caption_corpus(two, MetadataCaptioner(), mode="brief")
    with pytest.raises(DataError, match="several kinds: dense, brief"):
        caption_stage(two, "")
    write_shards(two, tmp_path / "out", ShardSettings(captions="source"))
    assert ShardReader(tmp_path / "out")[0].record["caption_kind"] == "source"


def test_other_folders_are_left_alone(corpus: Corpus, shards: Path, tmp_path: Path) -> None:
    before = tree(shards)
    with pytest.raises(DataError, match="other pictures, captions or settings"):
        write_shards(corpus, shards, ShardSettings(target_bytes=2048))
    assert tree(shards) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="holds something else"):
        write_shards(corpus, tmp_path / "mine", SMALL)
    with pytest.raises(DataError, match="cannot be written"):
        write_shards(corpus, tmp_path / "mine" / "letter.txt" / "deep", SMALL)


def test_a_picture_that_has_gone_ends_the_run_with_its_name(tmp_path: Path) -> None:
    corpus = ready_corpus(tmp_path, 12, share=0.0)
    plan = make_plan(corpus, SMALL)
    gone = Path(plan.rows.to_pylist()[-1]["path"])
    data = gone.read_bytes()
    gone.write_bytes(data[:-1] + b"!")
    with pytest.raises(DataError, match=f"{gone.name} cannot be read any more: changed"):
        write_shards(corpus, tmp_path / "out", ShardSettings(target_bytes=1024))
    gone.write_bytes(data)
    assert (
        write_shards(corpus, tmp_path / "out", ShardSettings(target_bytes=1024)).num_samples == 12
    )


def test_damaged_shards_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no shards"):
        ShardReader(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    reader = ShardReader(copy)
    path = copy / reader.index.to_pylist()[0]["shard"]
    data = bytearray(path.read_bytes())
    data[600:700] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DataError, match="no sample .* at byte 0"):
        reader[0]
    path.unlink()
    with pytest.raises(DataError, match="the file is gone"):
        reader[0]
    (copy / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        ShardReader(copy)
