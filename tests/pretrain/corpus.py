"""Shards of a small corpus, and an objective over them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.data.corpus.shard_plan import ShardSettings
from petzval.data.corpus.shards import write_shards
from petzval.data.packed_sampler import PackedMode
from petzval.data.sampler import Mode
from petzval.models.mmdit import MMDiT
from petzval.pretrain.corpus_batch import CorpusConfig
from petzval.pretrain.corpus_objective import CorpusObjective
from petzval.pretrain.corpus_run import open_sources, train_corpus
from petzval.pretrain.latent_cache import LatentCache
from petzval.pretrain.session import Session
from petzval.pretrain.shard_pictures import ShardPictures
from petzval.pretrain.smoke_recipes import smoke_corpus
from petzval.training.metrics import read_metrics
from petzval.training.ranks import Ranks
from petzval.weights.checkpoint import Checkpoint
from tests.data.corpus.ready import ready_corpus

NUM_SAMPLES = 14


def make_shards(folder: Path) -> Path:
    """Pictures of three aspect ratios at 128 pixels, some of them held out."""
    shards = folder / "shards"
    corpus = ready_corpus(folder / "made", NUM_SAMPLES, share=0.2)
    write_shards(corpus, shards, ShardSettings(target_bytes=30_000))
    return shards


def settings(mode: Mode = "bucket", **changes: Any) -> CorpusConfig:
    """Two virtual ranks with rows of 640 tokens, and half of the samples without text."""
    config = smoke_corpus().objective
    sampler = dataclasses.replace(
        config.sampler, mode=mode, packed=PackedMode(token_budget=640, lookahead=0.1)
    )
    return dataclasses.replace(config, sampler=sampler, text_dropout=0.5, **changes)


def denoiser(checkpoint: Checkpoint) -> MMDiT:
    """A tiny one in which every weight has a gradient: nothing begins at zero."""
    config = dataclasses.replace(
        checkpoint.denoiser_config, num_layers=2, num_attention_heads=1, inner_dim=None
    )
    torch.manual_seed(0)
    model = MMDiT(config)
    model.initialise()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def objective(
    shards: Path,
    checkpoint_folder: Path,
    config: CorpusConfig,
    *,
    ranks: Ranks | None = None,
    cache: LatentCache | None = None,
    model: MMDiT | None = None,
) -> CorpusObjective:
    """With the frozen networks of a checkpoint, in float32 on the CPU."""
    checkpoint = Checkpoint.open(checkpoint_folder)
    return CorpusObjective(
        model or denoiser(checkpoint),
        checkpoint.load_encoder(torch.float32),
        PromptTokenizer(checkpoint.tokenizer_folder),
        checkpoint.load_vae(torch.float32),
        ShardPictures(shards, bases=config.bases, square=config.square),
        config,
        ranks=ranks,
        cache=cache,
    )


def train_some(
    shards: Path,
    checkpoint_folder: Path,
    out: Path,
    num_steps: int,
    *,
    ranks: Ranks | None = None,
    num_previews: int = 0,
) -> list[float]:
    """Train the smoke recipe, or go on with it, to this step; the losses of all steps so far."""
    ranks = ranks or Ranks()
    recipe = smoke_corpus()
    loop = dataclasses.replace(recipe.loop, num_steps=num_steps, log_every=1)
    recipe = dataclasses.replace(recipe, loop=loop, num_previews=num_previews)
    session = Session(
        minutes=None,
        resume=True,
        num_workers=None,
        report=lambda line: None,
        ranks=ranks,
        config_hash="",
    )
    sources = open_sources(recipe, shards, checkpoint_folder, None, ranks.size)
    train_corpus(recipe, "smoke_corpus", sources, out, torch.device("cpu"), None, session)
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")]
