"""One door for all recipes: build what the recipe says, train, leave the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import to_mapping
from petzval.errors import TrainingError
from petzval.inference.variants import locate
from petzval.models.vae import Autoencoder
from petzval.pretrain import results
from petzval.pretrain.cache import missing_shards, write_shard
from petzval.pretrain.card import machine
from petzval.pretrain.denoiser_run import train_denoiser
from petzval.pretrain.export import export_checkpoint
from petzval.pretrain.language_model import (
    CausalLanguageModel,
    LanguageModelObjective,
    initialise_language_model,
)
from petzval.pretrain.preview import reconstruct
from petzval.pretrain.recipe import (
    AutoencoderRecipe,
    CorpusRecipe,
    DenoiserRecipe,
    ExportRecipe,
    LanguageModelRecipe,
    LatentsRecipe,
    TokenizerRecipe,
    UnpackRecipe,
)
from petzval.pretrain.recipes import recipe_by_name
from petzval.pretrain.scenes import scene_source, to_tensor
from petzval.pretrain.session import Report, Session, hash_of, record
from petzval.pretrain.tokenizer import build_mini_tokenizer
from petzval.pretrain.unpack import unpack_checkpoint
from petzval.pretrain.vae import (
    AutoencoderObjective,
    fit_statistics,
    initialise_autoencoder,
    statistics_images,
)
from petzval.resolution import PRESETS
from petzval.training.loop import train
from petzval.training.parallel import Compile, full_tensor
from petzval.training.pictures import save_grid
from petzval.training.ranks import join_ranks, launched_size
from petzval.training.state import RunState
from petzval.training.watch import interruption

HELD_BACK = 10**9
"""Scene indices from here on are never trained on; previews and held-out losses use them."""
_TRAINING = (AutoencoderRecipe, LanguageModelRecipe, DenoiserRecipe, CorpusRecipe)


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
    model: str | Path | None = None,
    latents: Path | None = None,
    compile: Compile | None = None,
    report: Report = print,
) -> Path:
    """Run a recipe to its end, or to the end of its time.

    Under torchrun a training recipe shares its work: each rank draws batches of its own from a seed
    of its own (the first one those of a run of one process), and the first one writes.

    Args:
        recipe_name: one of `recipes.RECIPES`.
        data_folder: written by `petzval data build`, and for a corpus recipe by
            `petzval data shard`; toy recipes never open it.
        run_folder: of this run. A denoiser finds the runs it needs beside it.
        tokenizer_folder: of `tokenizer.json`; `tokenizer` beside the run folder if None.
        resume: go on from the last state in the folder.
        minutes: overrides the recipe's; the total over all sessions of the run.
        threads: of arithmetic; None leaves torch's choice.
        device: "cpu", or "cuda" for one GPU, and under torchrun for one GPU a rank.
        shards: (first, stop) limits a latents recipe to a part of its shards.
        num_workers: processes that make batches; overrides the recipe's.
        start: a checkpoint folder in the published layout whose denoiser a denoiser recipe begins
            with, in place of random weights (averages and optimizer are fresh), or that an unpack
            recipe takes apart.
        model: name or folder of the checkpoint whose frozen networks a corpus recipe uses; mini if
            None.
        latents: folder where a corpus recipe keeps latents; None encodes every time.
        compile: overrides how the recipe compiles a denoiser's blocks (`ParallelConfig.compile`);
            a run may go on with another.
        report: receives lines of progress.

    Returns:
        The run folder.

    Raises:
        TrainingError: something the recipe needs is missing, `start` does not fit it, or torchrun
            started several processes for a recipe that trains nothing.
        DataError: there are no shards, or not those that the recipe takes.
        ConfigError: no such recipe, or a number of processes that cannot share its work alike.
        KeyboardInterrupt: SIGINT or SIGTERM ended the training, after a whole step and with a
            checkpoint; the same call goes on.
    """
    recipe = recipe_by_name(recipe_name)
    if launched_size() > 1 and not isinstance(recipe, _TRAINING):
        raise TrainingError(
            f"{recipe_name} trains nothing and runs in one process; torchrun started "
            f"{launched_size()}",
            f"run it without torchrun: petzval pretrain {recipe_name}",
        )
    if isinstance(recipe, UnpackRecipe):
        folder = start or locate(recipe.model).folder
        for written in unpack_checkpoint(folder, run_folder.parent, recipe.settings):
            report(f"{written} from {folder}")
        return run_folder.parent
    if start is not None and not isinstance(recipe, DenoiserRecipe | CorpusRecipe):
        raise TrainingError(
            f"{recipe_name} trains no denoiser and cannot start from a checkpoint",
            "start is for denoiser recipes, such as mini_denoiser and lens_base_stage2",
        )
    if (model, latents) != (None, None) and not isinstance(recipe, CorpusRecipe):
        raise TrainingError(
            f"{recipe_name} does not train on shards with a checkpoint's frozen networks",
            "model and latents are for corpus recipes, such as smoke_corpus and lens_base_stage1",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    tokenizer = tokenizer_folder or run_folder.parent / "tokenizer"
    if isinstance(recipe, TokenizerRecipe):
        built = build_mini_tokenizer(data_folder, run_folder, num_ids=recipe.num_ids)
        report(f"tokenizer done; {built.num_ids} ids; {run_folder}")
        return run_folder
    if isinstance(recipe, ExportRecipe):
        return export_checkpoint(
            run_folder.parent, run_folder, recipe.settings, data_folder=data_folder
        )
    sources = None
    if isinstance(recipe, CorpusRecipe):
        # Needs the extra `data`, which the other recipes do without.
        from petzval.pretrain import corpus_run

        sources = corpus_run.open_sources(
            recipe, data_folder, model or "mini", latents, launched_size()
        )
    run_folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "minutes": minutes,
        "threads": threads,
        "compile": compile,
        "device": device,
        "machine": machine(),
        "processes": launched_size(),
        "start": None if start is None else str(start),
        **({} if sources is None else {"model": str(sources.located.folder)}),
    }
    if isinstance(recipe, LatentsRecipe):
        record(run_folder, recipe_name, {"session": asked, **to_mapping(recipe)})
        _make_latents(recipe, data_folder, run_folder, place, shards, report)
        return run_folder
    first = recipe.stages[0].loop if isinstance(recipe, DenoiserRecipe) else recipe.loop
    joined = join_ranks(
        place,
        replicate=first.parallel.replicate,
        timeout_minutes=first.parallel.timeout_minutes,
    )
    with joined as (ranks, place):
        if ranks.is_first:
            record(run_folder, recipe_name, {"session": asked, **to_mapping(recipe)})
        session = Session(
            minutes=minutes,
            resume=resume,
            num_workers=num_workers,
            report=report if ranks.is_first else lambda line: None,
            ranks=ranks,
            config_hash=hash_of(recipe),
            compile=compile,
        )
        if isinstance(recipe, CorpusRecipe):
            from petzval.pretrain import corpus_run

            assert sources is not None
            is_whole = corpus_run.train_corpus(
                recipe, recipe_name, sources, run_folder, place, start, session
            )
        elif isinstance(recipe, AutoencoderRecipe):
            is_whole = _train_autoencoder(recipe, data_folder, run_folder, place, session)
        elif isinstance(recipe, LanguageModelRecipe):
            is_whole = _train_language_model(
                recipe, data_folder, run_folder, PromptTokenizer(tokenizer), place, session
            )
        else:
            is_whole = train_denoiser(
                recipe, run_folder, PromptTokenizer(tokenizer), place, start, session
            )
    if not is_whole:
        session.report("stopped after a whole step; the same command goes on")
        raise interruption()
    return run_folder


def _train_autoencoder(
    recipe: AutoencoderRecipe,
    data_folder: Path,
    folder: Path,
    device: torch.device,
    session: Session,
) -> bool:
    """Whether it ran to its end."""
    torch.manual_seed(recipe.seed)
    loop = session.apply(recipe.loop)
    model = Autoencoder(recipe.model)
    initialise_autoencoder(model)
    model.to(device)
    scenes = scene_source(recipe.scenes, data_folder, recipe.seed)
    objective = AutoencoderObjective(model, scenes, session.own(recipe.objective))
    state = session.state(model, loop)
    size = PRESETS[recipe.objective.bases[0]]["1:1"]
    shown = torch.stack([to_tensor(scenes.pixels(HELD_BACK + i, size)) for i in range(8)])

    def preview(state: RunState) -> dict[str, float | Path]:
        file = folder / "grids" / f"{state.step:08d}.png"
        assert state.ema is not None
        with state.ema.applied_to(model):
            decoded = state.evaluate(lambda: reconstruct(model, shown.to(device))).cpu()
        square = (decoded.clamp(-1, 1) - shown).square().mean()
        if state.ranks.is_first:
            save_grid(file, [*shown, *decoded], 8)
        return {"held_out_psnr": float(10 * torch.log10(4 / square)), "grid": file}

    outcome = train(
        objective,
        state,
        loop,
        folder,
        callbacks=[preview],
        resume=session.resume,
        report=session.report,
    )
    if outcome.reason == "interrupted":
        return False
    assert state.ema is not None
    with state.ema.applied_to(model):
        images = statistics_images(
            scenes, recipe.objective.bases, recipe.num_statistics, HELD_BACK + 8
        )
        num_tokens = state.evaluate(lambda: fit_statistics(model, images))
        results.save_result(folder, model, recipe.model, state.ranks)
    session.report(f"autoencoder done; statistics of {num_tokens} tokens; {folder / 'result'}")
    return True


def _train_language_model(
    recipe: LanguageModelRecipe,
    data_folder: Path,
    folder: Path,
    tokenizer: PromptTokenizer,
    device: torch.device,
    session: Session,
) -> bool:
    """Whether it ran to its end."""
    torch.manual_seed(recipe.seed)
    loop = session.apply(recipe.loop)
    config = dataclasses.replace(recipe.model, vocab_size=tokenizer.num_ids)
    model = CausalLanguageModel(config)
    initialise_language_model(model)
    model.to(device)
    scenes = scene_source(recipe.scenes, data_folder, recipe.seed)
    settings = session.own(recipe.objective)
    objective = LanguageModelObjective(model, scenes, tokenizer, settings)
    state = session.state(model, loop)

    def held_out(state: RunState) -> dict[str, float]:
        assert state.ema is not None
        with state.ema.applied_to(model):
            losses = state.evaluate(lambda: objective.final_turn_losses(320, HELD_BACK))
        return {f"final_turn_{language}": loss for language, loss in losses.items()}

    outcome = train(
        objective,
        state,
        loop,
        folder,
        callbacks=[held_out],
        resume=session.resume,
        report=session.report,
    )
    if outcome.reason == "interrupted":
        return False
    assert state.ema is not None
    with state.ema.applied_to(model):
        results.save_result(folder, model.encoder, config, state.ranks)
        norm = full_tensor(model.norm.weight.detach())
        if state.ranks.is_first:
            results.save_final_norm(folder, norm)
    session.report(f"text encoder done; {folder / 'result'}")
    return True


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
        scenes = scene_source(recipe.scenes, data_folder, recipe.seed + part.seed)
        numbers = [n for n in missing_shards(folder, part) if first <= n < stop]
        for number in numbers:
            path = write_shard(
                folder, part, number, scenes, autoencoder, autoencoder_id=autoencoder_id
            )
            report(f"{path.name}: {part.shard_size} scenes")
