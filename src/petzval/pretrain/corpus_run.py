"""The run of a corpus recipe: shards and frozen networks in, a checkpoint that draws out.

out/
    recipe.json  metrics.jsonl  events/  checkpoints/  grids/   as every run has them
    checkpoint/    the result in the published layout: the frozen networks, the averaged weights
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import to_mapping
from petzval.data.sample_stream import GlobalStep
from petzval.errors import TrainingError
from petzval.inference.variants import CARD, Located, locate
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.pretrain.corpus_objective import CorpusObjective
from petzval.pretrain.latent_cache import LatentCache
from petzval.pretrain.layout import denoiser_layout
from petzval.pretrain.preview import draw_grid
from petzval.pretrain.recipe import CorpusRecipe
from petzval.pretrain.session import Session
from petzval.pretrain.shard_pictures import ShardPictures
from petzval.pretrain.start import take_weights
from petzval.resolution import PRESETS
from petzval.training.loop import train
from petzval.training.parallel import full_state_dict
from petzval.training.state import RunState
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.writing import Component, save_with_denoiser


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSources:
    """What a run reads, open and checked against its recipe.

    Attributes:
        model: the recipe's, with the checkpoint's widths where it adapts to them.
    """

    pictures: ShardPictures
    located: Located
    checkpoint: Checkpoint
    model: MMDiTConfig
    cache: LatentCache | None


def open_sources(
    recipe: CorpusRecipe,
    data_folder: Path,
    model: str | Path,
    latents: Path | None,
    num_processes: int,
) -> CorpusSources:
    """Look at everything that a user names, before anything is made.

    Args:
        recipe: says what must fit.
        data_folder: of shards.
        model: name or folder of the checkpoint whose networks stay frozen.
        latents: folder of a cache; None encodes every picture whenever it is met.
        num_processes: that take part.

    Raises:
        ConfigError: the processes cannot share the recipe's virtual ranks alike.
        DataError: no shards, shards of another form or size, or a cache of something else.
        TrainingError: the checkpoint's networks are not those that the recipe's denoiser reads.
        RequestError, CheckpointError: there is no such checkpoint, or it is damaged.
    """
    objective = recipe.objective
    count = objective.sampler.num_virtual_ranks
    GlobalStep(number=0, batches=((),) * count).of_rank(0, num_processes)
    pictures = ShardPictures(
        data_folder,
        bases=objective.bases,
        square=objective.square,
        max_tokens=objective.max_tokens,
    )
    located = locate(model)
    checkpoint = Checkpoint.open(located.folder)
    config = _fitted(recipe, checkpoint)
    cache = None
    if latents is not None:
        shards = pictures.identity + ("" if objective.square is None else f"-{objective.square}")
        autoencoder = checkpoint.vae_source.digest()
        cache = LatentCache.open(latents, autoencoder=autoencoder, shards=shards)
    return CorpusSources(
        pictures=pictures, located=located, checkpoint=checkpoint, model=config, cache=cache
    )


def train_corpus(
    recipe: CorpusRecipe,
    name: str,
    sources: CorpusSources,
    folder: Path,
    device: torch.device,
    start: Path | None,
    session: Session,
) -> bool:
    """Train, and leave a checkpoint with the averaged weights.

    Args:
        recipe: called `name`.
        name: of the recipe.
        sources: opened for it.
        folder: of the run.
        device: where the networks go.
        start: a checkpoint whose denoiser the run begins with, in place of random weights.
        session: what the caller asked for.

    Returns:
        Whether it ran to its end.

    Raises:
        TrainingError: `start` does not fit, or the folder holds another run.
        DataError: a sample cannot be read.
    """
    checkpoint, loop = sources.checkpoint, session.apply(recipe.loop)
    torch.manual_seed(recipe.seed)
    with device:
        model = MMDiT(sources.model)
    model.initialise()
    if start is not None:
        take_weights(model, start)
    state = session.state(model, loop, denoiser_layout(sources.model))
    autoencoder = checkpoint.load_vae(torch.float32, device)
    frozen = torch.bfloat16 if device.type == "cuda" else torch.float32
    objective = CorpusObjective(
        model,
        checkpoint.load_encoder(frozen, device),
        PromptTokenizer(checkpoint.tokenizer_folder),
        autoencoder,
        sources.pictures,
        recipe.objective,
        ranks=session.ranks,
        cache=sources.cache,
    )
    table = sources.pictures.table
    session.report(
        f"{table.num_samples:,} samples in {sum(1 for count in table.counts if count)} sizes; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{objective.batches_per_step} batches a step in each of {session.ranks.size} processes"
    )
    prompts = sources.pictures.prompts(recipe.num_previews)
    grid = sources.pictures.commonest.grid

    def preview(state: RunState) -> dict[str, Path]:
        file = folder / "grids" / f"{state.step:08d}.png"
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.autocast == "bfloat16"):
            draw_grid(
                file,
                state,
                objective,
                autoencoder,
                prompts,
                grid,
                num_steps=recipe.preview_steps,
                guidance=recipe.preview_guidance,
            )
        return {"grid": file}

    outcome = train(
        objective,
        state,
        loop,
        folder,
        callbacks=[preview] if prompts else [],
        resume=session.resume,
        report=session.report,
    )
    if outcome.reason == "interrupted":
        return False
    _write(recipe, name, sources, folder, state)
    session.report(f"done; {folder / 'checkpoint'}")
    return True


def _fitted(recipe: CorpusRecipe, checkpoint: Checkpoint) -> MMDiTConfig:
    """The denoiser's sizes, which must fit the checkpoint's frozen networks."""
    theirs, model = checkpoint.denoiser_config, recipe.model
    fitted = dataclasses.replace(
        model,
        in_channels=theirs.in_channels,
        out_channels=theirs.out_channels,
        enc_hidden_dim=theirs.enc_hidden_dim,
        selected_layer_index=theirs.selected_layer_index,
    )
    if fitted != model and not recipe.adapts:
        raise TrainingError(
            f"the recipe's denoiser reads {_widths(model)}; the networks of {checkpoint.folder} "
            f"give {_widths(fitted)}",
            "name a checkpoint with the networks of Lens (--model), or take smoke_corpus",
        )
    return fitted


def _widths(model: MMDiTConfig) -> str:
    layers = ", ".join(str(layer) for layer in model.selected_layer_index)
    return (
        f"{model.in_channels} latent channels and features of width {model.enc_hidden_dim} "
        f"of layers {layers}"
    )


def _write(
    recipe: CorpusRecipe, name: str, sources: CorpusSources, folder: Path, state: RunState
) -> None:
    """The averaged weights among the frozen networks. All ranks call it, the first one writes."""
    assert state.ema is not None
    with state.ema.applied_to(state.model):
        weights = full_state_dict(state.model, state.ranks)
    if state.ranks.is_first:
        known = [base for base in sources.pictures.bases if base in PRESETS]
        base = recipe.objective.square or max(known, default=0)
        defaults = sources.located.defaults
        if base in PRESETS:
            defaults = dataclasses.replace(defaults, base=base)
        settings = {"name": name, **to_mapping(defaults)}
        files = {
            "README.md": _card(name, sources, state),
            CARD: json.dumps(settings, indent=2) + "\n",
        }
        for log in ("recipe.json", "metrics.jsonl"):
            if (folder / log).is_file():
                files[f"training/{name}/{log}"] = (folder / log).read_text(encoding="utf-8")
        save_with_denoiser(
            folder / "checkpoint",
            sources.checkpoint.folder,
            Component(config=sources.model, state=weights),
            files,
        )
    state.ranks.wait()


def _card(name: str, sources: CorpusSources, state: RunState) -> str:
    return (
        f"# {name}\n\n"
        f"The denoiser was trained from shards of its maker's for {state.step:,} steps "
        f"({state.num_items:,} samples) with `petzval pretrain {name}`; the other networks are "
        f"those of {sources.located.name}. Settings and log: training/{name}/.\n"
    )
