"""Where fetched files go: the cache that programs share, or a plain folder.

Bytes get their name only once they are proven, and `model_index.json`, by which a checkpoint is
found, comes last: what can be found is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Protocol, runtime_checkable

from petzval.errors import DownloadError
from petzval.weights.hub import RepositoryFile
from petzval.weights.hub_cache import repository_folder

PARTIAL_SUFFIX = ".petzval.incomplete"


@runtime_checkable
class Destination(Protocol):
    """A place for the files of one repository at one commit.

    Attributes:
        folder: in which they can be seen under their names.
        lock: a file that whoever writes here holds.
    """

    folder: Path
    lock: Path

    def place(self, file: RepositoryFile) -> Path:
        """Where a file's proven bytes lie, or will."""
        ...

    def prepare(self, file: RepositoryFile) -> None:
        """Make the folder of a file's place.

        Raises:
            DownloadError: a link leads out of the destination, or it cannot be written to.
        """
        ...

    def publish(self, file: RepositoryFile) -> Path:
        """Show a file that lies in its place under its name, and return that path.

        Raises:
            DownloadError: as `prepare`.
        """
        ...

    def finish(self) -> None:
        """All files are there."""
        ...


class HubCache:
    """Hugging Face's cache; see `hub_cache`.

    Args:
        repository: owner/name.
        commit: whose files these are.
        revision: what was asked for; a branch is remembered with its commit.
        cache: its folder; by default the one that the environment names.
    """

    def __init__(
        self, repository: str, commit: str, revision: str, cache: Path | None = None
    ) -> None:
        self._root = repository_folder(repository, cache)
        self._revision, self._commit = revision, commit
        self.folder = self._root / "snapshots" / commit
        self.lock = self._root.parent / ".locks" / self._root.name / "petzval.lock"

    def place(self, file: RepositoryFile) -> Path:
        # Where a system has no links, the snapshot holds the bytes and their hash is not told.
        return self._root / "blobs" / file.blob if file.blob else self.folder / file.path

    def prepare(self, file: RepositoryFile) -> None:
        with writing(self._root):
            _make_parents(self.place(file), self._root)

    def publish(self, file: RepositoryFile) -> Path:
        pointer, blob = self.folder / file.path, self.place(file)
        if pointer == blob:
            return pointer
        with writing(pointer):
            _make_parents(pointer, self._root)
            partial = pointer.with_name(f".{uuid.uuid4().hex[:8]}.incomplete")
            try:
                try:
                    partial.symlink_to(os.path.relpath(blob, pointer.parent))
                except (OSError, NotImplementedError):  # a system without links
                    shutil.copy(blob, partial)
                partial.replace(pointer)
            finally:
                partial.unlink(missing_ok=True)
        return pointer

    def finish(self) -> None:
        if self._revision == self._commit:
            return
        ref = self._root / "refs" / self._revision
        with writing(ref):
            ref.parent.mkdir(parents=True, exist_ok=True)
            partial = ref.with_name(f".{uuid.uuid4().hex[:8]}.incomplete")
            partial.write_text(self._commit)
            partial.replace(ref)


class PlainFolder:
    """A folder of one's own, laid out like the repository, without links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / ".petzval.lock"

    def place(self, file: RepositoryFile) -> Path:
        return self.folder / file.path

    def prepare(self, file: RepositoryFile) -> None:
        with writing(self.folder):
            _make_parents(self.place(file), self.folder)

    def publish(self, file: RepositoryFile) -> Path:
        return self.folder / file.path

    def finish(self) -> None:
        """Nothing is left to do."""


def partial_of(place: Path) -> Path:
    """Where the bytes of a file are gathered until they are whole."""
    return place.with_name(place.name + PARTIAL_SUFFIX)


def require_room(folder: Path, num_bytes: int) -> None:
    """See that a disk has room before a long download begins.

    Raises:
        DownloadError: it has not.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise DownloadError(
            f"{folder}: {num_bytes / 1e9:,.1f} GB are to come, but only {free / 1e9:,.1f} GB free",
            "free some space, or choose another disk with --out or HF_HOME",
        )


def _make_parents(path: Path, root: Path) -> None:
    """Make a file's folders, none of which may be a link that leaves the root."""
    root.mkdir(parents=True, exist_ok=True)
    for parent in reversed(path.relative_to(root).parents[:-1]):
        folder = root / parent
        folder.mkdir(exist_ok=True)
        if not folder.resolve().is_relative_to(root.resolve()):
            raise DownloadError(
                f"{folder}: is a link that leads out of {root}", "remove it, or choose another one"
            )


@contextlib.contextmanager
def alone(destination: Destination) -> Generator[None]:
    """Hold a destination's lock: two pulls would write into each other's unfinished files.

    Raises:
        DownloadError: another pull holds it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    with writing(destination.lock):
        destination.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(destination.lock, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DownloadError(
                f"{destination.folder}: another pull is writing there", "wait until it is done"
            ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            destination.lock.unlink()
        lock.release()


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """What the system refuses, in one line.

    Raises:
        DownloadError: naming the path.
    """
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{path}: cannot be written ({error.strerror or error})",
            "choose another place with --out or HF_HOME",
        ) from error
