"""`/v1/pictures`: the gallery."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from petzval.server.describing import describe_picture
from petzval.server.errors import not_found
from petzval.server.keys import Caller
from petzval.server.schemas import Picture, PictureChange, PicturePage
from petzval.server.state import Studio, TheCaller, TheStudio
from petzval.server.strict_json import StrictRoute
from petzval.server.tables import PictureRow

router = APIRouter(prefix="/v1/pictures", tags=["pictures"], route_class=StrictRoute)

_KEEP = {"Cache-Control": "private, max-age=31536000, immutable"}


@router.get("")
def list_pictures(
    studio: TheStudio,
    caller: TheCaller,
    q: Annotated[str, Query(max_length=500)] = "",
    favourite: bool | None = None,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> PicturePage:
    """The caller's pictures, newest first; `q` are words of their prompts."""
    rows, following = studio.store.pictures(
        caller.owner, words=q, favourite=favourite, cursor=cursor, limit=limit
    )
    return PicturePage(data=tuple(describe_picture(row) for row in rows), next_cursor=following)


@router.get("/{id}")
def get_picture(id: str, studio: TheStudio, caller: TheCaller) -> Picture:
    """One picture's facts."""
    return describe_picture(_find(id, studio, caller))


@router.get("/{id}/file", response_class=FileResponse)
def picture_file(id: str, studio: TheStudio, caller: TheCaller) -> FileResponse:
    """The picture as PNG, its recipe inside."""
    row = _find(id, studio, caller)
    return FileResponse(
        studio.store.file(row.id),
        media_type="image/png",
        filename=f"{row.id}.png",
        content_disposition_type="inline",
        headers=_KEEP,
    )


@router.get("/{id}/thumbnail", response_class=FileResponse)
def picture_thumbnail(id: str, studio: TheStudio, caller: TheCaller) -> FileResponse:
    """The picture as WebP, 256 pixels at most."""
    row = _find(id, studio, caller)
    path = studio.store.thumbnail(row.id)
    return FileResponse(path, media_type="image/webp", headers=_KEEP)


@router.patch("/{id}")
def change_picture(id: str, body: PictureChange, studio: TheStudio, caller: TheCaller) -> Picture:
    """Make a picture a favourite, or no favourite any more."""
    row = _find(id, studio, caller)
    if body.favourite is not None:
        studio.store.set_picture(row.id, favourite=body.favourite)
    return describe_picture(_find(id, studio, caller))


@router.delete("/{id}", status_code=204)
def delete_picture(id: str, studio: TheStudio, caller: TheCaller) -> Response:
    """Take a picture out of the gallery. It can be restored for a day."""
    row = _find(id, studio, caller)
    studio.store.set_picture(row.id, deleted=time.time())
    return Response(status_code=204)


@router.post("/{id}/restore")
def restore_picture(id: str, studio: TheStudio, caller: TheCaller) -> Picture:
    """Put a deleted picture back."""
    row = _find(id, studio, caller, deleted_too=True)
    studio.store.set_picture(row.id, deleted=None)
    return describe_picture(_find(id, studio, caller))


def _find(id: str, studio: Studio, caller: Caller, *, deleted_too: bool = False) -> PictureRow:
    row = studio.store.picture(id, caller.owner)
    if row is None or (row.deleted is not None and not deleted_too):
        raise not_found("picture")
    return row
