"""Jobs and pictures as they are kept: rows in SQLite, and files beside it."""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from petzval.errors import ServerError
from petzval.inference.image import write_atomically
from petzval.inference.recipe import Recipe
from petzval.server.errors import ApiError
from petzval.server.tables import JobRow, PictureRow, open_database

UNFINISHED = ("queued", "running")
_THUMBNAIL, _PICTURE = ".webp", ".png"


class Store:
    """What must survive the process. Its methods block, and may be called from any thread.

    Args:
        folder: made where it is missing; holds `jobs.sqlite` and `pictures/`.

    Raises:
        ServerError: the folder or its database cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures_folder = folder / "pictures"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # prompts are nobody else's
            self.pictures_folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ServerError(
                f"{folder} cannot be used: {error.strerror}", "name another folder with --data"
            ) from error
        self.engine = open_database(folder / "jobs.sqlite")
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = threading.Lock()  # SQLite takes one writer at a time

    def close(self) -> None:
        """Close the database."""
        self.engine.dispose()

    def write(self) -> _Writing:
        """A session that is committed at the end of its block, with no other writer meanwhile."""
        return _Writing(self._session, self._writing)

    def read(self) -> Session:
        """A session that is not committed."""
        return self._session()

    def add_job(self, job: JobRow) -> JobRow:
        """Keep a job; when this returns, it is on the disk."""
        with self.write() as session:
            session.add(job)
        return job

    def job(self, id: str, owner: str | None = None) -> JobRow | None:
        """A job, of that owner where one is given, with its pictures."""
        with self.read() as session:
            row = session.get(JobRow, id)
        return row if row is not None and owner in (None, row.owner) else None

    def job_by_idempotency_key(self, owner: str, key: str) -> JobRow | None:
        """The job that was accepted under a key before."""
        wanted = sa.select(JobRow).filter_by(owner=owner, idempotency_key=key)
        with self.read() as session:
            return session.scalars(wanted).one_or_none()

    def jobs(
        self, owner: str, *, statuses: Sequence[str], limit: int, before: str | None
    ) -> list[JobRow]:
        """Jobs of an owner, newest first.

        Args:
            before: id of a job; those that are older than it.
        """
        query = sa.select(JobRow).filter_by(owner=owner)
        if statuses:
            query = query.where(JobRow.status.in_(statuses))
        last = None if before is None else self.job(before, owner)
        if last is not None:
            query = query.where(_older(JobRow.created, JobRow.id, last.created, last.id))
        query = query.order_by(JobRow.created.desc(), JobRow.id.desc()).limit(limit)
        with self.read() as session:
            return list(session.scalars(query))

    def unfinished(self) -> list[JobRow]:
        """Jobs that were accepted and have no end yet, oldest first."""
        query = sa.select(JobRow).where(JobRow.status.in_(UNFINISHED)).order_by(JobRow.created)
        with self.read() as session:
            return list(session.scalars(query))

    def set_job(self, id: str, **values: object) -> bool:
        """Change columns of a job that has no end yet; False where it has one."""
        change = (
            sa.update(JobRow).where(JobRow.id == id, JobRow.status.in_(UNFINISHED)).values(**values)
        )
        with self.write() as session:
            result: Any = session.execute(change)
            return result.rowcount > 0

    def add_picture(
        self, job: JobRow, index: int, recipe: Recipe, picture: bytes, thumbnail: bytes
    ) -> PictureRow:
        """Keep a finished picture: its files first, whole, then the row that tells of them.

        Raises:
            RequestError: the files cannot be written.
        """
        id = new_id("pic")
        write_atomically(self.file(id), picture, durable=True)
        write_atomically(self.thumbnail(id), thumbnail)
        row = PictureRow(
            id=id,
            job=job.id,
            owner=job.owner,
            index=index,
            created=time.time(),
            width=recipe.width,
            height=recipe.height,
            seed=recipe.seed,
            prompt=recipe.prompt,
            negative_prompt=recipe.negative_prompt,
            model=recipe.model,
            steps=recipe.steps,
            guidance=recipe.guidance,
            favourite=False,
            deleted=None,
            recipe=recipe.to_mapping(),
        )
        with self.write() as session:
            session.add(row)
        return row

    def picture(self, id: str, owner: str | None = None) -> PictureRow | None:
        """A picture, of that owner where one is given, marked as deleted or not."""
        with self.read() as session:
            row = session.get(PictureRow, id)
        return row if row is not None and owner in (None, row.owner) else None

    def pictures(
        self,
        owner: str,
        *,
        words: str = "",
        favourite: bool | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[PictureRow], str | None]:
        """The gallery of an owner, newest first.

        Args:
            words: each must be in the prompt.
            cursor: where the page before ended.

        Returns:
            A page, and the cursor of the next one.

        Raises:
            ApiError: the cursor is none of ours.
        """
        query = sa.select(PictureRow).where(PictureRow.owner == owner, PictureRow.deleted.is_(None))
        for word in words.split():
            query = query.where(PictureRow.prompt.icontains(word, autoescape=True))
        if favourite is not None:
            query = query.where(PictureRow.favourite.is_(favourite))
        if cursor is not None:
            query = query.where(_older(PictureRow.created, PictureRow.id, *_place(cursor)))
        query = query.order_by(PictureRow.created.desc(), PictureRow.id.desc()).limit(limit + 1)
        with self.read() as session:
            rows = list(session.scalars(query))
        more = len(rows) > limit
        rows = rows[:limit]
        return rows, _cursor(rows[-1]) if more else None

    def set_picture(self, id: str, **values: object) -> None:
        """Change columns of a picture."""
        with self.write() as session:
            session.execute(sa.update(PictureRow).where(PictureRow.id == id).values(**values))

    def remove_deleted(self, older_than: float) -> int:
        """Remove the pictures that were marked before a time, rows first, then files."""
        old = PictureRow.deleted < older_than
        with self.write() as session:
            ids = list(session.scalars(sa.select(PictureRow.id).where(old)))
            session.execute(sa.delete(PictureRow).where(old))
        self._unlink(ids)
        return len(ids)

    def remove_orphans(self) -> int:
        """Remove files that no row tells of, and halves of files: a killed server left them."""
        with self.read() as session:
            known = set(session.scalars(sa.select(PictureRow.id)))
        paths = [path for path in self.pictures_folder.iterdir() if path.stem not in known]
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def file(self, id: str) -> Path:
        """Where a picture's file is; `id` comes from the database, never from a request."""
        return self.pictures_folder / f"{id}{_PICTURE}"

    def thumbnail(self, id: str) -> Path:
        """Where its thumbnail is."""
        return self.pictures_folder / f"{id}{_THUMBNAIL}"

    def _unlink(self, ids: Sequence[str]) -> None:
        for id in ids:
            self.file(id).unlink(missing_ok=True)
            self.thumbnail(id).unlink(missing_ok=True)


class _Writing:
    def __init__(self, session: sessionmaker[Session], lock: threading.Lock) -> None:
        self._begin = session
        self._lock = lock

    def __enter__(self) -> Session:
        self._lock.acquire()
        self._session = self._begin()
        return self._session

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with self._session:
                if kind is None:
                    self._session.commit()
        finally:
            self._lock.release()


def new_id(prefix: str) -> str:
    """An id that nobody can guess, and that sorts by nothing."""
    return f"{prefix}_{secrets.token_hex(12)}"


def _older(created: Any, id: Any, than: float, than_id: str) -> sa.ColumnElement[bool]:
    return sa.or_(created < than, sa.and_(created == than, id < than_id))


def _cursor(row: PictureRow) -> str:
    return base64.urlsafe_b64encode(f"{row.created!r} {row.id}".encode()).decode()


def _place(cursor: str) -> tuple[float, str]:
    try:
        created, id = base64.b64decode(cursor.encode(), b"-_", validate=True).decode().split(" ")
        return float(created), id
    except (ValueError, binascii.Error):
        raise ApiError(
            400, "the cursor is none of this server's", param="cursor", code="invalid_value"
        ) from None
