"""Build what a recipe says, distil, leave a checkpoint that draws in four steps.

run/
    recipe.json                                        what was asked for, and the teacher's name
    checkpoints/  metrics.jsonl  grids/  shards-0.jsonl
    checkpoint/                                        the result, in the published layout
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from petzval.config import read_json, to_mapping
from petzval.distill.build import Built, beginning, build
from petzval.distill.recipes import GuidanceRecipe, TurboRecipe, recipe_by_name
from petzval.errors import TrainingError
from petzval.inference.variants import CARD, Defaults, Located, locate
from petzval.pretrain.cache import list_shards
from petzval.pretrain.card import machine
from petzval.pretrain.preview import PREVIEW_PROMPTS, draw_grid
from petzval.pretrain.session import Report, Session, hash_of, record
from petzval.resolution import PRESETS
from petzval.training.loop import train
from petzval.training.parallel import full_state_dict
from petzval.training.ranks import join_ranks, launched_size
from petzval.training.state import RunState
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.writing import Component, save_with_denoiser

RESULT, TEACHER_CARD = "checkpoint", "training/teacher.md"
_RECORDS = "training/distill"
_STARTED_FROM = PurePosixPath(_RECORDS, "started_from")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillOutcome:
    """How a session ended.

    Attributes:
        interrupted: True if a signal stopped it; the same call goes on.
        checkpoint: the result; None if interrupted.
    """

    interrupted: bool
    checkpoint: Path | None


def distill(
    recipe: str | TurboRecipe | GuidanceRecipe,
    run_folder: Path,
    *,
    teacher: str | Path | None = None,
    latents: Path | None = None,
    start: Path | None = None,
    resume: bool = True,
    minutes: float | None = None,
    threads: int | None = None,
    device: str = "cpu",
    num_workers: int | None = None,
    report: Report = print,
) -> DistillOutcome:
    """Distil a checkpoint, or go on with it; export the average of the student's weights.

    Under torchrun the three networks are sharded over the ranks, and each draws its own batches.

    Args:
        recipe: one of `recipes.RECIPES`, or a value.
        run_folder: of this run; its teacher must be the same when it goes on.
        teacher: name of a variant, or a checkpoint folder; the recipe's own if None.
        latents: cache of encoded pictures and captions, made with the teacher's autoencoder;
            `latents` beside the run folder if None.
        start: a checkpoint folder whose denoiser the student begins with, such as an earlier
            student of the same teacher; None begins with the teacher's.
        resume: go on from the last state in the folder.
        minutes: overrides the recipe's; the total over all sessions of the run.
        threads: of arithmetic; None leaves torch's choice.
        device: "cpu", or "cuda" for one GPU, and under torchrun for one GPU a rank.
        num_workers: processes that make batches; overrides the recipe's.
        report: receives lines of progress.

    Raises:
        TrainingError: no teacher, no latents, no `start` where the recipe keeps a share of it or
            one of other sizes than the teacher's, or a folder of another teacher's run.
        RequestError, CheckpointError, ConfigError: the teacher or a setting cannot be used.
    """
    recipe_name = recipe if isinstance(recipe, str) else recipe.name
    recipe = recipe_by_name(recipe) if isinstance(recipe, str) else recipe
    chosen = teacher if teacher is not None else recipe.teacher
    if chosen is None:
        raise TrainingError(
            f"{recipe_name} has no teacher of its own", "name one: --teacher CHECKPOINT"
        )
    if start is None and isinstance(recipe, TurboRecipe) and recipe.start_share > 0:
        raise TrainingError(
            f"{recipe_name} keeps {recipe.start_share:.0%} of the student it begins with, "
            "and none is named",
            "name one that knows guidance: --start CHECKPOINT (petzval distill mini_guided)",
        )
    located = locate(chosen)
    checkpoint = Checkpoint.open(located.folder)
    cache = latents or run_folder.parent / "latents"
    if not list_shards(cache):
        raise TrainingError(
            f"{cache} holds no latents",
            "make some with the teacher's autoencoder (petzval pretrain mini_latents), "
            "or name their folder with --latents",
        )
    _refuse_other_teacher(run_folder, checkpoint.identity, resume=resume)
    if threads is not None:
        torch.set_num_threads(threads)
    parallel = recipe.loop.parallel
    joined = join_ranks(
        torch.device(device),
        replicate=parallel.replicate,
        timeout_minutes=parallel.timeout_minutes,
    )
    with joined as (ranks, place):
        session = Session(
            minutes=minutes,
            resume=resume,
            num_workers=num_workers,
            report=report if ranks.is_first else lambda line: None,
            ranks=ranks,
            config_hash=hash_of(recipe),
        )
        if ranks.is_first:
            asked = {
                "minutes": minutes,
                "threads": threads,
                "device": device,
                "machine": machine(),
                "processes": launched_size(),
                "teacher": located.name,
                "identity": checkpoint.identity,
                "start": None if start is None else Checkpoint.open(start).identity,
            }
            run_folder.mkdir(parents=True, exist_ok=True)
            record(run_folder, recipe_name, {"session": asked, **to_mapping(recipe)})
        ranks.wait()
        run = _Run(
            recipe=recipe,
            located=located,
            checkpoint=checkpoint,
            start=start,
            folder=run_folder,
            built=build(recipe, checkpoint, cache, start, run_folder, place, session),
        )
        outcome = train(
            run.built.objective,
            run.built.state,
            session.apply(recipe.loop),
            run_folder,
            callbacks=[run.preview],
            resume=resume,
            report=session.report,
        )
        if outcome.reason == "interrupted":
            return DistillOutcome(interrupted=True, checkpoint=None)
        return DistillOutcome(interrupted=False, checkpoint=run.export())


def _refuse_other_teacher(run_folder: Path, identity: str, *, resume: bool) -> None:
    path = run_folder / "recipe.json"
    if not resume or not path.is_file():
        return
    session = read_json(path).get("session", {})
    if session.get("identity") != identity:
        raise TrainingError(
            f"{run_folder} is the run of another teacher, {session.get('teacher')}",
            "name that teacher, another folder, or begin anew with --restart",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What was built, with what it was built from."""

    recipe: TurboRecipe | GuidanceRecipe
    located: Located
    checkpoint: Checkpoint
    start: Path | None
    folder: Path
    built: Built

    def preview(self, state: RunState) -> dict[str, Path]:
        """A grid of pictures as the result would draw them."""
        base = self.recipe.preview_base or self.located.defaults.base
        grid = PRESETS[base]["1:1"].grid
        file = self.folder / "grids" / f"{state.step:08d}.png"
        draw_grid(
            file,
            state,
            self.built.source,
            self.built.autoencoder,
            PREVIEW_PROMPTS,
            grid,
            num_steps=self.recipe.objective.num_steps,
            guidance=1.0,
        )
        return {"grid": file}

    def export(self) -> Path:
        """Write the averaged student in the teacher's checkpoint; all ranks must call it."""
        state, student = self.built.state, self.built.student
        folder = self.folder / RESULT
        stored = self.checkpoint.denoiser_source.infos["proj_out.weight"].torch_dtype
        assert state.ema is not None
        with state.ema.applied_to(student):
            tensors = full_state_dict(student, state.ranks)
        if state.ranks.is_first:
            tensors = self._with_start(tensors)
            save_with_denoiser(
                folder,
                self.located.folder,
                Component(
                    config=student.config,
                    state={name: tensor.to(stored) for name, tensor in tensors.items()},
                ),
                _texts(self.recipe, self.located, state.step, self.folder, self.start),
            )
        state.ranks.wait()
        return folder

    def _with_start(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moved by `start_share` towards what the student began with."""
        share = self.recipe.start_share if isinstance(self.recipe, TurboRecipe) else 0.0
        if share == 0:
            return tensors
        begun = beginning(self.checkpoint, self.start, torch.device("cpu")).state_dict()
        return {
            name: tensor.float().lerp(begun[name].to(tensor.device), share)
            for name, tensor in tensors.items()
        }


def _texts(
    recipe: TurboRecipe | GuidanceRecipe,
    teacher: Located,
    num_steps: int,
    folder: Path,
    start: Path | None,
) -> dict[str, str]:
    """Settings, card and log of the result, those of what it began with, its teacher's card."""
    steps = recipe.objective.num_steps
    wanted = Defaults(steps=steps, guidance=1.0, base=teacher.defaults.base)
    settings = {"name": recipe.name, **to_mapping(wanted)}
    shared = ""
    if isinstance(recipe, TurboRecipe) and recipe.start_share > 0:
        shared = f", and to {recipe.start_share:.0%} those that it began with"
    card = f"""# {recipe.name}

{teacher.name}, distilled to {steps} steps without guidance: {num_steps} iterations of
`petzval distill`{"" if start is None else ", beginning with an earlier student"}.

    petzval generate "a red apple on a white background" --model FOLDER

- [training/distill/](training/distill): settings, machine and log. The weights are the average of
  the student's over the last iterations{shared}.
- Text encoder, autoencoder, tokenizer and schedule are those of its teacher, and so is what it
  knows of words and pictures: {TEACHER_CARD} is the teacher's card.
- `petzval compare` measures it against its teacher.
"""
    files = {"README.md": card, CARD: json.dumps(settings, indent=2) + "\n"}
    told = teacher.folder / "README.md"
    if told.is_file():
        files[TEACHER_CARD] = told.read_text(encoding="utf-8")
    files |= _records(folder, _RECORDS)
    if start is not None:
        earlier = start / _RECORDS
        for source in (earlier, *earlier.glob("**/started_from")):
            inner = source.relative_to(earlier)
            files |= _records(source, (_STARTED_FROM / inner).as_posix())
    return files


def _records(source: Path, target: str) -> dict[str, str]:
    """A run's own, under their names in its result."""
    found = (source / name for name in ("recipe.json", "metrics.jsonl"))
    return {f"{target}/{file.name}": file.read_text("utf-8") for file in found if file.is_file()}
