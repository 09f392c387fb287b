"""Hugging Face's cache as it lies on disk, shared with every other program that uses it.

    <cache>/models--<owner>--<name>/blobs/<hash>                     the bytes
                                    snapshots/<commit>/<path>         links to them
                                    refs/<revision>                   the commit of a branch

Nothing here asks a server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from petzval.errors import RequestError
from petzval.weights.registry import Mirror

_COMMIT_LIMIT_BYTES = 200


def cache_folder() -> Path:
    """Where the cache is: `HF_HUB_CACHE`, else `HF_HOME`/hub, else below the user's cache folder.

    Raises:
        RequestError: the folder lies in the home of a user who is not known here.
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return _expanded(os.environ[name])
    if os.environ.get("HF_HOME"):
        return _expanded(os.environ["HF_HOME"]) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def repository_folder(repository: str, cache: Path | None = None) -> Path:
    """What the cache holds of one repository; it need not exist."""
    home = cache_folder() if cache is None else cache
    return home / f"models--{repository.replace('/', '--')}"


def commit_of(repository: str, revision: str, cache: Path | None = None) -> str | None:
    """The commit that a branch had when it was fetched last; None where it never was."""
    ref = repository_folder(repository, cache) / "refs" / revision
    try:
        with ref.open("rb") as opened:
            commit = opened.read(_COMMIT_LIMIT_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    # It becomes the name of a folder: anything that leads elsewhere is no commit.
    is_name = commit not in ("", ".", "..") and commit.isprintable()
    return commit if is_name and not set(commit) & set("/\\:") else None


def snapshots(repository: str, cache: Path | None = None) -> Iterator[Path]:
    """Snapshots of a repository, the one `main` names first; the first need not exist."""
    folder = repository_folder(repository, cache) / "snapshots"
    commit = commit_of(repository, "main", cache)
    if commit is not None:
        yield folder / commit
    if folder.is_dir():
        yield from sorted(folder.iterdir())


def pulled_folder(mirror: Mirror) -> Path | None:
    """The snapshot that holds what a mirror consists of; None where a part of it is missing."""
    commit = mirror.revision
    if not mirror.is_pinned:
        commit = commit_of(mirror.repository, mirror.revision)
    if commit is None:
        return None
    folder = repository_folder(mirror.repository) / "snapshots" / commit
    needed = [each.pattern for each in mirror.files if not each.optional]
    return folder if all(any(folder.glob(pattern)) for pattern in needed) else None


def _expanded(text: str) -> Path:
    try:
        return Path(os.path.expandvars(text)).expanduser()
    except RuntimeError:
        raise RequestError(
            f"{text[:200]!r} begins with the home of a user who is not known here",
            "set HF_HOME to a folder, written in full",
        ) from None
