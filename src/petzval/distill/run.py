"""Build what a recipe says, distil, leave a checkpoint that draws in four steps.

run/
    recipe.json                                        what was asked for, and the teacher's name
    checkpoints/  metrics.jsonl  grids/  shards-0.jsonl
    checkpoint/                                        the result, in the published layout
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import read_json, to_mapping
from petzval.distill.conditions import Network, denoiser_velocity
from petzval.distill.discriminator import Discriminator, denoiser_features
from petzval.distill.fake_score import align, as_fake_score, fake_score_layout
from petzval.distill.objective import FAKE, HEADS, DistillationObjective, Judge
from petzval.distill.recipes import TurboRecipe, recipe_by_name
from petzval.errors import TrainingError
from petzval.inference.variants import CARD, Defaults, Located, locate
from petzval.models.flops import forward_flops
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.vae import Autoencoder
from petzval.pretrain import results
from petzval.pretrain.cache import LatentPool, list_shards
from petzval.pretrain.card import machine
from petzval.pretrain.denoiser import DenoiserBatch, DenoiserObjective
from petzval.pretrain.layout import denoiser_layout
from petzval.pretrain.preview import PREVIEW_PROMPTS, draw_grid
from petzval.pretrain.session import Report, Session, hash_of, record
from petzval.pretrain.start import take_weights
from petzval.resolution import PRESETS
from petzval.training.loop import LoopConfig, train
from petzval.training.optimizer import build_optimizers
from petzval.training.parallel import Shell, full_state_dict, parallelize
from petzval.training.ranks import join_ranks, launched_size
from petzval.training.state import Part, RunState
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.writing import Component, save_with_denoiser

RESULT, TEACHER_CARD = "checkpoint", "training/teacher.md"
_RECORDS = "training/distill"


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
    recipe: str | TurboRecipe,
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
        TrainingError: no teacher, no latents, a `start` of other sizes than the teacher's, or a
            folder that holds the run of another teacher.
        RequestError, CheckpointError, ConfigError: the teacher or a setting cannot be used.
    """
    recipe_name = recipe if isinstance(recipe, str) else recipe.name
    recipe = recipe_by_name(recipe) if isinstance(recipe, str) else recipe
    chosen = teacher if teacher is not None else recipe.teacher
    if chosen is None:
        raise TrainingError(
            f"{recipe_name} has no teacher of its own", "name one: --teacher CHECKPOINT"
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
        run = _build(recipe, located, checkpoint, cache, start, run_folder, place, session)
        outcome = train(
            run.objective,
            run.state,
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
    """All that a session works with."""

    recipe: TurboRecipe
    located: Located
    checkpoint: Checkpoint
    start: Path | None
    autoencoder: Autoencoder
    student: MMDiT
    source: DenoiserObjective
    objective: DistillationObjective
    state: RunState
    folder: Path

    def preview(self, state: RunState) -> dict[str, Path]:
        """A grid of pictures as the result would draw them."""
        base = self.recipe.preview_base or self.located.defaults.base
        grid = PRESETS[base]["1:1"].grid
        file = self.folder / "grids" / f"{state.step:08d}.png"
        draw_grid(
            file,
            state,
            self.source,
            self.autoencoder,
            PREVIEW_PROMPTS,
            grid,
            num_steps=self.recipe.objective.num_steps,
            guidance=1.0,
        )
        return {"grid": file}

    def export(self) -> Path:
        """Write the averaged student in the teacher's checkpoint; all ranks must call it."""
        state, folder = self.state, self.folder / RESULT
        stored = self.checkpoint.denoiser_source.infos["proj_out.weight"].torch_dtype
        assert state.ema is not None
        with state.ema.applied_to(self.student):
            tensors = full_state_dict(self.student, state.ranks)
        if state.ranks.is_first:
            save_with_denoiser(
                folder,
                self.located.folder,
                Component(
                    config=self.student.config,
                    state={name: tensor.to(stored) for name, tensor in tensors.items()},
                ),
                _texts(self.recipe, self.located, state.step, self.folder, self.start),
            )
        state.ranks.wait()
        return folder


def _texts(
    recipe: TurboRecipe, teacher: Located, num_steps: int, folder: Path, start: Path | None
) -> dict[str, str]:
    """Settings, card and log of the result, those of what it began with, its teacher's card."""
    steps = recipe.objective.num_steps
    wanted = Defaults(steps=steps, guidance=1.0, base=teacher.defaults.base)
    settings = {"name": recipe.name, **to_mapping(wanted)}
    card = f"""# {recipe.name}

{teacher.name}, distilled to {steps} steps without guidance: {num_steps} iterations of
`petzval distill`{"" if start is None else ", beginning with an earlier student"}.

    petzval generate "a red apple on a white background" --model FOLDER

- [training/distill/](training/distill): settings, machine and log. The weights are the average of
  the student's over the last iterations.
- Text encoder, autoencoder, tokenizer and schedule are those of its teacher, and so is what it
  knows of words and pictures: {TEACHER_CARD} is the teacher's card.
- `petzval compare` measures it against its teacher.
"""
    files = {"README.md": card, CARD: json.dumps(settings, indent=2) + "\n"}
    told = teacher.folder / "README.md"
    if told.is_file():
        files[TEACHER_CARD] = told.read_text(encoding="utf-8")
    records = {_RECORDS: folder}
    if start is not None:
        records[f"{_RECORDS}/started_from"] = start / _RECORDS
    for target, source in records.items():
        for name in ("recipe.json", "metrics.jsonl"):
            if (source / name).is_file():
                files[f"{target}/{name}"] = (source / name).read_text(encoding="utf-8")
    return files


def _build(
    recipe: TurboRecipe,
    located: Located,
    checkpoint: Checkpoint,
    cache: Path,
    start: Path | None,
    folder: Path,
    device: torch.device,
    session: Session,
) -> _Run:
    torch.manual_seed(recipe.seed)
    ranks, loop = session.ranks, session.apply(recipe.loop)
    frozen = torch.bfloat16 if recipe.frozen == "bfloat16" else torch.float32
    autoencoder = checkpoint.load_vae(torch.float32, device)
    config = checkpoint.denoiser_config
    student = _learning_copy(checkpoint, device)
    if start is not None:
        take_weights(student, start)
    fake = as_fake_score(_learning_copy(checkpoint, device), recipe.fake_lora, seed=recipe.seed)
    # Sharded weights have one type, and are gathered in the recipe's.
    whole = frozen if ranks.size == 1 else torch.float32
    teacher = checkpoint.load_denoiser(whole, device).requires_grad_(False).eval()
    source = DenoiserObjective(
        student,
        checkpoint.load_encoder(frozen, device),
        PromptTokenizer(checkpoint.tokenizer_folder),
        LatentPool(
            cache,
            folder / f"shards-{ranks.rank}.jsonl",
            rescan_steps=recipe.rescan_steps,
            autoencoder_id=results.fingerprint_of(autoencoder),
            plain_factor=recipe.plain_factor,
            caption_draws=recipe.caption_draws,
        ),
        session.own(recipe.data),
    )
    state, teacher_root = _state(recipe, loop, (student, fake, teacher), config, device, session)
    judge = None
    if HEADS in state.others:
        judge = Judge(
            features=denoiser_features(teacher, recipe.heads.blocks),
            heads=state.others[HEADS].model,
            root=state.others[HEADS].root,
        )
    objective = DistillationObjective(
        source,
        Network(velocity=denoiser_velocity(student), root=state.root),
        Network(velocity=denoiser_velocity(fake), root=state.others[FAKE].root),
        Network(velocity=denoiser_velocity(teacher), root=teacher_root),
        judge,
        recipe.objective,
        align=lambda weight: align(fake, student, weight),
        rank=ranks.rank,
        flops=_flops_of(config),
    )
    return _Run(
        recipe=recipe,
        located=located,
        checkpoint=checkpoint,
        start=start,
        autoencoder=autoencoder,
        student=student,
        source=source,
        objective=objective,
        state=state,
        folder=folder,
    )


def _learning_copy(checkpoint: Checkpoint, device: torch.device) -> MMDiT:
    """The teacher's denoiser with float32 weights of its own: loaded ones may map their file."""
    model = MMDiT(checkpoint.denoiser_config)
    model.load_state_dict(checkpoint.load_denoiser(torch.float32).state_dict())
    return model.to(device)


def _state(
    recipe: TurboRecipe,
    loop: LoopConfig,
    networks: Sequence[MMDiT],
    config: MMDiTConfig,
    device: torch.device,
    session: Session,
) -> tuple[RunState, Shell | None]:
    """Student, fake score and heads as a run's parts, and the root of the frozen teacher's shards.

    Optimizers are built behind the sharding: they hold the sharded parameters.
    """
    student, fake, teacher = networks
    ranks = session.ranks
    layout = denoiser_layout(config)
    state = session.state(student, loop, layout)
    root = parallelize(fake, loop.parallel, ranks, fake_score_layout(config, recipe.fake_lora))
    state.others[FAKE] = Part(
        model=fake, optimizers=build_optimizers(fake, loop.optimizer), root=root
    )
    if recipe.objective.adversarial_weight > 0:
        rate = recipe.heads.learning_rate
        heads = Discriminator(config.hidden_size, len(recipe.heads.blocks), recipe.heads.hidden)
        heads.to(device)
        plain = dataclasses.replace(loop.parallel, compile="none", recompute="none")
        root = parallelize(heads, plain, ranks)
        settings = dataclasses.replace(loop.optimizer, learning_rate=rate)
        state.others[HEADS] = Part(
            model=heads,
            optimizers=build_optimizers(heads, settings),
            rate_factor=rate / loop.optimizer.learning_rate,
            root=root,
        )
    return state, parallelize(teacher, loop.parallel, ranks, layout)


def _flops_of(config: MMDiTConfig) -> Callable[[DenoiserBatch], float]:
    def flops(batch: DenoiserBatch) -> float:
        size, num_tokens = batch.latents.shape[:2]
        return float(forward_flops(config, [num_tokens] * size, batch.mask.sum(1).tolist()))

    return flops
