"""One door for all recipes: build what the recipe says, train, leave the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import from_mapping, read_json, to_mapping
from petzval.errors import TrainingError
from petzval.inference.variants import locate
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.pretrain import results
from petzval.pretrain.cache import LatentPool, Weigh, missing_shards, write_shard
from petzval.pretrain.card import machine
from petzval.pretrain.denoiser import DenoiserObjective
from petzval.pretrain.export import export_checkpoint
from petzval.pretrain.language_model import (
    CausalLanguageModel,
    LanguageModelObjective,
    initialise_language_model,
)
from petzval.pretrain.metric import visibility_metric
from petzval.pretrain.preview import PREVIEW_PROMPTS, reconstruct, sample_pictures
from petzval.pretrain.recipes import (
    AutoencoderRecipe,
    DenoiserRecipe,
    DenoiserStage,
    ExportRecipe,
    LanguageModelRecipe,
    LatentsRecipe,
    Scenes,
    TokenizerRecipe,
    UnpackRecipe,
    recipe_by_name,
)
from petzval.pretrain.scenes import ColouredSquares, SceneSource, SpriteScenes, to_tensor
from petzval.pretrain.tokenizer import build_mini_tokenizer
from petzval.pretrain.unpack import unpack_checkpoint
from petzval.pretrain.vae import (
    AutoencoderObjective,
    fit_statistics,
    initialise_autoencoder,
    statistics_images,
)
from petzval.resolution import PRESETS, Resolution
from petzval.training.checkpoint import CHECKPOINTS, list_checkpoints, load_weights
from petzval.training.ema import Ema
from petzval.training.loop import LoopConfig, Outcome, train
from petzval.training.optimizer import build_optimizers
from petzval.training.pictures import save_grid
from petzval.training.state import RunState
from petzval.weights.checkpoint import Checkpoint

Report = Callable[[str], None]
_METRIC_SCENES = 96
_RUN_FACTS = ("recipe", "torch", "session")
HELD_BACK = 10**9
"""Scene indices from here on are never trained on; previews and held-out losses use them."""


def run(
    recipe_name: str,
    *,
    data_folder: Path,
    run_folder: Path,
    tokenizer_folder: Path | None = None,
    resume: bool = True,
    minutes: float | None = None,
    threads: int | None = None,
    device: str = "cpu",
    shards: tuple[int, int] | None = None,
    num_workers: int | None = None,
    start: Path | None = None,
    report: Report = print,
) -> Path:
    """Run a recipe to its end, or to the end of its time.

    Args:
        recipe_name: one of `recipes.RECIPES`.
        data_folder: written by `petzval data build`; toy recipes never open it.
        run_folder: of this run. A denoiser finds the runs it needs beside it.
        tokenizer_folder: of `tokenizer.json`; `tokenizer` beside the run folder if None.
        resume: go on from the last state in the folder.
        minutes: overrides the recipe's; the total over all sessions of the run.
        threads: of arithmetic; None leaves torch's choice.
        device: "cpu", or "cuda" for one GPU.
        shards: (first, stop) limits a latents recipe to a part of its shards.
        num_workers: processes that make batches; overrides the recipe's.
        start: a checkpoint folder in the published layout whose denoiser a denoiser recipe begins
            with, in place of random weights (averages and optimizer are fresh), or that an unpack
            recipe takes apart.
        report: receives lines of progress.

    Returns:
        The run folder.

    Raises:
        TrainingError: something the recipe needs is missing, or `start` does not fit it.
    """
    recipe = recipe_by_name(recipe_name)
    if isinstance(recipe, UnpackRecipe):
        folder = start or locate(recipe.model).folder
        for written in unpack_checkpoint(folder, run_folder.parent, recipe.settings):
            report(f"{written} from {folder}")
        return run_folder.parent
    if start is not None and not isinstance(recipe, DenoiserRecipe):
        raise TrainingError(
            f"{recipe_name} trains no denoiser and cannot start from a checkpoint",
            "start is for denoiser recipes, such as mini_denoiser",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    tokenizer = tokenizer_folder or run_folder.parent / "tokenizer"
    options = _Options(minutes=minutes, resume=resume, num_workers=num_workers, report=report)
    if isinstance(recipe, TokenizerRecipe):
        built = build_mini_tokenizer(data_folder, run_folder, num_ids=recipe.num_ids)
        report(f"tokenizer done; {built.num_ids} ids; {run_folder}")
        return run_folder
    if isinstance(recipe, ExportRecipe):
        return export_checkpoint(
            run_folder.parent, run_folder, recipe.settings, data_folder=data_folder
        )
    run_folder.mkdir(parents=True, exist_ok=True)
    session = {
        "minutes": minutes,
        "threads": threads,
        "device": device,
        "machine": machine(),
        "start": None if start is None else str(start),
    }
    _record(run_folder, recipe_name, {"session": session, **to_mapping(recipe)})
    if isinstance(recipe, AutoencoderRecipe):
        _train_autoencoder(recipe, data_folder, run_folder, place, options)
    elif isinstance(recipe, LanguageModelRecipe):
        _train_language_model(
            recipe, data_folder, run_folder, PromptTokenizer(tokenizer), place, options
        )
    elif isinstance(recipe, LatentsRecipe):
        _make_latents(recipe, data_folder, run_folder, place, shards, report)
    else:
        _train_denoiser(
            recipe, data_folder, run_folder, PromptTokenizer(tokenizer), place, start, options
        )
    return run_folder


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    minutes: float | None
    resume: bool
    num_workers: int | None
    report: Report

    def apply(self, loop: LoopConfig, share: float = 1.0) -> LoopConfig:
        changes: dict[str, float | int] = {}
        if self.minutes is not None:
            changes["minutes"] = self.minutes * share
        if self.num_workers is not None:
            changes["num_workers"] = self.num_workers
        return dataclasses.replace(loop, **changes)


def _record(run_folder: Path, name: str, recipe: Mapping[str, object]) -> None:
    """The resolved recipe beside what it makes."""
    text = json.dumps({"recipe": name, "torch": torch.__version__, **recipe}, indent=1)
    (run_folder / "recipe.json").write_text(text, encoding="utf-8")


def _scenes(kind: Scenes, data_folder: Path, seed: int) -> SceneSource:
    return SpriteScenes(data_folder, seed) if kind == "sprites" else ColouredSquares(seed)


def _state(model: torch.nn.Module, loop: LoopConfig) -> RunState:
    return RunState(
        model=model,
        optimizers=build_optimizers(model, loop.optimizer),
        ema=Ema(model, loop.ema_decay),
    )


def _train_autoencoder(
    recipe: AutoencoderRecipe,
    data_folder: Path,
    folder: Path,
    device: torch.device,
    options: _Options,
) -> None:
    torch.manual_seed(recipe.seed)
    loop = options.apply(recipe.loop)
    model = Autoencoder(recipe.model)
    initialise_autoencoder(model)
    model.to(device)
    scenes = _scenes(recipe.scenes, data_folder, recipe.seed)
    objective = AutoencoderObjective(model, scenes, recipe.objective)
    state = _state(model, loop)
    size = PRESETS[recipe.objective.bases[0]]["1:1"]
    shown = torch.stack([to_tensor(scenes.pixels(HELD_BACK + i, size)) for i in range(8)])

    def preview(state: RunState) -> dict[str, float]:
        assert state.ema is not None
        with state.ema.applied_to(model):
            decoded = reconstruct(model, shown.to(device)).cpu()
        square = (decoded.clamp(-1, 1) - shown).square().mean()
        save_grid(folder / "grids" / f"{state.step:08d}.png", [*shown, *decoded], 8)
        return {"held_out_psnr": float(10 * torch.log10(4 / square))}

    outcome = train(
        objective,
        state,
        loop,
        folder,
        callbacks=[preview],
        resume=options.resume,
        report=options.report,
    )
    if outcome.reason == "interrupted":
        return
    assert state.ema is not None
    with state.ema.applied_to(model):
        images = statistics_images(
            scenes, recipe.objective.bases, recipe.num_statistics, HELD_BACK + 8
        )
        num_tokens = fit_statistics(model, images)
        results.save_result(folder, model, recipe.model)
    options.report(f"autoencoder done; statistics of {num_tokens} tokens; {folder / 'result'}")


def _train_language_model(
    recipe: LanguageModelRecipe,
    data_folder: Path,
    folder: Path,
    tokenizer: PromptTokenizer,
    device: torch.device,
    options: _Options,
) -> None:
    torch.manual_seed(recipe.seed)
    loop = options.apply(recipe.loop)
    config = dataclasses.replace(recipe.model, vocab_size=tokenizer.num_ids)
    model = CausalLanguageModel(config)
    initialise_language_model(model)
    model.to(device)
    scenes = _scenes(recipe.scenes, data_folder, recipe.seed)
    objective = LanguageModelObjective(model, scenes, tokenizer, recipe.objective)
    state = _state(model, loop)

    def held_out(state: RunState) -> dict[str, float]:
        assert state.ema is not None
        with state.ema.applied_to(model):
            losses = objective.final_turn_losses(320, HELD_BACK)
        return {f"final_turn_{language}": loss for language, loss in losses.items()}

    outcome = train(
        objective,
        state,
        loop,
        folder,
        callbacks=[held_out],
        resume=options.resume,
        report=options.report,
    )
    if outcome.reason == "interrupted":
        return
    assert state.ema is not None
    with state.ema.applied_to(model):
        results.save_result(folder, model.encoder, config)
        results.save_final_norm(folder, model.norm.weight)
    options.report(f"text encoder done; {folder / 'result'}")


def _make_latents(
    recipe: LatentsRecipe,
    data_folder: Path,
    folder: Path,
    device: torch.device,
    limits: tuple[int, int] | None,
    report: Report,
) -> None:
    run_folder = folder.parent / recipe.autoencoder
    autoencoder = results.load_autoencoder(run_folder).to(device)
    autoencoder_id = results.fingerprint(run_folder)
    first, stop = limits or (0, 10**9)
    for part in recipe.parts:
        scenes = _scenes(recipe.scenes, data_folder, recipe.seed + part.seed)
        numbers = [n for n in missing_shards(folder, part) if first <= n < stop]
        for number in numbers:
            path = write_shard(
                folder, part, number, scenes, autoencoder, autoencoder_id=autoencoder_id
            )
            report(f"{path.name}: {part.shard_size} scenes")


def _train_denoiser(
    recipe: DenoiserRecipe,
    data_folder: Path,
    folder: Path,
    tokenizer: PromptTokenizer,
    device: torch.device,
    start: Path | None,
    options: _Options,
) -> None:
    beside = folder.parent
    autoencoder = results.load_autoencoder(beside / recipe.autoencoder).to(device)
    encoder = results.load_encoder(beside / recipe.encoder, recipe.model.selected_layer_index)
    encoder.to(device)
    autoencoder_id = results.fingerprint(beside / recipe.autoencoder)
    is_plain = _plainness(beside / recipe.latents, recipe.scenes, data_folder)
    previous: Path | None = None
    for number, stage in enumerate(recipe.stages):
        later = [
            list_checkpoints(folder / s.name / CHECKPOINTS) for s in recipe.stages[number + 1 :]
        ]
        if options.resume and any(later):
            previous = list_checkpoints(folder / stage.name / CHECKPOINTS)[-1]
            continue
        torch.manual_seed(recipe.seed)
        model = MMDiT(recipe.model)
        model.initialise()
        if start is not None:
            _take_weights(model, start)
        model.to(device)
        stage_folder = folder / stage.name
        loop = options.apply(stage.loop, stage.minutes_share)
        state = _state(model, loop)
        if previous is not None:
            load_weights(previous, state)
        pool = LatentPool(
            beside / recipe.latents,
            stage_folder / "shards.jsonl",
            rescan_steps=recipe.rescan_steps,
            autoencoder_id=autoencoder_id,
            weigh=None if stage.plain_factor == 1 else _weigh(stage.plain_factor, is_plain),
            caption_draws=stage.caption_draws,
        )
        metric = None
        if stage.objective.visible_share > 0:
            metric = _metric(autoencoder, pool, stage, recipe.seed)
        objective = DenoiserObjective(model, encoder, tokenizer, pool, stage.objective, metric)
        outcome = _train_stage(recipe, stage, objective, autoencoder, state, loop, folder, options)
        if outcome.reason == "interrupted":
            return
        previous = outcome.checkpoint
        assert state.ema is not None
        with state.ema.applied_to(model):
            results.save_result(folder, model, recipe.model)
        options.report(f"stage {stage.name} done; {folder / 'result'}")


def _weigh(factor: float, is_plain: Callable[[int, int, Resolution], bool]) -> Weigh:
    return lambda base, index, size: factor if is_plain(base, index, size) else 1.0


def _plainness(
    latents: Path, kind: Scenes, data_folder: Path
) -> Callable[[int, int, Resolution], bool]:
    """Family, index and size of a cached scene → whether it is plain, by the cache's own recipe."""
    recipe = from_mapping(
        LatentsRecipe,
        {k: v for k, v in read_json(latents / "recipe.json").items() if k not in _RUN_FACTS},
        where=str(latents / "recipe.json"),
    )
    seeds = {part.base: recipe.seed + part.seed for part in recipe.parts}
    sources = {base: _scenes(kind, data_folder, seed) for base, seed in seeds.items()}
    return lambda base, index, size: sources[base].is_plain(index, size)


