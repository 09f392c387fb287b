"""Latents of rendered scenes in shards: made once, in any order, while training already runs.

A shard is one safetensors file of one bucket and a range of scene indices:

    latents     float16 [N, S, C] normalised tokens
    captions    uint8, all captions in UTF-8, one after another
    offsets     int64 [N * V + 1] into `captions`; V captions a scene
    plain       bool [N], scenes of one large thing that everybody knows

Its header says which scenes, which size and which autoencoder. A shard appears under its name only
when it is whole. Indices are dealt to the buckets of a family in turn, so that every prefix of the
work holds all aspect ratios.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from petzval.errors import TrainingError
from petzval.models.latents import normalise, patchify
from petzval.models.vae import Autoencoder
from petzval.pretrain.scenes import SceneSource, to_tensor
from petzval.resolution import PRESETS, Resolution
from petzval.training.metrics import read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """What to encode.

    Attributes:
        base: family of presets.
        num_shards: shards of this family.
        shard_size: scenes a shard.
        num_captions: captions kept for each scene.
        square_every: one shard in so many is square; the others take the oblong ratios in turn.
    """

    base: int = 128
    num_shards: int = 64
    shard_size: int = 512
    num_captions: int = 4
    square_every: int = 3
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A finished shard: its file, its family and its size."""

    name: str
    base: int
    grid: tuple[int, int]


