"""Pictures on disk, each under the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from petzval.errors import DataError
from petzval.inference.image import write_atomically
from petzval.scoring.scorer import Picture


def key_of(dependencies: Mapping[str, Any]) -> str:
    """A hash of JSON values, whatever their order."""
    text = json.dumps(dependencies, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class PictureStore:
    """A folder of PNG files named by their key. Writing is atomic: a file is whole or absent.

    Args:
        folder: made when the first picture comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the picture of `key` is or would be."""
        return self.folder / key[:2] / f"{key}.png"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def put(self, key: str, png: bytes) -> None:
        """Keep the bytes of a PNG file.

        Raises:
            RequestError: the folder cannot be written.
        """
        write_atomically(self.path(key), png)

    def get(self, key: str) -> Picture:
        """The picture as RGB [height, width, 3].

        Raises:
            DataError: it is missing or damaged.
        """
        path = self.path(key)
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise DataError(
                f"cannot read the stored picture {path}: {error}", "delete it and run again"
            ) from error


def png_bytes(picture: Picture) -> bytes:
    """A PNG file of a picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
