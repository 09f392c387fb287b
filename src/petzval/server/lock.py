"""One server for each folder: two would draw the same jobs, and remove each other's files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from petzval.errors import ServerError


class FolderLock:
    """Held until it is released, or until its process ends, however that happens.

    A transaction that is never committed is the one lock that SQLite gives on every system.

    Raises:
        ServerError: another server has the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(
            folder / "lock", timeout=0.5, isolation_level=None, check_same_thread=False
        )
        try:
            self._database.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error:
            self._database.close()
            raise ServerError(
                f"another server uses {folder}", "stop it, or name another folder with --data"
            ) from None

    def release(self) -> None:
        """Let another server have the folder."""
        self._database.close()
