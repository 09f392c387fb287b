"""Package archives with made-up contents, as npm would have left them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petzval.data.packages import package


def write_archive(cache: Path, name: str, files: Mapping[str, Any]) -> None:
    """Pack `files` as a package's archive: bytes as they are, anything else as JSON."""
    with tarfile.open(cache / package(name).archive, "w:gz") as archive:
        for path, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def icon_set(*names: str) -> dict[str, Any]:
    """An Iconify set whose icons are all the same square."""
    body = '<path fill="currentColor" d="M0 0h16v16H0z"/>'
    return {"width": 16, "height": 16, "icons": {name: {"body": body} for name in names}}
