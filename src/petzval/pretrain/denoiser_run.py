"""The run of a denoiser recipe: its stages in turn, each from the weights of the one before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.pretrain import results
from petzval.pretrain.cache import LatentPool
from petzval.pretrain.denoiser import DenoiserObjective
from petzval.pretrain.layout import denoiser_layout
from petzval.pretrain.metric import visibility_metric
from petzval.pretrain.preview import PREVIEW_PROMPTS, draw_grid
from petzval.pretrain.recipe import DenoiserRecipe, DenoiserStage
from petzval.pretrain.session import Session
from petzval.pretrain.start import take_weights
from petzval.resolution import PRESETS
from petzval.training.checkpoint import CHECKPOINTS, list_checkpoints, load_weights
from petzval.training.loop import LoopConfig, Outcome, train
from petzval.training.ranks import Ranks
from petzval.training.state import RunState

_METRIC_SCENES = 96


def train_denoiser(
    recipe: DenoiserRecipe,
    folder: Path,
    tokenizer: PromptTokenizer,
    device: torch.device,
    start: Path | None,
    session: Session,
) -> bool:
    """Run the stages that are not finished yet, and leave the averaged weights as the result.

    Args:
        recipe: its autoencoder, encoder and latents are runs beside `folder`.
        folder: of the run; every stage has a folder in it.
        tokenizer: of the encoder.
        device: where the networks go.
        start: a checkpoint whose denoiser the first stage begins with.
        session: what the caller asked for.

    Returns:
        Whether all stages ran to their end.

    Raises:
        TrainingError: a run that is needed is missing, or `start` does not fit.
    """
    beside = folder.parent
    autoencoder = results.load_autoencoder(beside / recipe.autoencoder).to(device)
    encoder = results.load_encoder(beside / recipe.encoder, recipe.model.selected_layer_index)
    encoder.to(device)
    autoencoder_id = results.fingerprint(beside / recipe.autoencoder)
    previous: Path | None = None
    for number, stage in enumerate(recipe.stages):
        later = [
            list_checkpoints(folder / s.name / CHECKPOINTS) for s in recipe.stages[number + 1 :]
        ]
        if session.resume and any(later):
            previous = list_checkpoints(folder / stage.name / CHECKPOINTS)[-1]
            continue
        torch.manual_seed(recipe.seed)
        model = MMDiT(recipe.model)
        model.initialise()
        if start is not None:
            take_weights(model, start)
        model.to(device)
        stage_folder = folder / stage.name
        loop = session.apply(stage.loop, stage.minutes_share)
        state = session.state(model, loop, denoiser_layout(recipe.model))
        if previous is not None:
            load_weights(previous, state)
        pool = LatentPool(
            beside / recipe.latents,
            stage_folder / _ledger(session.ranks),
            rescan_steps=recipe.rescan_steps,
            autoencoder_id=autoencoder_id,
            plain_factor=stage.plain_factor,
            caption_draws=stage.caption_draws,
        )
        metric = None
        if stage.objective.visible_share > 0:
            metric = _metric(autoencoder, pool, stage, recipe.seed, session.ranks)
        objective = DenoiserObjective(
            model, encoder, tokenizer, pool, session.own(stage.objective), metric
        )
        outcome = _train_stage(recipe, stage, objective, autoencoder, state, loop, folder, session)
        if outcome.reason == "interrupted":
            return False
        previous = outcome.checkpoint
        assert state.ema is not None
        with state.ema.applied_to(model):
            results.save_result(folder, model, recipe.model, state.ranks)
        session.report(f"stage {stage.name} done; {folder / 'result'}")
    return True


def _ledger(ranks: Ranks) -> str:
    """Ranks look at the cache at their own moments, so each keeps its own ledger."""
    return "shards.jsonl" if ranks.is_first else f"shards-{ranks.rank}.jsonl"


def _metric(
    autoencoder: Autoencoder, pool: LatentPool, stage: DenoiserStage, seed: int, ranks: Ranks
) -> torch.Tensor:
    """What the decoder makes visible, on cached latents of the stage's smallest family.

    Ranks may have seen different shards, so the mean over them is taken.
    """
    grid = PRESETS[min(stage.objective.bases)]["1:1"].grid
    drawn = pool.draw(0, grid, _METRIC_SCENES, np.random.default_rng((seed, 5)))
    metric = visibility_metric(autoencoder, torch.stack([latents for latents, _ in drawn]), grid)
    total = torch.tensor(ranks.sum(metric.flatten().tolist())).view_as(metric)
    return total / ranks.size


def _train_stage(
    recipe: DenoiserRecipe,
    stage: DenoiserStage,
    objective: DenoiserObjective,
    autoencoder: Autoencoder,
    state: RunState,
    loop: LoopConfig,
    folder: Path,
    session: Session,
) -> Outcome:
    grid = PRESETS[max(stage.objective.bases)]["1:1"].grid

    def preview(state: RunState) -> dict[str, Path]:
        file = folder / "grids" / f"{stage.name}-{state.step:08d}.png"
        draw_grid(
            file,
            state,
            objective,
            autoencoder,
            PREVIEW_PROMPTS,
            grid,
            num_steps=recipe.preview_steps,
            guidance=recipe.preview_guidance,
        )
        return {"grid": file}

    return train(
        objective,
        state,
        loop,
        folder / stage.name,
        callbacks=[preview],
        resume=session.resume,
        report=session.report,
    )
