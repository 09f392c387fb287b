"""The only file that knows the download client: what a repository holds, and its bytes.

The client is huggingface_hub, which brings the standard variables for a token, a proxy, a mirror
endpoint and certificates. Nothing that a server sends is run, and its words reach no message:
errors are told in ours, so that no token, signed address or control character gets into a log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from petzval.errors import DownloadError

Report = Callable[[int], object]
"""Called with the number of bytes that arrived; negative where some have to come again."""

ENDPOINT_VARIABLE = "HF_ENDPOINT"
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

MAX_FILES = 10_000
"""Files of one repository; more is no model."""

ATTEMPTS = 4
"""Times that a transfer may fail without a single new byte, each after the client's own tries."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 16.0
_GIT_ID, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RepositoryFile:
    """One file as its repository lists it.

    Attributes:
        path: within the repository.
        num_bytes: its length.
        blob: the name of its bytes in the cache, which is one of the hashes; "" where the cache
            holds them under their path.
        sha256: of its bytes, which is how a repository stores large files; None where unknown.
        git_id: the git blob id, which is how it stores small ones; None where unknown.
    """

    path: str
    num_bytes: int
    blob: str
    sha256: str | None = None
    git_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository at one commit.

    Attributes:
        endpoint: the server, without a slash at its end.
        name: owner/name.
        commit: 40 hexadecimal digits.
        files: all of them, whatever their kind.
    """

    endpoint: str
    name: str
    commit: str
    files: tuple[RepositoryFile, ...]


def is_offline() -> bool:
    """Whether the environment forbids to ask a server, by the variables that the client reads."""
    values = [os.environ.get(name, "").upper() for name in OFFLINE_VARIABLES]
    return any(value in ("1", "ON", "YES", "TRUE") for value in values)


def choose_endpoint(endpoint: str | None) -> str:
    """The server to ask: the one that is given, else `HF_ENDPOINT`, else the hub itself.

    Raises:
        DownloadError: it is no http(s) address, or carries a password.
    """
    from huggingface_hub import constants

    text = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or constants.ENDPOINT).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", text):
        raise DownloadError(
            "the endpoint is no address of a server",
            "write it like https://hub.example; a token belongs into HF_TOKEN",
        )
    return text


def open_repository(name: str, revision: str, endpoint: str | None = None) -> Repository:
    """Ask what a repository holds.

    Args:
        name: owner/name.
        revision: a branch or a commit.
        endpoint: see `choose_endpoint`.

    Raises:
        DownloadError: no such repository or revision, no permission, no connection; or the answer
            is none of a hub's.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    server = choose_endpoint(endpoint)
    place = f"{name} at {server}"
    with _Quiet(), _given_up(), _explained(place, f"revision {revision!r}"):
        api = HfApi(endpoint=server)
        commit = revision
        if not _GIT_ID.fullmatch(revision):
            commit = str(api.model_info(name, revision=revision, timeout=30).sha)
        files: list[RepositoryFile] = []
        for entry in api.list_repo_tree(name, recursive=True, revision=commit):
            if isinstance(entry, RepoFile):
                files.append(_listed(entry))
            if len(files) > MAX_FILES:
                raise ValueError("too many files")
    if not _GIT_ID.fullmatch(commit):
        raise _nonsense(place)
    return Repository(endpoint=server, name=name, commit=commit, files=tuple(files))


def _listed(entry: Any) -> RepositoryFile:
    """An entry of the listing, or a ValueError: its hash becomes the name of a file here."""
    path, num_bytes = str(entry.path), int(entry.size)
    sha256 = None if entry.lfs is None else str(entry.lfs.sha256)
    git_id = None if sha256 is not None else str(entry.blob_id)
    if num_bytes < 0 or (entry.lfs is not None and int(entry.lfs.size) != num_bytes):
        raise ValueError("a size that is none")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError("a hash that is none")
    if git_id is not None and not _GIT_ID.fullmatch(git_id):
        raise ValueError("a git id that is none")
    return RepositoryFile(
        path=path, num_bytes=num_bytes, blob=sha256 or git_id or "", sha256=sha256, git_id=git_id
    )


