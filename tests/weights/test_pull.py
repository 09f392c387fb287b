from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from petzval.errors import DownloadError, PetzvalError
from petzval.inference.variants import locate
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.destination import PARTIAL_SUFFIX
from petzval.weights.hub_cache import cache_folder, pulled_folder, repository_folder
from petzval.weights.pull import Pulled, fetch, plan_pull
from petzval.weights.registry import Mirror, find_mirror
from tests.hub_server import (
    CHUNK,
    COMMIT,
    FakeHub,
    listed,
    published_folder,
    serving,
    sha256,
    write_registry,
)
from tests.support import PATIENCE

REPOSITORY = "someone/Tiny"
DENOISER = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeHub]:
    """A hub that serves a published folder, beside a few files that nobody should fetch."""
    with serving(tmp_path, monkeypatch) as hub:
        hub.files[REPOSITORY] = published_folder() | {
            "README.md": b"# hello",
            "transformer/evil.py": b"raise SystemExit",
            "pytorch_model.bin": b"\x80\x02",
            "vae/notes/more.json": b"{}",
        }
        registry(tmp_path, monkeypatch)
        yield hub


def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Mirror:
    """Enter the tiny folder in a registry, with these changes."""
    path = write_registry(tmp_path / "mirrors.json", changes)
    monkeypatch.setenv("PETZVAL_REGISTRY", str(path))
    return find_mirror("tiny")


def pull(**options: Any) -> Pulled:
    return fetch(plan_pull(find_mirror("tiny")), **options)


def partials() -> list[Path]:
    return sorted(cache_folder().rglob(f"*{PARTIAL_SUFFIX}"))


def test_a_published_folder_is_fetched_and_found_by_name(
    hub: FakeHub, golden_checkpoint: Path
) -> None:
    hub.add_folder(REPOSITORY, golden_checkpoint)
    pulled = pull()
    assert pulled.folder == repository_folder(REPOSITORY) / "snapshots" / COMMIT
    Checkpoint.open(pulled.folder)
    located = locate("lens-turbo")
    assert (located.folder, located.defaults.steps) == (pulled.folder, 4)
    assert locate("tiny").folder == pulled.folder
    assert pulled_folder(find_mirror("tiny")) == pulled.folder
    assert not partials() and not list(cache_folder().rglob("petzval.lock"))


def test_only_numbers_and_settings_are_fetched(hub: FakeHub) -> None:
    pulled = pull()
    fetched = {path.relative_to(pulled.folder).as_posix() for path in pulled.files}
    assert fetched == set(hub.files[REPOSITORY]) - {
        *("README.md", "transformer/evil.py", "pytorch_model.bin", "vae/notes/more.json")
    }
    asked = {asked.path.rpartition("/")[2] for asked in hub.log}
    assert not asked & {"README.md", "evil.py", "pytorch_model.bin", "more.json"}


def test_other_programs_find_what_was_fetched_and_we_what_they_fetched(hub: FakeHub) -> None:
    pulled = pull()
    found = huggingface_hub.snapshot_download(
        REPOSITORY, cache_dir=cache_folder(), local_files_only=True
    )
    assert Path(found) == pulled.folder
    scan = huggingface_hub.scan_cache_dir(cache_folder())
    [entry] = scan.repos
    assert (entry.repo_id, entry.nb_files) == (REPOSITORY, len(pulled.files))
    assert not scan.warnings

    other = cache_folder().parent / "other"
    huggingface_hub.snapshot_download(
        REPOSITORY, cache_dir=other, endpoint=hub.url, allow_patterns=["*.json", "*.safetensors"]
    )
    os.environ["HF_HUB_CACHE"] = str(other)
    try:
        before = len(hub.asked_for(".safetensors"))
        assert pull().folder.is_relative_to(other)
        assert len(hub.asked_for(".safetensors")) == before
    finally:
        del os.environ["HF_HUB_CACHE"]


def test_what_is_here_and_right_is_not_fetched_again(hub: FakeHub) -> None:
    pull()
    before = len(hub.asked_for("json")) + len(hub.asked_for("safetensors"))
    heard: list[int] = []
    pull(progress=heard.append)
    assert len(hub.asked_for("json")) + len(hub.asked_for("safetensors")) == before
    assert sum(heard) == plan_pull(find_mirror("tiny")).num_bytes


