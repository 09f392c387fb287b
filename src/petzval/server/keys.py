"""API keys: made once, shown once, kept as a hash, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from petzval.config import from_mapping, to_mapping
from petzval.errors import ServerError
from petzval.server.errors import ApiError
from petzval.server.settings import Limits, ServerSettings
from petzval.server.store import Store
from petzval.server.tables import KeyRow

_FORM = re.compile(r"pz-([0-9a-f]{12})-([0-9A-Za-z_-]{43})")
_NOBODY = hashlib.sha256(b"").hexdigest()
LOCAL = "local"
"""The owner of what is asked where no keys are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: a key, or anybody on this machine.

    Attributes:
        owner: whose jobs and pictures these are.
        limits: what it may ask for.
    """

    owner: str
    limits: Limits


class Keys:
    """The keys of a server."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, name: str, limits: Limits | None = None) -> str:
        """Make a key.

        Args:
            name: for the list, so that one knows whose it is.
            limits: its own; None for the server's.

        Returns:
            The key. It is not kept and cannot be shown again.
        """
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        row = KeyRow(
            id=id,
            name=name,
            sha256=_hash(secret),
            created=time.time(),
            revoked=None,
            limits={} if limits is None else to_mapping(limits),
        )
        with self._store.write() as session:
            session.add(row)
        return f"pz-{id}-{secret}"

    def rows(self) -> list[KeyRow]:
        """All keys, oldest first."""
        with self._store.read() as session:
            return list(session.scalars(sa.select(KeyRow).order_by(KeyRow.created)))

    def revoke(self, id: str) -> None:
        """Refuse a key from now on.

        Raises:
            ServerError: there is no such key.
        """
        change = sa.update(KeyRow).where(KeyRow.id == id).values(revoked=time.time())
        with self._store.write() as session:
            found: Any = session.execute(change)
        if found.rowcount == 0:
            raise ServerError(
                f"there is no key {id[:40]!r}", "`petzval serve keys list` shows them"
            )

    def caller(self, authorization: str | None, settings: ServerSettings) -> Caller:
        """Who sends this `Authorization` header.

        Raises:
            ApiError: 401: the key is absent, forged or revoked. The answer is the same for all.
        """
        if not settings.needs_keys:
            return Caller(owner=LOCAL, limits=settings.limits)
        kind, _, text = (authorization or "").partition(" ")
        match = _FORM.fullmatch(text.strip()) if kind.lower() == "bearer" else None
        row = None
        if match is not None:
            with self._store.read() as session:
                row = session.get(KeyRow, match[1])
        expected = _NOBODY if row is None else row.sha256
        given = _hash("" if match is None else match[2])
        if not hmac.compare_digest(expected, given) or row is None or row.revoked is not None:
            raise ApiError(
                401,
                "give a valid API key in the header Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
            )
        limits = from_mapping(Limits, row.limits, where=f"key {row.id}") if row.limits else None
        return Caller(owner=row.id, limits=limits or settings.limits)


def _hash(secret: str) -> str:
    """A plain hash is enough: the secret has 256 random bits, nobody can try them."""
    return hashlib.sha256(secret.encode()).hexdigest()
