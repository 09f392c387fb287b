"""Signed provenance inside pictures: who made them, and that a model did (C2PA credentials).

Signing needs a certificate of one's own with its key; C2PA says which certificates other programs
trust (https://c2pa.org/specifications/). What is claimed is no more than the act: created by a
trained algorithm, with this program. The prompt is in the recipe and not in the claim.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import petzval
from petzval.errors import MissingExtraError, ServerError
from petzval.server.formats import Format

_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_WITHOUT_THUMBNAIL = {"builder": {"thumbnail": {"enabled": False}}}
ALGORITHMS = ("es256", "es384", "ps256", "ed25519")
"""Of signatures, by the kind of key: P-256, P-384, RSA, Ed25519."""


class Provenance:
    """Signs pictures with one certificate.

    Args:
        certificate: PEM, the chain from one's own certificate upwards.
        key: PEM (PKCS #8) without a password.
        algorithm: one of `ALGORITHMS`.

    Raises:
        MissingExtraError: c2pa-python is not installed.
        ServerError: a file cannot be read, or the pair cannot sign.
    """

    def __init__(self, certificate: Path, key: Path, *, algorithm: str = "es256") -> None:
        try:
            import c2pa
        except ImportError:
            raise MissingExtraError("c2pa-python", "provenance") from None
        self._library: Any = c2pa
        if algorithm not in ALGORITHMS:
            raise ServerError(
                f"unknown algorithm {algorithm[:40]!r}", f"known are {', '.join(ALGORITHMS)}"
            )
        try:
            chain, secret = certificate.read_bytes(), key.read_bytes()
        except OSError as error:
            raise ServerError(f"{error.filename} cannot be read: {error.strerror}") from error
        info = self._library.C2paSignerInfo(algorithm.encode(), chain, secret, None)
        try:
            self._signer: Any = self._library.Signer.from_info(info)
            self._context: Any = self._library.Context.from_dict(_WITHOUT_THUMBNAIL)
            self.sign(_specimen(), "png")
        except self._library.C2paError as error:
            raise ServerError(
                f"pictures cannot be signed with {certificate}: {error}",
                "C2PA wants a certificate for signing, issued by another one, and its own key",
            ) from error

    def sign(self, picture: bytes, format: Format) -> bytes:
        """The same picture with a manifest inside; its recipe and its pixels stay."""
        manifest = json.dumps(
            {
                "claim_generator_info": [{"name": "petzval", "version": petzval.__version__}],
                "format": f"image/{format}",
                "assertions": [
                    {
                        "label": "c2pa.actions.v2",
                        "data": {
                            "actions": [{"action": "c2pa.created", "digitalSourceType": _SOURCE}]
                        },
                    }
                ],
            }
        )
        signed = io.BytesIO()
        with self._library.Builder(manifest, context=self._context) as builder:
            builder.sign(self._signer, f"image/{format}", io.BytesIO(picture), signed)
        return signed.getvalue()


def _specimen() -> bytes:
    """A picture to try a certificate on, before anybody waits for one."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()