def test_files_come_at_the_same_time_and_the_layout_file_last(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)
    met: list[str] = []
    monkeypatch.setattr(hub, "next_of", _meeting(hub, together, met))
    pull(num_workers=3)
    assert sorted(met) == sorted((DENOISER, ENCODER, VAE))
    order = [asked.path for asked in hub.log if asked.method == "GET" and "/resolve/" in asked.path]
    assert order[-1].endswith("/model_index.json")


def _meeting(hub: FakeHub, together: threading.Barrier, met: list[str]) -> Any:
    """In the server: each of three large files waits until all three are asked for."""
    original = FakeHub.next_of

    def next_of(table: Any, path: str) -> int | None:
        if table is hub.cuts and path in (DENOISER, ENCODER, VAE):
            together.wait(timeout=PATIENCE)
            met.append(path)
        return original(hub, table, path)

    return next_of


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub) -> None:
    hub.cuts[DENOISER] = [3 * CHUNK, CHUNK, 100 * CHUNK]
    heard: list[int] = []
    plan = plan_pull(find_mirror("tiny"))
    pulled = fetch(plan, progress=heard.append)
    assert (pulled.folder / DENOISER).read_bytes() == hub.files[REPOSITORY][DENOISER]
    ranges = [asked.range for asked in hub.asked_for(DENOISER) if asked.on_cdn]
    assert ranges == [None, *(f"bytes={n * CHUNK}-" for n in (3, 4, 104))]
    assert sum(heard) == plan.num_bytes


def test_an_interrupted_pull_goes_on_behind_what_has_arrived(hub: FakeHub) -> None:
    arrived = 0

    def interrupt(number: int) -> None:
        nonlocal arrived
        arrived += number
        if arrived > 5 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(progress=interrupt, num_workers=1)
    [partial] = partials()
    size = partial.stat().st_size
    assert size > 0
    with pytest.raises(PetzvalError, match="not on this machine"):
        locate("lens-turbo")
    hub.log.clear()
    pull()
    ranges = [asked.range for asked in hub.log if asked.on_cdn and asked.range]
    assert ranges == [f"bytes={size}-"]
    assert not partials()


def test_a_server_that_ignores_ranges_sends_all_again(hub: FakeHub) -> None:
    hub.ignores_range = True
    hub.cuts[DENOISER] = [3 * CHUNK]
    plan, heard = plan_pull(find_mirror("tiny")), list[int]()
    pulled = fetch(plan, progress=heard.append)
    assert (pulled.folder / DENOISER).read_bytes() == hub.files[REPOSITORY][DENOISER]
    assert sum(heard) == plan.num_bytes


def test_a_partial_file_that_is_too_long_is_begun_anew(hub: FakeHub) -> None:
    blobs = repository_folder(REPOSITORY) / "blobs"
    blobs.mkdir(parents=True)
    data = hub.files[REPOSITORY][VAE]
    (blobs / (sha256(data) + PARTIAL_SUFFIX)).write_bytes(data + b"more")
    assert (pull().folder / VAE).read_bytes() == data


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_stumbles_is_asked_again(hub: FakeHub, status: int) -> None:
    hub.statuses[f"/{REPOSITORY}/{VAE}"] = [status, status]
    assert (pull().folder / VAE).is_file()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "not there, or not for everybody"),
        (403, "forbidden"),
        (404, "not there"),
        (429, "fewer requests"),
        (500, "error 500"),
        (418, "error 418"),
    ],
)
def test_an_answer_that_is_an_error_is_told_by_file(hub: FakeHub, status: int, words: str) -> None:
    hub.statuses[f"/{REPOSITORY}/{VAE}"] = [status] * 50
    with pytest.raises(DownloadError, match=words) as caught:
        pull()
    assert VAE in caught.value.message and caught.value.hint
    assert pulled_folder(find_mirror("tiny")) is None


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_repository_that_cannot_be_asked_is_told_by_name(hub: FakeHub, status: int) -> None:
    hub.statuses["/api/"] = [status] * 50
    with pytest.raises(DownloadError, match=REPOSITORY):
        pull()
    assert not cache_folder().exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("GatedRepo", "accept its terms"),
        ("RepoNotFound", "not there"),
        ("RevisionNotFound", "no revision"),
    ],
)
def test_what_the_hub_explains_is_passed_on(hub: FakeHub, code: str, words: str) -> None:
    hub.statuses["/api/"], hub.error_code = [403 if code == "GatedRepo" else 404] * 50, code
    with pytest.raises(DownloadError, match=words):
        pull()