def shard_resolution(config: CacheConfig, number: int) -> Resolution:
    """The size of a shard's pictures: square ones in turn with the family's other ratios."""
    family = PRESETS[config.base]
    if number % config.square_every == 0:
        return family["1:1"]
    oblong = [size for ratio, size in family.items() if ratio != "1:1"]
    return oblong[(number - number // config.square_every - 1) % len(oblong)]


def shard_name(config: CacheConfig, number: int) -> str:
    """`128-00007-8x8.safetensors`: family, number, grid."""
    rows, columns = shard_resolution(config, number).grid
    return f"{config.base:04d}-{number:05d}-{rows}x{columns}.safetensors"


def missing_shards(folder: Path, config: CacheConfig) -> list[int]:
    """Numbers of the shards that are not there yet."""
    return [n for n in range(config.num_shards) if not (folder / shard_name(config, n)).exists()]


@torch.no_grad()
def write_shard(
    folder: Path,
    config: CacheConfig,
    number: int,
    scenes: SceneSource,
    autoencoder: Autoencoder,
    *,
    autoencoder_id: str,
    chunk: int = 32,
) -> Path:
    """Render, encode and store one shard.

    Args:
        folder: of the cache; made where needed.
        autoencoder_id: hash of its weights, kept in the header.
        chunk: pictures encoded at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = shard_resolution(config, number)
    first = number * config.shard_size
    indices = range(first, first + config.shard_size)
    statistics = autoencoder.bn
    device = statistics.running_mean.device
    latents: list[Tensor] = []
    for start in range(0, config.shard_size, chunk):
        pictures = [to_tensor(scenes.pixels(i, size)) for i in indices[start : start + chunk]]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            encoded = autoencoder.encode(torch.stack(pictures).to(device))
        tokens = normalise(
            patchify(encoded.float()),
            statistics.running_mean,
            statistics.running_var,
            statistics.eps,
        )
        latents.append(tokens.half().cpu())
    texts = [
        scenes.caption(index, size, variant).encode()
        for index in indices
        for variant in range(config.num_captions)
    ]
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts]))).astype(np.int64)
    tensors = {
        "latents": torch.cat(latents),
        "captions": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
        "offsets": torch.from_numpy(offsets),
        "plain": torch.tensor([scenes.is_plain(index, size) for index in indices]),
    }
    header = {"first": first, "seed": config.seed, "autoencoder": autoencoder_id, "size": str(size)}
    path = folder / shard_name(config, number)
    draft = folder / f".{path.name}.{os.getpid()}"
    save_file(tensors, draft, metadata={"petzval": json.dumps(header)})
    draft.rename(path)
    return path


def list_shards(folder: Path) -> list[Shard]:
    """Finished shards in order of their names."""
    return [_shard(path.name) for path in sorted(folder.glob("[0-9]*-*-*x*.safetensors"))]


def _shard(name: str) -> Shard:
    base, _, grid = name.removesuffix(".safetensors").split("-")
    rows, columns = grid.split("x")
    return Shard(name=name, base=int(base), grid=(int(rows), int(columns)))


class LatentPool:
    """Random samples from the shards that are there, with a ledger of which were there when.

    Every `rescan_steps` steps the folder is looked at again and what it holds is written to the
    ledger; a run that is replayed or resumed reads the ledger first, so that its batches are the
    same however many shards have appeared since.

    Args:
        folder: of the cache.
        ledger: JSON-lines file of the run.
        rescan_steps: steps between looks; a multiple of the window.
        autoencoder_id: shards of another autoencoder are refused.
        plain_factor: how much oftener a plain scene is drawn than another.
        caption_draws: the shortest of so many captions of a scene is taken.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Path,
        *,
        rescan_steps: int,
        autoencoder_id: str,
        plain_factor: float = 1.0,
        caption_draws: int = 1,
    ) -> None:
        self._plain_factor = plain_factor
        self._caption_draws = caption_draws
        self._folder = folder
        self._ledger = ledger
        self._rescan_steps = rescan_steps
        self._autoencoder_id = autoencoder_id
        self._known: dict[int, tuple[str, ...]] = {}
        self._checked: set[str] = set()
        self._known_chances: dict[tuple[str, ...], NDArray[np.float64]] = {}
        for row in read_metrics(ledger):
            self._known[int(row["period"])] = tuple(row["shards"])

    def shards(self, step: int) -> list[Shard]:
        """The shards that this step draws from."""
        period = step // self._rescan_steps
        if period not in self._known:
            names = [shard.name for shard in list_shards(self._folder)]
            self._check(names)
            self._known[period] = tuple(names)
            self._ledger.parent.mkdir(parents=True, exist_ok=True)
            with self._ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"period": period, "shards": names}) + "\n")
        return [_shard(name) for name in self._known[period]]

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._checked:
                continue
            with safe_open(self._folder / name, "pt") as file:
                header = json.loads((file.metadata() or {})["petzval"])
            if header["autoencoder"] != self._autoencoder_id:
                raise TrainingError(
                    f"{self._folder / name} was made with autoencoder {header['autoencoder']}, "
                    f"this run uses {self._autoencoder_id}",
                    "delete the folder and make the cache again",
                )
            self._checked.add(name)

    def draw_bucket(self, step: int, base: int, rng: np.random.Generator) -> tuple[int, int]:
        """A grid of this family, as often as it has shards."""
        grids = [shard.grid for shard in self.shards(step) if shard.base == base]
        if not grids:
            raise TrainingError(
                f"{self._folder} holds no shard of base {base}",
                "make some first: petzval pretrain mini_latents",
            )
        return grids[int(rng.integers(len(grids)))]

    def draw(
        self, step: int, grid: tuple[int, int], count: int, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, str]]:
        """Latents [S, C] and one caption each of `count` random scenes of a bucket.

        Distinct ones as long as there are enough.
        """
        names = [shard.name for shard in self.shards(step) if shard.grid == grid]
        opened = [_open_shard(str(self._folder / name)) for name in names]
        sizes = np.array([shard.latents.shape[0] for shard in opened])
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        places = rng.choice(
            total, size=count, replace=count > total, p=self._chances(names, opened)
        )
        for place in places:
            which = int(np.searchsorted(ends, place, side="right"))
            row = int(place - (ends[which] - sizes[which]))
            shard = opened[which]
            variants = rng.integers(shard.num_captions, size=self._caption_draws)
            captions = [shard.caption(row, int(variant)) for variant in variants]
            yield shard.latents[row], min(captions, key=len)

    def _chances(
        self, names: Sequence[str], opened: Sequence[_OpenShard]
    ) -> NDArray[np.float64] | None:
        """Of every scene of these shards; None draws all alike."""
        if self._plain_factor == 1:
            return None
        key = tuple(names)
        if key not in self._known_chances:
            plain = np.concatenate([shard.plain.numpy() for shard in opened])
            weights = np.where(plain, self._plain_factor, 1.0)
            self._known_chances[key] = weights / weights.sum()
        return self._known_chances[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class _OpenShard:
    """Memory-mapped content of one shard."""

    latents: Tensor
    captions: Tensor
    offsets: Tensor
    plain: Tensor

    @property
    def num_captions(self) -> int:
        return (self.offsets.shape[0] - 1) // self.latents.shape[0]

    def caption(self, row: int, variant: int) -> str:
        place = row * self.num_captions + variant
        start, stop = int(self.offsets[place]), int(self.offsets[place + 1])
        return bytes(self.captions[start:stop].tolist()).decode()


@lru_cache(maxsize=4096)
def _open_shard(path: str) -> _OpenShard:
    try:
        with safe_open(path, "pt") as file:
            return _OpenShard(
                latents=file.get_tensor("latents"),
                captions=file.get_tensor("captions"),
                offsets=file.get_tensor("offsets"),
                plain=file.get_tensor("plain"),
            )
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot read the shard {path}: {error}",
            "delete it and make it again: petzval pretrain mini_latents",
        ) from error
