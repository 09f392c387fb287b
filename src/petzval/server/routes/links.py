"""`/v1/links`: pictures by a signed link, without a key."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from petzval.server.errors import not_found
from petzval.server.state import TheStudio

router = APIRouter(prefix="/v1/links", tags=["pictures"])


@router.get("/{id}", response_class=Response)
def linked_picture(
    id: str,
    studio: TheStudio,
    end: Annotated[int, Query(ge=0, le=2**40)],
    signature: Annotated[str, Query(pattern="^[0-9a-f]{64}$")],
    format: Literal["png", "jpeg", "webp"] = "png",
) -> Response:
    """A picture, as the Images API linked to it within the last hour."""
    studio.links.check(id, format, end, signature)
    row = studio.store.picture(id)
    if row is None or row.deleted is not None:
        raise not_found("picture")
    return Response(studio.jobs.file_of(row, format), media_type=f"image/{format}")
