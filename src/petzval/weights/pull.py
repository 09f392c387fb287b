"""Fetch what a mirror holds: planned, shown, downloaded in parallel, proven, and only then named.

    plan = plan_pull(find_mirror("lens-turbo"))       # asks what there is; nothing is fetched yet
    folder = fetch(plan).folder

What proves a file is said with it: a hash that the registry knows beforehand, or else the hash that
the repository itself lists, which shows that the transfer was right, not who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from petzval.errors import DownloadError
from petzval.weights.destination import (
    Destination,
    HubCache,
    PlainFolder,
    alone,
    partial_of,
    require_room,
    writing,
)
from petzval.weights.hub import Repository, RepositoryFile, download, is_offline, open_repository
from petzval.weights.hub_cache import cache_folder, commit_of, repository_folder
from petzval.weights.registry import KnownFile, Mirror, is_safe

Proof = Literal["registry", "repository", "none"]
"""Who vouches for a file's bytes: our registry, the repository's own listing, nobody."""

Progress = Callable[[int], object]
"""Called with bytes that arrived or were found; negative where some have to come again."""

NUM_WORKERS = 4
"""Files that are fetched at the same time."""

_LAST = "model_index.json"
_HEADER_LIMIT_BYTES = 100_000_000
_UNKNOWN = KnownFile()


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedFile:
    """A file that will be fetched, and what it has to be."""

    file: RepositoryFile
    proof: Proof


@dataclass(frozen=True, kw_only=True, slots=True)
class PullPlan:
    """What a pull will do.

    Attributes:
        repository: None when nobody may be asked: all has to be here.
        commit: whose files these are.
    """

    mirror: Mirror
    repository: Repository | None
    commit: str
    files: tuple[PlannedFile, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files, whether they are here already or not."""
        return sum(planned.file.num_bytes for planned in self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """What a pull left.

    Attributes:
        folder: the snapshot in the cache, or the folder that was named.
        files: every file, proven.
    """

    folder: Path
    files: tuple[Path, ...]


def plan_pull(mirror: Mirror, *, endpoint: str | None = None, offline: bool = False) -> PullPlan:
    """Decide what has to be fetched: ask the server, or, offline, look into the cache.

    Raises:
        DownloadError: the server cannot be asked; the repository lacks a file, has another than
            the registry knows, or lists a path that leaves its folder; offline: it is not here.
    """
    if offline or is_offline():
        return _plan_from_cache(mirror)
    repository = open_repository(mirror.repository, mirror.revision, endpoint)
    files = [file for file in repository.files if _is_wanted(mirror, file.path)]
    for file in files:
        _refuse_changed(mirror, file)
    _refuse_missing(mirror, [file.path for file in files])
    return PullPlan(
        mirror=mirror,
        repository=repository,
        commit=repository.commit,
        files=tuple(_planned(mirror, files)),
    )


def fetch(
    plan: PullPlan,
    *,
    out: Path | None = None,
    progress: Progress = lambda _: None,
    num_workers: int = NUM_WORKERS,
) -> Pulled:
    """Bring all files of a plan to their place; a pull that was interrupted goes on.

    Args:
        plan: from `plan_pull`.
        out: a plain folder; by default the cache that programs share.
        progress: heard from several threads, one at a time.
        num_workers: files at the same time.

    Raises:
        DownloadError: naming the file: it cannot be fetched, or is not what it should be (it is
            removed then); the disk is full. What has arrived is kept for the next call.
    """
    mirror = plan.mirror
    cache = HubCache(mirror.repository, plan.commit, mirror.revision)
    destination: Destination = cache if out is None else PlainFolder(out)
    require_room(destination.folder, _bytes_to_come(plan, destination))
    fetching = _Fetching(plan.repository, cache, destination, progress)
    first = [planned for planned in plan.files if planned.file.path != _LAST]
    last = [planned for planned in plan.files if planned.file.path == _LAST]
    with alone(destination):
        fetching.run(first, num_workers)
        fetching.run(last, num_workers)
        paths = tuple(destination.publish(planned.file) for planned in (*first, *last))
        destination.finish()
    return Pulled(folder=destination.folder, files=paths)


class _Fetching:
    """The work of one `fetch`, shared by its threads."""

    def __init__(
        self,
        repository: Repository | None,
        cache: Destination,
        destination: Destination,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._cache = cache
        self._destination = destination
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self, files: Iterable[PlannedFile], num_workers: int) -> None:
        """All of these files; the first failure stops the others, as an interruption does."""
        with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
            futures = [pool.submit(self._bring, planned) for planned in files]
            try:
                wait(futures, return_when="FIRST_EXCEPTION")
            finally:
                if any(not future.done() or future.exception() for future in futures):
                    self._stopped.set()
        failures = [error for error in (future.exception() for future in futures) if error]
        for error in failures:
            if not isinstance(error, _StoppedError):
                raise error

    def _bring(self, planned: PlannedFile) -> None:
        file, place = planned.file, self._destination.place(planned.file)
        self._report(0)
        if _is_proven(place, planned):
            self._report(file.num_bytes)
            return
        self._destination.prepare(file)
        partial, found = partial_of(place), self._cache.place(file)
        with writing(place):
            if found != place and _is_proven(found, planned):
                shutil.copyfile(found, partial)
                self._report(file.num_bytes)
            elif self._repository is None:
                raise DownloadError(
                    f"{file.path}: what is here is damaged, and was removed",
                    "pull it again with a connection",
                )
            else:
                download(self._repository, file, partial, self._report)
            fault = _fault(partial, planned)
            if fault is not None:
                partial.unlink(missing_ok=True)
                raise DownloadError(
                    f"{file.path}: {fault}; it was removed",
                    "try again; if it stays so, take another mirror: this one is damaged or "
                    "tampered with",
                )
            partial.replace(place)

    def _report(self, number: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._progress(number)


class _StoppedError(Exception):
    """Another file failed, or a person interrupted."""


def _is_proven(place: Path, planned: PlannedFile) -> bool:
    """Whether a file is there and right; one that is wrong is removed."""
    if not place.is_file():
        return False
    if _fault(place, planned) is None:
        return True
    with writing(place):
        place.unlink()
    return False


def _fault(path: Path, planned: PlannedFile) -> str | None:
    """What is wrong with a file's bytes, None where nothing is."""
    file = planned.file
    length = path.stat().st_size
    if length != file.num_bytes:
        return f"has {length:,} bytes, not the {file.num_bytes:,} that it should"
    if file.sha256 is not None and _digest(path, "sha256") != file.sha256:
        return "its SHA-256 is not the one that it should be"
    # Git's name of a file is the SHA-1 of its length and its bytes.
    if file.git_id is not None and _digest(path, "sha1", f"blob {length}\0") != file.git_id:
        return "its git id is not the one that it should be"
    with path.open("rb") as opened:
        start = opened.read(9)
    if file.path.endswith(".gguf") and not start.startswith(b"GGUF"):
        return "is no GGUF file"
    if file.path.endswith(".safetensors"):
        header = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or header > min(length - 8, _HEADER_LIMIT_BYTES):
            return "is no safetensors file"
    return None


def _digest(path: Path, algorithm: str, prefix: str = "") -> str:
    hasher = hashlib.new(algorithm, prefix.encode(), usedforsecurity=algorithm != "sha1")
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _is_wanted(mirror: Mirror, path: str) -> bool:
    """Whether a listed path belongs to the mirror.

    Raises:
        DownloadError: it would, but leads out of its folder.
    """
    if any(pattern.matches(path) for pattern in mirror.files):
        if not is_safe(path):
            raise DownloadError(
                f"{mirror.repository}: lists {path[:120]!r}, which is no plain path; nothing was "
                "fetched",
                "take another mirror: this one is tampered with",
            )
        return True
    return False


def _refuse_changed(mirror: Mirror, file: RepositoryFile) -> None:
    """What the registry knows and the repository lists must agree, before a byte is fetched."""
    known = mirror.known.get(file.path, _UNKNOWN)
    changed = known.num_bytes not in (None, file.num_bytes)
    if changed or (known.sha256 is not None and file.sha256 not in (None, known.sha256)):
        raise DownloadError(
            f"{file.path} of {mirror.repository}: the repository has another file than the one "
            "that is known; nothing was fetched",
            "take another mirror: this one was changed or tampered with",
        )


def _refuse_missing(mirror: Mirror, paths: list[str]) -> None:
    for pattern in mirror.files:
        if not pattern.optional and not any(pattern.matches(path) for path in paths):
            raise DownloadError(
                f"{mirror.repository}: holds no {pattern.pattern}; nothing was fetched",
                _other_layout(mirror),
            )


def _other_layout(mirror: Mirror) -> str:
    """What to do where a repository lacks a file."""
    if mirror.is_listed:
        return "it was changed since it was entered here; `petzval pull` lists other mirrors"
    if mirror.holds == "checkpoint":
        return "it holds no checkpoint in the published layout; see its page for what it holds"
    return "see its page for the name of the file, and give it as weight_name"


def _planned(mirror: Mirror, files: Iterable[RepositoryFile]) -> Iterator[PlannedFile]:
    """Each file with the strictest thing that it can be held to."""
    for file in sorted(files, key=lambda file: file.path):
        sha256 = mirror.known.get(file.path, _UNKNOWN).sha256
        proof: Proof = "repository" if file.blob else "none"
        if sha256 is not None:
            file, proof = replace(file, sha256=sha256), "registry"
        yield PlannedFile(file=file, proof=proof)


def _plan_from_cache(mirror: Mirror) -> PullPlan:
    """The same plan from what was fetched before; the cache names bytes by their hash."""
    home = repository_folder(mirror.repository)
    commit = mirror.revision if mirror.is_pinned else commit_of(mirror.repository, mirror.revision)
    snapshot = None if commit is None else home / "snapshots" / commit
    if commit is None or snapshot is None or not snapshot.is_dir():
        raise DownloadError(
            f"{mirror.name} is not in {cache_folder()}",
            f"{_fetching(mirror)}, or copy that folder from a machine that has it",
        )
    files: list[RepositoryFile] = []
    for path in sorted(snapshot.rglob("*")):
        name = path.relative_to(snapshot).as_posix()
        if path.is_file() and _is_wanted(mirror, name):
            files.append(_cached(path, name))
    paths = [file.path for file in files]
    for pattern in mirror.files:
        if not pattern.optional and not any(pattern.matches(path) for path in paths):
            raise _incomplete(mirror, pattern.pattern)
    for path in paths:
        if path.endswith(".safetensors.index.json"):
            for shard in _shards(snapshot / path):
                if str(Path(path).parent / shard) not in paths and shard not in paths:
                    raise _incomplete(mirror, shard)
    for file in files:
        _refuse_changed(mirror, file)
    return PullPlan(
        mirror=mirror, repository=None, commit=commit, files=tuple(_planned(mirror, files))
    )


def _cached(path: Path, name: str) -> RepositoryFile:
    # One link, not the last of a chain: a blob may itself be a link into a store of other names.
    blob = path.readlink().name if path.is_symlink() else ""
    if len(blob) not in (40, 64) or set(blob) - set("0123456789abcdef"):
        blob = ""
    return RepositoryFile(
        path=name,
        num_bytes=path.stat().st_size,
        blob=blob,
        sha256=blob if len(blob) == 64 else None,
        git_id=blob if len(blob) == 40 else None,
    )


def _shards(index: Path) -> set[str]:
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
        return {str(place) for place in places}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"the shards of a damaged " + index.name}


def _incomplete(mirror: Mirror, what: str) -> DownloadError:
    return DownloadError(
        f"{mirror.name} is only partly in {cache_folder()}: {what} is missing",
        _fetching(mirror),
    )


def _fetching(mirror: Mirror) -> str:
    """What brings a mirror here."""
    if mirror.is_listed:
        return f"run `petzval pull {mirror.name}` with a connection"
    return "load it once with a connection"


def _bytes_to_come(plan: PullPlan, destination: Destination) -> int:
    total = 0
    for planned in plan.files:
        place = destination.place(planned.file)
        partial = partial_of(place)
        if not place.is_file():
            have = partial.stat().st_size if partial.is_file() else 0
            total += max(0, planned.file.num_bytes - have)
    return total
