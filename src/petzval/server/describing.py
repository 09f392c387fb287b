"""Jobs and pictures as the API tells of them."""

from __future__ import annotations

from petzval.inference.task import HIGH, LOW, NORMAL
from petzval.server.schemas import ErrorDetail, Job, Picture, Progress
from petzval.server.tables import JobRow, PictureRow

PRIORITIES = {"low": LOW, "normal": NORMAL, "high": HIGH}
_PRIORITY_NAMES = {value: name for name, value in PRIORITIES.items()}


def describe_job(row: JobRow, position: int | None, progress: Progress | None) -> Job:
    """A job.

    Args:
        row: of it, with its pictures.
        position: in the queue, from 1; None where it is not waiting.
        progress: of the picture that is being drawn.
    """
    return Job.model_validate(
        {
            "id": row.id,
            "status": row.status,
            "priority": _PRIORITY_NAMES[row.priority],
            "position": position if row.status == "queued" else None,
            "created": row.created,
            "started": row.started,
            "finished": row.finished,
            "request": row.request,
            "progress": progress,
            "images": tuple(describe_picture(picture) for picture in row.pictures),
            "error": None if row.error is None else ErrorDetail(**row.error),
        }
    )


def describe_picture(row: PictureRow) -> Picture:
    """A picture, with where its files are."""
    path = f"/v1/pictures/{row.id}"
    return Picture(
        id=row.id,
        job=row.job,
        index=row.index,
        created=row.created,
        width=row.width,
        height=row.height,
        seed=row.seed,
        prompt=row.prompt,
        negative_prompt=row.negative_prompt,
        model=row.model,
        steps=row.steps,
        guidance=row.guidance,
        favourite=row.favourite,
        deleted=row.deleted is not None,
        url=f"{path}/file",
        thumbnail_url=f"{path}/thumbnail",
        recipe=row.recipe,
    )
