"""The tables of the database, and how it is opened: SQLite with a write-ahead log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.event import listen
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from petzval.errors import ServerError

SCHEMA = 1
"""Kept in the database; one that a newer version wrote is refused."""


class Base(DeclarativeBase):
    """What all tables share."""


class JobRow(Base):
    """A job, from its acceptance on.

    Attributes:
        owner: the key's id, or "local" where none are needed.
        user: whom the owner asks for, in its own words.
        request: as asked, with its seed and model decided; JSON.
        fingerprint: hash of the request as it came, for the idempotency key.
        source: "jobs" or "openai".
        images: that it asks for.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("owner", "idempotency_key"),
        sa.Index("jobs_of_owner", "owner", "created"),
        sa.Index("jobs_by_status", "status"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    user: Mapped[str]
    status: Mapped[str]
    priority: Mapped[int]
    source: Mapped[str]
    images: Mapped[int]
    created: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    pictures: Mapped[list[PictureRow]] = relationship(
        lazy="selectin", order_by="PictureRow.index", viewonly=True
    )


class PictureRow(Base):
    """A finished picture; its file is `<id>.png` in the folder of pictures.

    Attributes:
        index: place in its job.
        deleted: when it was marked; it is gone a day later.
    """

    __tablename__ = "pictures"
    __table_args__ = (
        sa.UniqueConstraint("job", "index"),
        sa.Index("pictures_of_owner", "owner", "created", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"))
    owner: Mapped[str]
    index: Mapped[int]
    created: Mapped[float]
    width: Mapped[int]
    height: Mapped[int]
    seed: Mapped[int]
    prompt: Mapped[str]
    negative_prompt: Mapped[str]
    model: Mapped[str]
    steps: Mapped[int]
    guidance: Mapped[float]
    favourite: Mapped[bool] = mapped_column(default=False)
    deleted: Mapped[float | None]
    recipe: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class KeyRow(Base):
    """An API key; of its secret only a hash is kept."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    sha256: Mapped[str]
    created: Mapped[float]
    revoked: Mapped[float | None]
    limits: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


def open_database(path: Path) -> sa.Engine:
    """Open the database, or make it.

    Every commit is on the disk before it returns (`synchronous = FULL`).

    Raises:
        ServerError: it cannot be opened, is no database, or a newer version wrote it.
    """
    url = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(url, pool_size=8, max_overflow=64, connect_args={"timeout": 30})
    listen(engine, "connect", _configure)
    try:
        with engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version > SCHEMA:
                raise ServerError(
                    f"{path} has schema {version}, this version reads {SCHEMA}",
                    "install a newer petzval",
                )
            Base.metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
    except DatabaseError as error:
        raise ServerError(
            f"{path} cannot be used as a database: {error.orig}",
            "name another folder with --data",
        ) from error
    return engine


def _configure(connection: Any, record: object) -> None:
    del record
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
