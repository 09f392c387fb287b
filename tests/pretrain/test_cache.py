"""Shards of latents: whole, checked, and replayed from the ledger."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from petzval.errors import TrainingError
from petzval.models.latents import normalise, patchify
from petzval.pretrain import results
from petzval.pretrain.cache import (
    CacheConfig,
    LatentPool,
    list_shards,
    missing_shards,
    shard_resolution,
    write_shard,
)
from petzval.pretrain.scenes import ColouredSquares, to_tensor

CONFIG = CacheConfig(base=128, num_shards=3, shard_size=4, num_captions=2)


@pytest.fixture
def folder(tmp_path: Path, smoke_runs: Path) -> Path:
    autoencoder = results.load_autoencoder(smoke_runs / "vae")
    for number in range(3):
        write_shard(
            tmp_path / "latents", CONFIG, number, ColouredSquares(3), autoencoder,
            autoencoder_id="abc",
        )  # fmt: skip
    return tmp_path / "latents"


def pool(folder: Path, name: str = "ledger", identity: str = "abc") -> LatentPool:
    ledger = folder.parent / f"{name}.jsonl"
    return LatentPool(folder, ledger, rescan_steps=10, autoencoder_id=identity)


def test_a_shard_holds_normalised_latents_of_its_scenes(folder: Path, smoke_runs: Path) -> None:
    autoencoder = results.load_autoencoder(smoke_runs / "vae")
    size = shard_resolution(CONFIG, 0)
    drawn = dict(
        (caption, latents)
        for latents, caption in pool(folder).draw(0, size.grid, 4, np.random.default_rng(0))
    )
    for index in range(4):
        image = to_tensor(ColouredSquares(3).pixels(index, size))[None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = patchify(autoencoder.encode(image).float())
        bn = autoencoder.bn
        expected = normalise(encoded, bn.running_mean, bn.running_var, bn.eps)[0]
        captions = {ColouredSquares(3).caption(index, size, variant) for variant in range(2)}
        for caption in captions & drawn.keys():
            assert drawn[caption].shape == (size.num_tokens, 16)
            if Counter(_captions())[caption] == 1:
                assert torch.allclose(drawn[caption].float(), expected, atol=0.03)
    assert drawn.keys() <= set(_captions())


def _captions() -> list[str]:
    size = shard_resolution(CONFIG, 0)
    return [ColouredSquares(3).caption(i, size, v) for i in range(4) for v in range(2)]


def test_work_is_taken_up_where_it_stopped(folder: Path) -> None:
    assert missing_shards(folder, CONFIG) == []
    list(folder.glob("*-00001-*"))[0].unlink()
    (folder / ".0128-00001-8x8.safetensors.99").write_bytes(b"half")
    assert missing_shards(folder, CONFIG) == [1]
    assert [shard.name.split("-")[1] for shard in list_shards(folder)] == ["00000", "00002"]


def test_buckets_take_turns() -> None:
    sizes = [shard_resolution(CacheConfig(num_shards=24), number) for number in range(24)]
    counts = Counter(size.grid for size in sizes)
    assert counts[(8, 8)] == 8 and len(counts) == 9
    assert {count for grid, count in counts.items() if grid != (8, 8)} == {2}


def test_new_shards_are_used_from_the_next_look_on_and_replayed(
    folder: Path, smoke_runs: Path
) -> None:
    moved = folder.parent / "moved"
    moved.mkdir()
    late = list_shards(folder)[-1].name
    shutil.move(folder / late, moved / late)
    running = pool(folder)
    assert len(running.shards(0)) == 2
    shutil.move(moved / late, folder / late)
    assert len(running.shards(9)) == 2
    assert len(running.shards(10)) == 3
    replayed = pool(folder)
    assert len(replayed.shards(0)) == 2 and len(replayed.shards(10)) == 3

    def names(source: LatentPool, step: int) -> list[str]:
        rng = np.random.default_rng(step)
        grid = source.draw_bucket(step, 128, rng)
        return [caption for _, caption in source.draw(step, grid, 6, rng)]

    assert [names(running, s) for s in range(14)] == [names(replayed, s) for s in range(14)]


def test_another_autoencoders_shards_are_refused(folder: Path) -> None:
    with pytest.raises(TrainingError, match="autoencoder abc"):
        pool(folder, identity="xyz").shards(0)


def test_an_empty_cache_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no shard of base 128") as caught:
        pool(tmp_path).draw_bucket(0, 128, np.random.default_rng(0))
    assert "mini_latents" in caught.value.hint


def test_scenes_are_distinct_while_there_are_enough(folder: Path) -> None:
    rng = np.random.default_rng(0)
    latents = [tokens for tokens, _ in pool(folder).draw(0, (8, 8), 4, rng)]
    assert len({tuple(tokens.flatten()[:8].tolist()) for tokens in latents}) > 1
    assert len(list(pool(folder).draw(0, (8, 8), 40, rng))) == 40


def test_plain_scenes_are_drawn_oftener_and_short_captions_preferred(
    folder: Path, tmp_path: Path
) -> None:
    scenes = ColouredSquares(3)
    numbers = [
        number for number in range(CONFIG.num_shards)
        if len({scenes.is_plain(index, shard_resolution(CONFIG, number))
                for index in range(4 * number, 4 * number + 4)}) == 2
    ]  # fmt: skip
    size = shard_resolution(CONFIG, numbers[0])
    indices = range(4 * numbers[0], 4 * numbers[0] + 4)
    weighted = LatentPool(
        folder, tmp_path / "ledger.jsonl", rescan_steps=10, autoencoder_id="abc",
        plain_factor=1e9, caption_draws=30,
    )  # fmt: skip
    drawn = list(weighted.draw(0, size.grid, 40, np.random.default_rng(0)))
    # Thirty draws of two captions all but surely hold the short one.
    plain = {scenes.caption(i, size, 0) for i in indices if scenes.is_plain(i, size)}
    assert {text for _, text in drawn} == plain


def test_a_shard_that_does_not_know_its_plain_scenes_is_refused(folder: Path) -> None:
    file = folder / list_shards(folder)[0].name
    with safe_open(file, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys() if key != "plain"}  # noqa: SIM118
        header = stored.metadata()
    save_file(tensors, file, metadata=header)
    size = shard_resolution(CONFIG, 0)
    with pytest.raises(TrainingError, match="cannot read the shard") as caught:
        list(pool(folder).draw(0, size.grid, 1, np.random.default_rng(0)))
    assert "delete it" in str(caught.value.hint)