def _metric(
    autoencoder: Autoencoder, pool: LatentPool, stage: DenoiserStage, seed: int
) -> torch.Tensor:
    """What the decoder makes visible, on cached latents of the stage's smallest family."""
    grid = PRESETS[min(stage.objective.bases)]["1:1"].grid
    drawn = pool.draw(0, grid, _METRIC_SCENES, np.random.default_rng((seed, 5)))
    return visibility_metric(autoencoder, torch.stack([latents for latents, _ in drawn]), grid)


def _take_weights(model: MMDiT, start: Path) -> None:
    """Begin with the denoiser of a checkpoint in the published layout, of any float type."""
    checkpoint = Checkpoint.open(start)
    # `inner_dim` is written for other programs and decides nothing.
    if dataclasses.replace(checkpoint.denoiser_config, inner_dim=None) != model.config:
        raise TrainingError(
            f"the denoiser of {start} has another size than the recipe's: "
            f"{checkpoint.denoiser_config}",
            "use a recipe for that size",
        )
    model.load_state_dict(checkpoint.load_denoiser(torch.float32).state_dict())


def _train_stage(
    recipe: DenoiserRecipe,
    stage: DenoiserStage,
    objective: DenoiserObjective,
    autoencoder: Autoencoder,
    state: RunState,
    loop: LoopConfig,
    folder: Path,
    options: _Options,
) -> Outcome:
    grid = PRESETS[max(stage.objective.bases)]["1:1"].grid

    def preview(state: RunState) -> dict[str, float]:
        assert state.ema is not None
        with state.ema.applied_to(objective.model):
            pictures = sample_pictures(
                objective,
                autoencoder,
                PREVIEW_PROMPTS,
                grid,
                num_steps=recipe.preview_steps,
                guidance=recipe.preview_guidance,
            )
        name = f"{stage.name}-{state.step:08d}.png"
        save_grid(folder / "grids" / name, [picture.cpu() for picture in pictures], 6)
        return {}

    return train(
        objective,
        state,
        loop,
        folder / stage.name,
        callbacks=[preview],
        resume=options.resume,
        report=options.report,
    )
