"""Latents of a folder: encoded once, every picture once an epoch, a function of the step."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from petzval.models.vae import Autoencoder
from petzval.pretrain import folder_pool
from petzval.pretrain.captioned_folder import load_pixels, read_folder
from petzval.pretrain.folder_pool import FolderPool, batch_tokens, encode_folder
from petzval.pretrain.preview import decode_tokens
from petzval.pretrain.scenes import to_tensor
from petzval.resolution import PRESETS, Resolution
from petzval.weights.checkpoint import Checkpoint
from tests.pretrain.rings import draw_rings

RNG = np.random.default_rng(0)


def pool(sizes: dict[tuple[int, int], int], tokens: int, seed: int = 0) -> FolderPool:
    samples = {
        grid: [(torch.zeros(grid[0] * grid[1], 4), f"{grid} {i}") for i in range(count)]
        for grid, count in sizes.items()
    }
    return FolderPool(samples, batch_tokens=tokens, seed=seed)


def captions(made: FolderPool, step: int, count: int) -> list[str]:
    grid = made.draw_bucket(step, 128, RNG)
    return [caption for _, caption in made.draw(step, grid, count, RNG)]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_picture_comes_once_an_epoch_and_batches_are_full(batch_size: int) -> None:
    sizes = {(8, 8): 8, (8, 4): 4, (4, 8): 1}
    made = pool(sizes, batch_size * 64)
    per_step = {(8, 8): batch_size, (8, 4): 2 * batch_size, (4, 8): 2 * batch_size}
    for epoch in range(2):
        counts: Counter[str] = Counter()
        for i in range(made.steps_per_epoch):
            step = epoch * made.steps_per_epoch + i
            counts.update(captions(made, step, per_step[made.draw_bucket(step, 128, RNG)]))
        assert len(counts) == 13
        filled = {name for name, count in counts.items() if count > 1}
        whole = {grid for grid, count in sizes.items() if count % per_step[grid] == 0}
        assert all(not name.startswith(str(grid)) for name in filled for grid in whole)


def test_the_order_is_a_function_of_seed_and_step() -> None:
    sizes = {(8, 8): 6, (4, 8): 6}
    first, again, other = (pool(sizes, 64, seed) for seed in (1, 1, 2))
    per_step = {(8, 8): 1, (4, 8): 2}

    def told(made: FolderPool, steps: range) -> list[list[str]]:
        return [captions(made, s, per_step[made.draw_bucket(s, 128, RNG)]) for s in steps]

    forwards = told(first, range(20))
    assert told(again, range(19, -1, -1))[::-1] == forwards
    assert told(other, range(20)) != forwards
    assert forwards[: first.steps_per_epoch] != forwards[9 : 9 + first.steps_per_epoch]


def test_batches_have_at_least_the_pictures_that_were_asked_for() -> None:
    for base, family in PRESETS.items():
        tokens = batch_tokens(4, base)
        assert all(4 <= tokens // size.num_tokens <= 5 for size in family.values())


def test_pictures_are_encoded_once_and_what_is_damaged_again(
    tmp_path: Path, golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = Checkpoint.open(golden_checkpoint).load_vae(torch.float32)
    pictures = read_folder(draw_rings(tmp_path / "rings"))
    encoded = 0
    encode = folder_pool.encode

    def counting(autoencoder: Autoencoder, image: torch.Tensor) -> torch.Tensor:
        nonlocal encoded
        encoded += 1
        return encode(autoencoder, image)

    monkeypatch.setattr(folder_pool, "encode", counting)

    def run(autoencoder_id: str = "a", base: int = 128) -> int:
        nonlocal encoded
        encoded = 0
        encode_folder(
            pictures,
            autoencoder,
            base=base,
            cache=tmp_path / "cache",
            autoencoder_id=autoencoder_id,
        )
        return encoded

    assert [run(), run(), run("b"), run("b")] == [4, 0, 4, 0]
    victim = tmp_path / "cache" / sorted(os.listdir(tmp_path / "cache"))[0]
    victim.write_bytes(victim.read_bytes()[:-5])
    assert run() + run("b") == 1


def test_tokens_are_the_autoencoders_normalised_as_the_denoiser_sees_them(
    tmp_path: Path, golden_checkpoint: Path
) -> None:
    autoencoder = Checkpoint.open(golden_checkpoint).load_vae(torch.float32)
    [picture, *_] = read_folder(draw_rings(tmp_path / "rings"))
    samples = encode_folder(
        [picture], autoencoder, base=128, cache=tmp_path / "cache", autoencoder_id="a"
    )
    [(tokens, caption)] = samples[(8, 8)]
    assert caption == picture.caption
    assert tokens.shape == (64, autoencoder.bn.running_mean.shape[0])
    image = to_tensor(load_pixels(picture, Resolution(128, 128)))[None]
    with torch.no_grad():
        straight = autoencoder.decode(autoencoder.encode(image))
        through = decode_tokens(autoencoder, tokens[None], (8, 8))
    assert torch.allclose(straight, through, atol=1e-4)
