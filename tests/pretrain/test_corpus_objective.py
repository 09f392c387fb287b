"""One objective, two ways to make a batch, the same training data on any number of processes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from petzval.data.sample_stream import Sample
from petzval.data.sampler import MODES, Mode
from petzval.errors import ConfigError, DataError, TrainingError
from petzval.flow.schedule import training_mu
from petzval.models.flops import training_flops
from petzval.pretrain.corpus_batch import CorpusBatch
from petzval.pretrain.corpus_objective import ROW_STEP, CorpusObjective
from petzval.pretrain.latent_cache import LatentCache
from petzval.pretrain.shard_pictures import ShardPictures
from petzval.resolution import Resolution
from petzval.training.ranks import Ranks
from tests.pretrain.corpus import NUM_SAMPLES, make_shards, objective, settings

each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("corpus"))


def gradients(made: CorpusObjective, batch: CorpusBatch) -> tuple[Tensor, dict[str, Tensor]]:
    made.model.zero_grad()
    loss = made.loss(batch)
    loss.value.backward()  # pyright: ignore[reportUnknownMemberType]
    assert loss.items is not None
    named = made.model.named_parameters()
    return loss.items.detach(), {name: p.grad for name, p in named if p.grad is not None}


def global_step(objectives: list[CorpusObjective], step: int) -> list[CorpusBatch]:
    """The batches of a step in the order of their virtual ranks, from every process."""
    each = objectives[0].batches_per_step
    return [made.batch(step * each + part) for part in range(each) for made in objectives]


Trained = tuple[Sample, float, float, tuple[int, ...]]


def samples_of(batches: list[CorpusBatch]) -> list[Trained]:
    """All that a sample is trained with, in global order."""
    return [
        (use, float(sigma), float(noise.sum()), tuple(ids[mask].tolist()))
        for batch in batches
        for use, sigma, noise, ids, mask in zip(
            batch.uses, batch.sigmas, batch.noise, batch.ids, batch.mask, strict=True
        )
    ]


def test_a_row_learns_what_buckets_learn(shards: Path, golden_checkpoint: Path) -> None:
    bucket = objective(shards, golden_checkpoint, settings("bucket"))
    packed = objective(shards, golden_checkpoint, settings("packed"), model=bucket.model)
    batches = [bucket.batch(number) for number in range(6)]
    texts = [batch.mask.any(1).tolist() for batch in batches]
    batch = next(b for b, t in zip(batches, texts, strict=True) if any(t) and not all(t))
    items, expected = gradients(bucket, batch)
    row = packed.prepare(batch)
    assert row.layout is not None and row.layout.num_padding > 0
    found_items, found = gradients(packed, row)
    assert torch.allclose(found_items, items, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * largest, name
    loss = bucket.loss(batch)
    lengths = [use.image_tokens for use in batch.uses]
    text = batch.mask.sum(1).tolist()
    assert loss.flops == training_flops(bucket.model.config, lengths, text)
    assert any(name.startswith("loss_bucket_") for name in loss.means)
    padding = packed.loss(row).means["padding"]
    assert float(padding.count) == 640 and float(padding.total) == row.layout.num_padding


@each_mode
def test_any_number_of_processes_trains_on_the_same(
    shards: Path, golden_checkpoint: Path, mode: Mode
) -> None:
    config = settings(mode, stratified=mode == "packed")
    alone = objective(shards, golden_checkpoint, config)
    pair = [
        objective(shards, golden_checkpoint, config, ranks=Ranks(rank=rank, size=2))
        for rank in range(2)
    ]
    assert alone.batches_per_step == 2 and pair[0].batches_per_step == 1
    used: Counter[tuple[int, int]] = Counter()
    for step in range(4):
        expected = samples_of(global_step([alone], step))
        assert samples_of(global_step(pair, step)) == expected
        used.update((use.epoch, use.id) for use, *_ in expected)
    count = alone.pictures.table.num_samples
    assert [used[0, number] for number in range(count)] == [1] * count
    assert 0 < count < NUM_SAMPLES, "some are held out"


@each_mode
def test_a_resumed_stream_goes_on_alike(shards: Path, golden_checkpoint: Path, mode: Mode) -> None:
    config = settings(mode)
    first = objective(shards, golden_checkpoint, config)
    ahead = [samples_of(global_step([first], step)) for step in range(6)]
    for number in range(4):
        first.loss(first.batch(number))
    kept = json.dumps(dict(first.state_dict()))
    assert len(kept) < 1000 and json.loads(kept)["step"] == 2
    resumed = [
        objective(shards, golden_checkpoint, config, ranks=Ranks(rank=rank, size=2))
        for rank in range(2)
    ]
    for made in resumed:
        made.load_state_dict(json.loads(kept))
    for step in (2, 5, 3):
        assert samples_of(global_step(resumed, step)) == ahead[step]
    with pytest.raises(ValueError, match="before step 2"):
        resumed[0].batch(1)
    other = objective(shards, golden_checkpoint, settings(mode, square=128))
    with pytest.raises(TrainingError, match="another corpus"):
        other.load_state_dict(json.loads(kept))


def test_stratified_noise_levels_fill_every_slice(shards: Path, golden_checkpoint: Path) -> None:
    made = objective(shards, golden_checkpoint, settings("packed", stratified=True))
    levels = [
        float(torch.logit(sigma.double())) - training_mu(use.image_tokens)
        for batch in global_step([made], 0)
        for use, sigma in zip(batch.uses, batch.sigmas, strict=True)
    ]
    places = torch.special.ndtr(torch.tensor(levels)).sort().values * len(levels)
    assert torch.equal(places.floor().long(), torch.arange(len(levels)))


def test_latents_are_kept_on_request(shards: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    config = settings()
    cache = LatentCache.open(tmp_path / "latents", autoencoder="a", shards="s")
    online = objective(shards, golden_checkpoint, config)
    cached = objective(shards, golden_checkpoint, config, cache=cache, model=online.model)
    expected = online.loss(online.batch(0)).value.item()
    assert cached.loss(cached.batch(0)).value.item() == pytest.approx(expected, rel=1e-6)
    again = cached.batch(0)
    assert again.pixels == (None,) * len(again.uses)
    assert cached.loss(again).value.item() == pytest.approx(expected, rel=1e-6)
    files = sorted((tmp_path / "latents").glob("*/*.safetensors"))
    assert len(files) == len(again.uses)
    files[0].write_bytes(files[0].read_bytes()[:40])
    once_more = cached.batch(0)
    assert sum(each is not None for each in once_more.pixels) == 1
    assert cached.loss(once_more).value.item() == pytest.approx(expected, rel=1e-6)


def test_a_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    LatentCache.open(folder, autoencoder="a", shards="s")
    assert LatentCache.open(folder, autoencoder="a", shards="s").folder == folder
    with pytest.raises(DataError, match="of another autoencoder"):
        LatentCache.open(folder, autoencoder="b", shards="s")
    with pytest.raises(DataError, match="of other shards"):
        LatentCache.open(folder, autoencoder="a", shards="t")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        LatentCache.open(full, autoencoder="a", shards="s")
    assert [each.name for each in full.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="cannot be written"):
        LatentCache.open(full / "thesis.txt", autoencoder="a", shards="s")


def test_pictures_can_be_cut_to_a_square(shards: Path) -> None:
    whole, square = ShardPictures(shards), ShardPictures(shards, square=64)
    assert square.sizes == (Resolution(64, 64),) and len(whole.sizes) == 3
    assert square.table.num_samples == whole.table.num_samples
    assert set(square.table.image_tokens) == {16}
    pixels, caption = square.sample(0)
    assert pixels.shape == (64, 64, 3) and caption == square.caption(0)
    assert abs(float(np.mean(pixels)) - float(np.mean(whole.sample(0)[0]))) < 40
    assert len(whole.prompts(3)) == 3 and len(whole.name(0)) == 64


def test_a_row_that_is_longer_than_planned_grows(shards: Path, golden_checkpoint: Path) -> None:
    made = objective(shards, golden_checkpoint, settings("packed"))
    batch = made.batch(0)
    packed = dataclasses.replace(made.config.sampler.packed, token_budget=100)
    sampler = dataclasses.replace(made.config.sampler, packed=packed)
    made.config = dataclasses.replace(made.config, sampler=sampler)
    layout = made.prepare(batch).layout
    assert layout is not None
    used = sum(use.image_tokens for use in batch.uses) + int(batch.mask.sum())
    assert (used + layout.num_padding) % ROW_STEP == 0 and layout.num_padding < ROW_STEP


def test_processes_that_cannot_share_are_refused(shards: Path, golden_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="2 virtual ranks cannot be shared by 3 processes"):
        objective(shards, golden_checkpoint, settings(), ranks=Ranks(rank=0, size=3))
