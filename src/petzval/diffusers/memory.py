"""Decoding with less memory, by diffusers' names; and dtypes that would spoil pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from petzval.diffusers.arguments import checked_dtype
from petzval.diffusers.networks import LensAutoencoder
from petzval.models.strips import DEFAULT_ROWS


class DecodingMethods:
    """How a pipeline's autoencoder decodes."""

    vae: LensAutoencoder

    def enable_vae_tiling(self) -> None:
        """Decode in strips of rows under the whole picture's statistics: less memory, no seams.

        The picture is the same up to rounding, so that nothing overlaps or is blended.
        """
        self.vae.strip_rows = DEFAULT_ROWS

    def disable_vae_tiling(self) -> None:
        """Decode each picture at once again."""
        self.vae.strip_rows = 0

    def enable_vae_slicing(self) -> None:
        """Decode the pictures of a batch one after the other."""
        self.vae.one_by_one = True

    def disable_vae_slicing(self) -> None:
        """Decode the pictures of a batch together again."""
        self.vae.one_by_one = False


def refuse_dtypes(arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Hold what `to` is given against what `from_pretrained` takes.

    Raises:
        RequestError: a dtype that cannot hold the model, such as float16.
    """
    for each in (*arguments, *named.values()):
        if isinstance(each, torch.dtype):
            checked_dtype(each)