def test_a_commit_that_is_gone_is_told(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(tmp_path, monkeypatch, revision=COMMIT)
    pull()
    assert not (repository_folder(REPOSITORY) / "refs").exists()
    hub.statuses["/api/"], hub.error_code = [404] * 50, "RevisionNotFound"
    with pytest.raises(DownloadError, match=COMMIT):
        pull()


@pytest.mark.parametrize("name", [DENOISER, "vae/config.json"])
def test_tampered_bytes_are_refused_by_name_and_removed(hub: FakeHub, name: str) -> None:
    data = hub.files[REPOSITORY][name]
    hub.bodies[name] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(DownloadError, match=f"{name}: its .* it was removed"):
        pull()
    kept = {path.read_bytes() for path in cache_folder().rglob("*") if path.is_file()}
    assert hub.bodies[name] not in kept
    hub.bodies.clear()
    assert (pull().folder / name).read_bytes() == data


def test_a_file_that_was_damaged_here_is_fetched_again(hub: FakeHub) -> None:
    place = pull().folder / VAE
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    assert pull().folder / VAE == place
    assert place.read_bytes() == hub.files[REPOSITORY][VAE]


@pytest.mark.parametrize("change", [-100, 100])
@pytest.mark.parametrize("without_length", [False, True])
def test_another_number_of_bytes_than_listed_is_refused(
    hub: FakeHub, change: int, without_length: bool
) -> None:
    data = hub.files[REPOSITORY][VAE]
    hub.bodies[VAE] = data[:change] if change < 0 else data + b"x" * change
    hub.without_length = without_length
    with pytest.raises(DownloadError, match=VAE):
        pull()
    assert pulled_folder(find_mirror("tiny")) is None


def test_a_server_without_end_is_stopped(hub: FakeHub) -> None:
    data = hub.files[REPOSITORY][VAE]
    hub.bodies[VAE], hub.without_length = data + bytes(1 << 22), True
    with pytest.raises(DownloadError, match="sends more than"):
        pull()
    largest = max(map(len, hub.files[REPOSITORY].values()))  # others may be on their way
    assert all(path.stat().st_size < largest + 2 * CHUNK for path in partials())


def test_a_repository_that_was_changed_is_refused_before_a_byte_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"num_bytes": len(hub.files[REPOSITORY][VAE]), "sha256": sha256(b"another")}
    registry(tmp_path, monkeypatch, known={VAE: right})
    with pytest.raises(DownloadError, match=f"{VAE}.*another file"):
        pull()
    registry(tmp_path, monkeypatch, known={VAE: {"num_bytes": 3}})
    with pytest.raises(DownloadError, match=f"{VAE}.*another file"):
        pull()
    assert not hub.asked_for(".safetensors")


def test_the_registrys_hash_wins_over_a_listing_that_tells_none(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tokenizer/tokenizer.json"
    data = hub.files[REPOSITORY][name]
    registry(tmp_path, monkeypatch, known={name: {"sha256": sha256(data)}})
    plan = plan_pull(find_mirror("tiny"))
    assert {p.file.path: p.proof for p in plan.files}[name] == "registry"
    assert {p.proof for p in plan.files} == {"registry", "repository"}
    fetch(plan)
    # The same server, hacked: bytes and git id agree with each other, not with the registry.
    hub.files[REPOSITORY][name] = data + b" "
    hub.commit = COMMIT[::-1]
    with pytest.raises(DownloadError, match=f"{name}: its SHA-256"):
        pull()


@pytest.mark.parametrize(
    "path",
    [
        "../../../../evil.safetensors",
        "transformer/../../evil.safetensors",
        "/transformer/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model\\..\\..\\evil.safetensors",
        "transformer/diffusion_pytorch_model\n.safetensors",
        "transformer/diffusion_pytorch_model:x.safetensors",
        "transformer/diffusion_pytorch_model" + "x" * 300 + ".safetensors",
    ],
)
def test_no_path_leads_out_of_the_folder(hub: FakeHub, path: str, tmp_path: Path) -> None:
    hub.files[REPOSITORY][path] = b"evil"
    try:
        pull()
    except DownloadError as error:
        assert "no plain path" in error.message and error.message.isprintable()
    assert not list(tmp_path.rglob("*evil*"))
    assert not [path for path in cache_folder().rglob("*") if "\\" in path.name]


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        {},
        {"path": 3},
        {"size": -1},
        {"size": "many"},
        {"oid": "../../../evil"},
        {"oid": None},
        {"lfs": {"oid": "../../../evil", "size": 1, "pointerSize": 1}},
        {"lfs": {"oid": "a" * 64, "size": 1, "pointerSize": 1}},
        {"lfs": 3},
        {"type": None},
    ],
)
def test_a_listing_that_is_none_is_refused(hub: FakeHub, row: Any) -> None:
    good = [listed(name, data) for name, data in hub.files[REPOSITORY].items()]
    bad = good[0] | row if isinstance(row, dict) and row else row
    hub.listing[REPOSITORY] = [*good[1:], bad]
    with pytest.raises(DownloadError):
        pull()
    assert not cache_folder().exists()


