"""The page: the files of `server/page`, read once; a request picks one by its name in a table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Response

from petzval.server.errors import not_found

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent.parent / "page"
_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".webmanifest": "application/manifest+json",
}


@cache
def files() -> Mapping[str, tuple[bytes, str]]:
    """Name below `page/` → content and its type."""
    return {
        path.relative_to(FOLDER).as_posix(): (path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }


@router.get("/")
def index() -> Response:
    """The studio."""
    return _answer("index.html")


@router.get("/static/{name:path}")
def static(name: str) -> Response:
    """A file that the page needs."""
    return _answer(name)


def _answer(name: str) -> Response:
    if name not in files():
        raise not_found("file")
    content, kind = files()[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
