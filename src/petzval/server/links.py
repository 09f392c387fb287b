"""Links to pictures that open without a key, for an hour: the Images API answers with them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path

from petzval.errors import ServerError
from petzval.inference.image import write_atomically
from petzval.server.errors import not_found
from petzval.server.formats import Format

VALID_SECONDS = 3600


class Links:
    """Signs links, and knows its own again after a restart.

    Args:
        folder: of the server; its file `secret` is made where it is missing.

    Raises:
        ServerError: the file is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "secret"
        if not path.exists():
            write_atomically(path, secrets.token_bytes(32))
            path.chmod(0o600)
        self._secret = path.read_bytes()
        if len(self._secret) != 32:
            raise ServerError(f"{path} is damaged", "remove it: links given out before end then")

    def signed(self, picture: str, format: Format = "png") -> str:
        """The path of a link, with an end and a signature."""
        end = int(time.time()) + VALID_SECONDS
        signature = self._signature(picture, format, end)
        return f"/v1/links/{picture}?format={format}&end={end}&signature={signature}"

    def check(self, picture: str, format: Format, end: int, signature: str) -> None:
        """Refuse a link that is forged, changed or too old.

        Raises:
            ApiError: 404, whatever is wrong.
        """
        expected = self._signature(picture, format, end)
        is_ours = hmac.compare_digest(expected.encode(), signature.encode())
        if not is_ours or end < time.time():
            raise not_found("picture")

    def _signature(self, picture: str, format: str, end: int) -> str:
        message = f"{picture} {format} {end}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
