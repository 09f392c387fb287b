"""From a recipe to networks, data, objective and the state of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.distill.conditions import Network, denoiser_velocity
from petzval.distill.discriminator import Discriminator, denoiser_features
from petzval.distill.fake_score import align, as_fake_score, fake_score_layout
from petzval.distill.guidance import GuidanceObjective
from petzval.distill.objective import FAKE, HEADS, DistillationObjective, Judge
from petzval.distill.recipes import DistillRecipe, GuidanceRecipe, TurboRecipe
from petzval.models.flops import forward_flops
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.vae import Autoencoder
from petzval.pretrain import results
from petzval.pretrain.cache import LatentPool
from petzval.pretrain.denoiser import DenoiserBatch, DenoiserObjective
from petzval.pretrain.layout import denoiser_layout
from petzval.pretrain.session import Session
from petzval.pretrain.start import take_weights
from petzval.training.loop import LoopConfig
from petzval.training.objective import Objective
from petzval.training.optimizer import build_optimizers
from petzval.training.parallel import parallelize
from petzval.training.state import Part, RunState
from petzval.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """All that a run works with.

    Attributes:
        autoencoder: of the teacher, for previews.
        student: whose average is exported.
        source: real latents and prompts.
        objective: of the recipe's kind.
        state: of the student and the networks that learn beside it.
    """

    autoencoder: Autoencoder
    student: MMDiT
    source: DenoiserObjective
    objective: Objective[Any]
    state: RunState


def build(
    recipe: TurboRecipe | GuidanceRecipe,
    checkpoint: Checkpoint,
    cache: Path,
    start: Path | None,
    folder: Path,
    device: torch.device,
    session: Session,
) -> Built:
    """Load the teacher, and make of it what the recipe's objective needs.

    Args:
        checkpoint: of the teacher.
        cache: of latents.
        start: checkpoint folder whose denoiser the student begins with; None takes the teacher's.
        folder: of the run.

    Raises:
        TrainingError: latents of another autoencoder, or a `start` of other sizes.
    """
    torch.manual_seed(recipe.seed)
    loop, ranks = session.apply(recipe.loop), session.ranks
    frozen = torch.bfloat16 if recipe.frozen == "bfloat16" else torch.float32
    autoencoder = checkpoint.load_vae(torch.float32, device)
    student = beginning(checkpoint, start, device)
    # Sharded weights have one type, and are gathered in the recipe's.
    whole = frozen if ranks.size == 1 else torch.float32
    teacher = checkpoint.load_denoiser(whole, device).requires_grad_(False).eval()
    encoder = checkpoint.load_encoder(frozen, device)
    pool = _pool(recipe, cache, folder, session, results.fingerprint_of(autoencoder))
    tokenizer = PromptTokenizer(checkpoint.tokenizer_folder)
    source = DenoiserObjective(student, encoder, tokenizer, pool, session.own(recipe.data))
    # Optimizers hold the sharded parameters, so each is built behind the sharding.
    state = session.state(student, loop, denoiser_layout(student.config))
    objective: Objective[Any]
    if isinstance(recipe, GuidanceRecipe):
        teaching = _sharded(teacher, loop, session)
        objective = GuidanceObjective(
            source,
            Network(velocity=denoiser_velocity(student), root=state.root),
            teaching,
            recipe.objective,
            rank=ranks.rank,
            flops=_flops_of(student.config),
        )
    else:
        fake = as_fake_score(_learning_copy(checkpoint, device), recipe.fake_lora, seed=recipe.seed)
        state.others[FAKE] = _fake_part(fake, recipe, loop, session)
        judge = _judge(teacher, recipe, loop, state, device)
        objective = DistillationObjective(
            source,
            Network(velocity=denoiser_velocity(student), root=state.root),
            Network(velocity=denoiser_velocity(fake), root=state.others[FAKE].root),
            _sharded(teacher, loop, session),
            judge,
            recipe.objective,
            align=lambda weight: align(fake, student, weight),
            rank=ranks.rank,
            flops=_flops_of(student.config),
        )
    return Built(
        autoencoder=autoencoder, student=student, source=source, objective=objective, state=state
    )


def _pool(
    recipe: DistillRecipe, cache: Path, folder: Path, session: Session, autoencoder_id: str
) -> LatentPool:
    return LatentPool(
        cache,
        folder / f"shards-{session.ranks.rank}.jsonl",
        rescan_steps=recipe.rescan_steps,
        autoencoder_id=autoencoder_id,
        plain_factor=recipe.plain_factor,
        caption_draws=recipe.caption_draws,
    )


def beginning(checkpoint: Checkpoint, start: Path | None, device: torch.device) -> MMDiT:
    """The student before its first update: the teacher's denoiser, or that of `start`.

    Raises:
        TrainingError: the one of `start` has other sizes.
    """
    student = _learning_copy(checkpoint, device)
    if start is not None:
        take_weights(student, start)
    return student


def _learning_copy(checkpoint: Checkpoint, device: torch.device) -> MMDiT:
    """The teacher's denoiser with float32 weights of its own: loaded ones may map their file."""
    model = MMDiT(checkpoint.denoiser_config)
    model.load_state_dict(checkpoint.load_denoiser(torch.float32).state_dict())
    return model.to(device)


def _sharded(teacher: MMDiT, loop: LoopConfig, session: Session) -> Network:
    root = parallelize(teacher, loop.parallel, session.ranks, denoiser_layout(teacher.config))
    return Network(velocity=denoiser_velocity(teacher), root=root)


def _fake_part(fake: MMDiT, recipe: TurboRecipe, loop: LoopConfig, session: Session) -> Part:
    layout = fake_score_layout(fake.config, recipe.fake_lora)
    root = parallelize(fake, loop.parallel, session.ranks, layout)
    return Part(model=fake, optimizers=build_optimizers(fake, loop.optimizer), root=root)


def _judge(
    teacher: MMDiT,
    recipe: TurboRecipe,
    loop: LoopConfig,
    state: RunState,
    device: torch.device,
) -> Judge | None:
    """Heads on the teacher's features, and their part in the state; None if there are none."""
    if recipe.objective.adversarial_weight == 0:
        return None
    rate, blocks = recipe.heads.learning_rate, recipe.heads.blocks
    heads = Discriminator(teacher.config.hidden_size, len(blocks), recipe.heads.hidden).to(device)
    plain = dataclasses.replace(loop.parallel, compile="none", recompute="none")
    root = parallelize(heads, plain, state.ranks)
    settings = dataclasses.replace(loop.optimizer, learning_rate=rate)
    state.others[HEADS] = Part(
        model=heads,
        optimizers=build_optimizers(heads, settings),
        rate_factor=rate / loop.optimizer.learning_rate,
        root=root,
    )
    return Judge(features=denoiser_features(teacher, blocks), heads=heads, root=root)


def _flops_of(config: MMDiTConfig) -> Callable[[DenoiserBatch], float]:
    def flops(batch: DenoiserBatch) -> float:
        size, num_tokens = batch.latents.shape[:2]
        return float(forward_flops(config, [num_tokens] * size, batch.mask.sum(1).tolist()))

    return flops
