"""Paths that a person typed: homes filled in, and what is there."""

from __future__ import annotations

from pathlib import Path

from petzval.errors import RequestError


def user_path(text: str | Path) -> Path:
    """The path with `~` filled in.

    Raises:
        RequestError: it begins with the home of a user who is not known here.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise RequestError(
            f"{str(text)[:200]!r} begins with the home of a user who is not known here",
            "write the path in full, or put ./ before a name that begins with ~",
        ) from None


def mode(path: Path) -> int | None:
    """What is at a path, as `os.stat` tells it; None where nothing is.

    Raises:
        OSError: the system cannot even look: the name is too long, a folder is closed to us.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
