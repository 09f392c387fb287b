"""Latents of a folder's pictures: encoded once, then dealt in epochs as a function of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from petzval.models.vae import Autoencoder
from petzval.pretrain.captioned_folder import CaptionedPicture, load_pixels, nearest_preset
from petzval.pretrain.latent_tokens import encode_pictures, read_tokens, write_tokens
from petzval.pretrain.scenes import to_tensor
from petzval.resolution import PRESETS

Grid = tuple[int, int]


class FolderPool:
    """The pictures of a folder as clean tokens, sorted into buckets by aspect ratio.

    Every picture is used once an epoch; a bucket's last batch is filled up with its pictures again,
    so that all batches of a bucket are of one size.

    Args:
        samples: bucket → tokens [S, C] and caption of each picture.
        batch_tokens: image tokens a step, as in `DenoiserConfig`.
        seed: of the order.
    """

    def __init__(
        self,
        samples: dict[Grid, list[tuple[Tensor, str]]],
        *,
        batch_tokens: int,
        seed: int,
    ) -> None:
        self._samples = samples
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._epoch = -1
        self._batches: list[tuple[Grid, list[int]]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Batches it takes to use every picture."""
        return sum(-(-len(each) // self._size(grid)) for grid, each in self._samples.items())

    def draw_bucket(self, step: int, base: int, rng: np.random.Generator) -> Grid:
        """The bucket of this step; epoch and order decide it, so the arguments do not."""
        del base, rng
        return self._batch(step)[0]

    def draw(
        self, step: int, grid: Grid, count: int, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, str]]:
        """The pictures of this step."""
        del rng
        bucket, places = self._batch(step)
        assert bucket == grid and count == len(places)
        for place in places:
            yield self._samples[grid][place]

    def _size(self, grid: Grid) -> int:
        return max(1, self._batch_tokens // (grid[0] * grid[1]))

    def _batch(self, step: int) -> tuple[Grid, list[int]]:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._deal(epoch), epoch
        return self._batches[position]

    def _deal(self, epoch: int) -> list[tuple[Grid, list[int]]]:
        """All batches of an epoch, in its order."""
        rng = np.random.default_rng((self._seed, epoch, 3))
        batches: list[tuple[Grid, list[int]]] = []
        for grid, samples in self._samples.items():
            size = self._size(grid)
            order = [int(place) for place in rng.permutation(len(samples))]
            for first in range(0, len(order), size):
                batch = order[first : first + size]
                filled = [order[(first + i) % len(order)] for i in range(len(batch), size)]
                batches.append((grid, batch + filled))
        return [batches[place] for place in rng.permutation(len(batches))]


def encode_folder(
    pictures: Sequence[CaptionedPicture],
    autoencoder: Autoencoder,
    *,
    base: int,
    cache: Path,
    autoencoder_id: str,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[Grid, list[tuple[Tensor, str]]]:
    """Tokens and captions by bucket; what the cache holds is not encoded again.

    Args:
        base: family of presets.
        cache: folder of one small file a picture, named by content, size and autoencoder.
        autoencoder_id: names its weights.
        advance: called with the number of pictures that are done.

    Raises:
        DataError: a picture cannot be decoded any more.
    """
    cache.mkdir(parents=True, exist_ok=True)
    samples: dict[Grid, list[tuple[Tensor, str]]] = {}
    for number, picture in enumerate(pictures, start=1):
        size = nearest_preset(picture.height, picture.width, base)
        name = hashlib.sha256(f"{picture.sha256} {size} {autoencoder_id}".encode()).hexdigest()
        file = cache / f"{name}.safetensors"
        tokens = read_tokens(file, size.num_tokens)
        if tokens is None:
            tokens = encode(autoencoder, to_tensor(load_pixels(picture, size)))
            write_tokens(file, tokens)
        samples.setdefault(size.grid, []).append((tokens, picture.caption))
        advance(number)
    return samples


def encode(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """One picture [3, H, W] in [-1, 1] → normalised tokens [S, C], float32 on the CPU."""
    return encode_pictures(autoencoder, image[None])[0].cpu()


def batch_tokens(batch_size: int, base: int) -> int:
    """Image tokens a step, so that every bucket of a family has at least this many pictures."""
    return batch_size * max(size.num_tokens for size in PRESETS[base].values())