@pytest.mark.parametrize("listing", [{"error": "x"}, "text", 3])
def test_an_answer_that_is_no_listing_is_refused(hub: FakeHub, listing: Any) -> None:
    hub.listing[REPOSITORY] = listing
    with pytest.raises(DownloadError):
        pull()


def test_a_commit_that_is_none_is_refused(hub: FakeHub) -> None:
    hub.commit = "../../evil"
    with pytest.raises(DownloadError):
        pull()


def test_a_long_listing_comes_in_pages(hub: FakeHub) -> None:
    hub.page = 4
    assert len(pull().files) == len(published_folder())


def test_a_repository_without_a_part_is_refused_before_a_byte_is_fetched(hub: FakeHub) -> None:
    del hub.files[REPOSITORY][VAE]
    with pytest.raises(DownloadError, match=f"holds no {VAE}"):
        pull()
    assert not hub.asked_for(".safetensors")


@pytest.mark.parametrize("data", [b"", b"\x80\x02pickle", b"<html>", b"\xff" * 8 + b"{"])
def test_what_is_no_safetensors_file_is_refused_though_its_hash_is_right(
    hub: FakeHub, data: bytes
) -> None:
    hub.files[REPOSITORY][VAE] = data
    with pytest.raises(DownloadError, match=f"{VAE}: is no safetensors"):
        pull()
    assert sha256(data) not in {path.name for path in cache_folder().rglob("*")}


def test_a_single_file_is_fetched_by_its_pattern(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"holds": "denoiser", "files": [{"pattern": "*[qQ]8_0*.gguf"}]}
    registry(tmp_path, monkeypatch, **row)
    names = ("Lens-Q8_0.gguf", "lens-q4_k.gguf", "sub/lens-q8_0.gguf")
    hub.files[REPOSITORY] |= {name: b"GGUF" + name.encode() for name in names}
    [path] = pull().files
    assert path.name == "Lens-Q8_0.gguf"
    with pytest.raises(PetzvalError, match="denoiser alone"):
        locate("tiny")
    hub.files[REPOSITORY]["Lens-Q8_0.gguf"] = b"PK\x03\x04"
    hub.commit = COMMIT[::-1]
    with pytest.raises(DownloadError, match="no GGUF"):
        pull()


def test_a_plain_folder_holds_no_links_and_takes_from_the_cache(
    hub: FakeHub, tmp_path: Path
) -> None:
    out = tmp_path / "models" / "tiny"
    assert pull(out=out).folder == out
    assert not cache_folder().exists()
    assert not [path for path in out.rglob("*") if path.is_symlink() or path.name.startswith(".")]
    pull()
    before = len(hub.log)
    second = pull(out=tmp_path / "second").folder
    assert (second / VAE).read_bytes() == hub.files[REPOSITORY][VAE]
    assert not [asked for asked in hub.log[before:] if "/resolve/" in asked.path]


def test_a_folder_that_is_a_link_to_elsewhere_is_not_followed(hub: FakeHub, tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / "vae").symlink_to(elsewhere)
    with pytest.raises(DownloadError, match="link that leads out"):
        pull(out=out)
    assert not list(elsewhere.iterdir())


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left(
    hub: FakeHub, tmp_path: Path
) -> None:
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.write_text("mine")
    (out / "vae").mkdir(parents=True)
    (out / VAE).symlink_to(precious)
    (out / (VAE + PARTIAL_SUFFIX)).symlink_to(precious)
    pull(out=out)
    assert precious.read_text() == "mine"
    assert not (out / VAE).is_symlink()


def test_two_pulls_do_not_write_into_each_other(hub: FakeHub, tmp_path: Path) -> None:
    def second(_: int) -> None:
        if not refused:
            refused.append("")
            with pytest.raises(DownloadError, match="another pull") as caught:
                pull()
            refused[0] = caught.value.hint

    refused: list[str] = []
    pull(progress=second)
    assert refused == ["wait until it is done"]