def download(
    repository: Repository, file: RepositoryFile, partial: Path, report: Report = lambda _: None
) -> None:
    """Fetch one file's bytes into `partial`, going on behind what is there already.

    A connection that breaks is taken up where it broke, as often as it brings new bytes. What is
    there after a failure stays there, for the next call. The bytes are not judged here.

    Args:
        repository: from `open_repository`.
        file: one of its files.
        partial: where to; a file longer than the whole is begun anew.
        report: may raise, to stop.

    Raises:
        DownloadError: naming the file: no permission, not there, no connection, or the server
            sends another number of bytes than it listed.
    """
    from huggingface_hub import hf_hub_url

    address = hf_hub_url(
        repository.name, file.path, revision=repository.commit, endpoint=repository.endpoint
    )
    place = f"{file.path} of {repository.name}"
    if partial.is_symlink() or (partial.exists() and partial.stat().st_size > file.num_bytes):
        partial.unlink()
    partial.touch()
    report(partial.stat().st_size)
    attempts, pause = ATTEMPTS, _FIRST_PAUSE
    while True:
        before = partial.stat().st_size
        try:
            with _Quiet(), _explained(place, f"commit {repository.commit[:12]}"):
                _transfer(address, file, partial, report)
            return
        except _TryAgain as again:
            if partial.stat().st_size > before:
                attempts, pause = ATTEMPTS, _FIRST_PAUSE
            attempts -= 1
            if attempts == 0:
                raise again.error from again.__cause__
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _transfer(address: str, file: RepositoryFile, partial: Path, report: Report) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    class Bar:
        """Stands where the client wants a progress bar; stops a server that sends too much."""

        def __init__(self, *, initial: int = 0, **_: object) -> None:
            self.received = initial

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, number: int) -> None:
            self.received += number
            report(number)
            if self.received > file.num_bytes:
                raise DownloadError(
                    f"{file.path}: the server sends more than the {file.num_bytes:,} bytes that "
                    "it listed"
                )

    with partial.open("r+b") as opened:
        opened.seek(0, os.SEEK_END)
        http_get(
            address,
            opened,
            resume_size=opened.tell(),
            headers=build_hf_headers(),
            expected_size=file.num_bytes,
            displayed_filename=file.path,
            tqdm_class=Bar,  # pyright: ignore[reportArgumentType]
        )


class _TryAgain(Exception):
    """A failure that may pass; `error` is what to say when it does not."""

    def __init__(self, error: DownloadError) -> None:
        super().__init__()
        self.error = error


@contextlib.contextmanager
def _given_up() -> Generator[None]:
    """For what is not tried again here, since the client did."""
    try:
        yield
    except _TryAgain as again:
        raise again.error from again.__cause__


class _Quiet:
    """Without the client's own warnings: they print addresses, which may be signed.

    Threads enter and leave in any order, so the level is that of the first and the last.
    """

    _lock, _depth, _level = threading.Lock(), 0, logging.NOTSET

    def __enter__(self) -> None:
        with _Quiet._lock:
            logger = logging.getLogger("huggingface_hub")
            if _Quiet._depth == 0:
                _Quiet._level = logger.level
                logger.setLevel(logging.CRITICAL)
            _Quiet._depth += 1

    def __exit__(self, *_: object) -> None:
        with _Quiet._lock:
            _Quiet._depth -= 1
            if _Quiet._depth == 0:
                logging.getLogger("huggingface_hub").setLevel(_Quiet._level)


@contextlib.contextmanager
def _explained(place: str, revision: str) -> Generator[None]:
    """What goes wrong with a server, in our own words."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{place}: its owner gives it only to those who accept its terms",
            "accept them on its page, then set HF_TOKEN to a token of that account",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(
            f"{place}: has no {revision}", "it was changed or removed; try another mirror"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{place}: HF_HUB_OFFLINE forbids to ask", "unset it, or use --offline"
        ) from error
    except errors.HfHubHTTPError as error:
        _explain_status(place, error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DownloadError(
                f"{place}: cannot be stored ({error.strerror})", "choose another place"
            ) from error
        if "Consistency check failed" in str(error):
            raise DownloadError(
                f"{place}: the server sent another number of bytes than it listed",
                "try again, or another mirror or endpoint",
            ) from error
        raise _nonsense(place) from error
    except Exception as error:
        # The client's transport library is called httpx or httpx2, by version.
        if not type(error).__module__.startswith("httpx"):
            raise
        raise _TryAgain(_unreachable(place, type(error).__name__)) from error


def _explain_status(place: str, error: Any) -> NoReturn:
    """An answer that is an error: what it means, and whether to ask again."""
    status = int(error.response.status_code)
    told = DownloadError(f"{place}: the server answers with error {status}", "try again later")
    if status == 401:
        told = DownloadError(
            f"{place}: is not there, or not for everybody (401)",
            "where it is private, set HF_TOKEN; `petzval pull` lists other mirrors",
        )
    elif status == 403:
        told = DownloadError(
            f"{place}: access is forbidden (403)", "HF_TOKEN must be of an account that may read it"
        )
    elif status == 404:
        told = DownloadError(f"{place}: is not there (404)", "`petzval pull` lists other mirrors")
    elif status == 429:
        told = DownloadError(
            f"{place}: the server wants fewer requests (429)",
            "wait a few minutes; with HF_TOKEN set it allows more",
        )
    elif status >= 500:
        raise _TryAgain(told) from error
    raise told from error


def _unreachable(place: str, kind: str) -> DownloadError:
    if "Proxy" in kind:
        return DownloadError(
            f"{place}: the proxy cannot be used ({kind})", "see HTTPS_PROXY and NO_PROXY"
        )
    return DownloadError(
        f"{place}: no connection, or it broke off ({kind})",
        "try again, what has arrived is kept; HF_ENDPOINT names another server, "
        "HTTPS_PROXY a proxy, and --offline uses what is here",
    )


def _nonsense(place: str) -> DownloadError:
    return DownloadError(
        f"{place}: the answer is none that a hub gives", "see --endpoint and HF_ENDPOINT"
    )