def test_offline_all_is_checked_and_nobody_asked(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match="is not in") as caught:
        plan_pull(find_mirror("tiny"), offline=True)
    assert "petzval pull tiny" in caught.value.hint
    folder = pull().folder
    hub.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = plan_pull(find_mirror("tiny"))
    assert plan.repository is None and plan.commit == COMMIT
    assert fetch(plan).folder == folder
    assert (fetch(plan, out=tmp_path / "usb").folder / VAE).is_file()
    assert not hub.log

    (folder / VAE).resolve().write_bytes(hub.files[REPOSITORY][VAE][:-1] + b"x")
    with pytest.raises(DownloadError, match=f"{VAE}: .*damaged, and was removed"):
        fetch(plan_pull(find_mirror("tiny")))
    with pytest.raises(DownloadError, match=f"only partly.*{VAE}"):
        plan_pull(find_mirror("tiny"))
    assert not hub.log


def test_offline_a_missing_shard_is_told_by_name(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = "transformer/diffusion_pytorch_model"
    shard = f"{stem}-00001-of-00002.safetensors"
    hub.files[REPOSITORY][shard] = hub.files[REPOSITORY].pop(DENOISER)
    index = b'{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}'
    hub.files[REPOSITORY][f"{stem}.safetensors.index.json"] = index
    pull()
    assert plan_pull(find_mirror("tiny"), offline=True)
    hub.files[REPOSITORY][f"{stem}.safetensors.index.json"] = index.replace(b"1-of", b"2-of")
    hub.commit = COMMIT[::-1]
    pull()
    with pytest.raises(DownloadError, match="00002-of-00002.safetensors is missing"):
        plan_pull(find_mirror("tiny"), offline=True)


def test_a_cache_without_links_is_held_to_what_is_known(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a system that has none, or where a person laid the files in by hand."""
    snapshot = repository_folder(REPOSITORY) / "snapshots" / COMMIT
    for name, data in published_folder().items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    known = {VAE: {"sha256": sha256(published_folder()[VAE])}}
    registry(tmp_path, monkeypatch, revision=COMMIT, known=known)
    plan = plan_pull(find_mirror("tiny"), offline=True)
    proofs = {planned.file.path: planned.proof for planned in plan.files}
    assert proofs[VAE] == "registry" and proofs[DENOISER] == "none"
    assert fetch(plan).folder == snapshot
    assert (fetch(plan, out=tmp_path / "out").folder / VAE).is_file()
    (snapshot / VAE).write_bytes(published_folder()[VAE][:-1] + b"x")
    with pytest.raises(DownloadError, match="removed"):
        fetch(plan)
    assert not (snapshot / VAE).exists() and not hub.log


def test_a_token_goes_to_the_hub_alone_and_into_no_message(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    hub.cuts[VAE] = [CHUNK]
    pull()
    assert {asked.token for asked in hub.log if not asked.on_cdn} == {"Bearer hf_verysecret"}
    assert {asked.token for asked in hub.log if asked.on_cdn} == {None}
    for status in (401, 403, 404, 429, 500):
        hub.statuses["/api/"] = [status] * 50
        with pytest.raises(DownloadError) as caught:
            pull()
        assert "verysecret" not in str(caught.value)
    assert "verysecret" not in caplog.text


@pytest.fixture
def new_session() -> Generator[None]:
    """The client reads proxies when its session begins."""
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.mark.usefixtures("new_session")
def test_a_proxy_is_used_where_the_environment_names_one(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert (pull().folder / VAE).is_file()
    small = [asked.path for asked in hub.log if not asked.on_cdn]
    assert f"/{REPOSITORY}/resolve/{COMMIT}/vae/config.json" in small


@pytest.mark.usefixtures("new_session")
def test_a_proxy_that_is_not_there_is_told(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    with pytest.raises(DownloadError, match=REPOSITORY) as caught:
        pull()
    assert "secret" not in str(caught.value)
    assert not hub.log


def test_a_server_that_is_not_there_is_told_with_what_to_try(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DownloadError, match="no connection") as caught:
        plan_pull(find_mirror("tiny"), endpoint="http://127.0.0.1:9")
    assert "HF_ENDPOINT" in caught.value.hint
    for address in ("ftp://x", "127.0.0.1", "http://user:secret@x", "http://x?y", "http://x\n"):
        with pytest.raises(DownloadError, match="no address") as caught:
            plan_pull(find_mirror("tiny"), endpoint=address)
        assert "secret" not in str(caught.value)


def test_a_full_disk_is_told_before_a_byte_is_fetched(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DownloadError, match="free"):
        pull()
    assert not hub.asked_for(".safetensors")


def test_a_place_that_cannot_be_written_to_is_told(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        pull(out=tmp_path / "file" / "sub")
