"""All that a session of fine-tuning works with, over all of its processes.

Each process draws the whole batch of a step and trains on its own rows of it, so a run learns the
same from the same pictures, noise and noise levels however many processes share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.inference.variants import Located
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.pretrain.captioned_folder import CaptionedPicture
from petzval.pretrain.denoiser import DenoiserBatch, DenoiserConfig, DenoiserObjective
from petzval.pretrain.finetune_config import FinetuneConfig
from petzval.pretrain.folder_pool import FolderPool, Grid, batch_tokens, encode_folder
from petzval.pretrain.layout import TEXT_STREAM, denoiser_layout
from petzval.pretrain.preview import sample_pictures
from petzval.resolution import PRESETS
from petzval.training.ema import Ema
from petzval.training.lora import LoraAdapter
from petzval.training.objective import Loss
from petzval.training.optimizer import build_optimizers
from petzval.training.parallel import parallelize
from petzval.training.pictures import save_grid
from petzval.training.ranks import Ranks
from petzval.training.state import RunState
from petzval.weights.checkpoint import Checkpoint

Report = Callable[[str], None]

_NUM_PREVIEWS = 4
_TEXT_TOKENS = 415
"""Prompt and suffix: with the template's 97 tokens the 512 that inference has room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedObjective:
    """The denoiser's objective on this process's rows of each batch.

    The rows keep the padding of the whole batch, and what is random belongs to a row: noise and
    noise level as one process draws them, dropout in an adapter from the row's own noise.
    """

    denoiser: DenoiserObjective
    adapter: LoraAdapter | None
    ranks: Ranks

    def batch(self, step: int) -> DenoiserBatch:
        """Rows rank, rank + size, … of the denoiser's batch."""
        return _every(self.denoiser.batch(step), self.ranks.rank, self.ranks.size)

    def prepare(self, batch: DenoiserBatch) -> DenoiserBatch:
        """As the denoiser's."""
        return self.denoiser.prepare(batch)

    def loss(self, batch: DenoiserBatch) -> Loss:
        """The denoiser's, with dropout that is a function of the batch."""
        with contextlib.ExitStack() as around:
            if self.adapter is not None and self.adapter.config.dropout > 0:
                seeds = batch.noise[:, 0, 0].view(torch.int32).tolist()
                around.enter_context(self.adapter.dropout(seeds))
            loss = self.denoiser.loss(batch)
        # Padding is of the whole batch: where none of it has text, no process reads any.
        return dataclasses.replace(loss, idle=() if batch.ids.shape[1] > 0 else TEXT_STREAM)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRun:
    """All that a session works with."""

    located: Located
    config: FinetuneConfig
    objective: SharedObjective
    autoencoder: Autoencoder
    state: RunState
    grids: Path
    prompts: Sequence[str]
    grid: Grid

    @property
    def adapter(self) -> LoraAdapter | None:
        """What is trained; None where all weights are."""
        return self.objective.adapter

    @property
    def summary(self) -> str:
        """What is trained, and how long an epoch is."""
        trained = sum(p.numel() for p in self.state.model.parameters() if p.requires_grad)
        pool = cast("FolderPool", self.objective.denoiser.pool)
        what = "all weights" if self.adapter is None else f"a LoRA of rank {self.config.lora.rank}"
        ranks = self.state.ranks
        over = f" over {ranks.size} processes" if ranks.size > 1 else ""
        steps = pool.steps_per_epoch
        return f"training {what}{over}: {trained:,} numbers; steps an epoch: {steps}"

    def draw_before(self) -> None:
        """Grid 0 shows the model before training; it is drawn once a run."""
        file = self._preview_file(0)
        # What the first process sees decides: another could look a moment later.
        if not self.state.ranks.of_first(float(file.exists())):
            self._draw(file)

    def preview(self, state: RunState) -> dict[str, Path]:
        """Draw with the averages."""
        assert state.ema is not None
        with state.ema.applied_to(state.model):
            self._draw(self._preview_file(state.step))
        return {"grid": self._preview_file(state.step)}

    def _preview_file(self, step: int) -> Path:
        return self.grids / f"{step:08d}.png"

    def _draw(self, file: Path) -> None:
        """A grid of the first captions, with the weights as they are."""
        defaults, config = self.located.defaults, self.config
        guidance = config.preview_guidance
        pictures = self.state.evaluate(
            lambda: sample_pictures(
                self.objective.denoiser,
                self.autoencoder,
                self.prompts,
                self.grid,
                num_steps=config.preview_steps or defaults.steps,
                guidance=defaults.guidance if guidance is None else guidance,
            )
        )
        if self.state.ranks.is_first:
            save_grid(file, [picture.cpu() for picture in pictures], len(pictures))


def build_run(
    located: Located,
    checkpoint: Checkpoint,
    pictures: Sequence[CaptionedPicture],
    base: int,
    out: Path,
    config: FinetuneConfig,
    device: torch.device,
    ranks: Ranks,
    report: Report,
) -> FinetuneRun:
    """Encode the pictures, load the networks and spread what is trained over the processes.

    Args:
        located, checkpoint: the model.
        pictures: in the order in which they are dealt.
        base: family of sizes.
        out: folder of the run.
        device: of this process.
        ranks: all processes call this alike.

    Raises:
        DataError, CheckpointError, ConfigError: a picture, the model or a setting cannot be used.
    """
    autoencoder = checkpoint.load_vae(torch.float32, device)
    tokens = batch_tokens(config.batch_size, base)

    def encode(chosen: Sequence[CaptionedPicture]) -> dict[Grid, list[tuple[Tensor, str]]]:
        return encode_folder(
            chosen,
            autoencoder,
            base=base,
            cache=out / "latents",
            autoencoder_id=checkpoint.vae_source.digest(),
        )

    # Each process encodes its share; then all find everything in the cache.
    encode(pictures[ranks.rank :: ranks.size])
    ranks.wait()
    samples = encode(pictures)
    report(f"encoded {len(pictures)} pictures")
    # Frozen weights may be bfloat16 on a GPU; what is trained is float32 everywhere.
    frozen = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = checkpoint.load_denoiser(torch.float32 if config.full else frozen, device)
    adapter = None if config.full else LoraAdapter(model, config.lora, seed=config.seed)
    denoiser = DenoiserObjective(
        model,
        checkpoint.load_encoder(frozen, device),
        PromptTokenizer(checkpoint.tokenizer_folder),
        FolderPool(samples, batch_tokens=tokens, seed=config.seed),
        DenoiserConfig(
            bases=(base,),
            batch_tokens=tokens,
            steps_per_window=1,
            text_dropout=config.text_dropout,
            max_tokens=_TEXT_TOKENS,
            seed=config.seed,
        ),
    )
    return FinetuneRun(
        located=located,
        config=config,
        objective=SharedObjective(denoiser=denoiser, adapter=adapter, ranks=ranks),
        autoencoder=autoencoder,
        state=_state(model, adapter, config, ranks),
        grids=out / "grids",
        prompts=list(dict.fromkeys(picture.caption for picture in pictures))[:_NUM_PREVIEWS],
        grid=PRESETS[base]["1:1"].grid,
    )


def _state(
    model: MMDiT, adapter: LoraAdapter | None, config: FinetuneConfig, ranks: Ranks
) -> RunState:
    """Optimizers and averages of what is trained; over several processes all of it is sharded.

    An adapter's halves are parameters of the model's blocks, and are sharded with them: so are the
    frozen weights that they change.
    """
    trained = adapter or _trainable(model)
    loop = config.loop()
    root = parallelize(model, loop.parallel, ranks, denoiser_layout(model.config))
    return RunState(
        model=trained,
        optimizers=build_optimizers(trained, loop.optimizer),
        ema=Ema(trained, loop.ema_decay),
        ranks=ranks,
        root=root,
    )


def _trainable(model: MMDiT) -> MMDiT:
    """The denoiser with weights of its own: loaded ones may be a mapping of their file."""
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return model


def _every(batch: DenoiserBatch, first: int, step: int) -> DenoiserBatch:
    """Every `step`-th row from `first` on."""
    if step == 1:
        return batch
    rows = slice(first, None, step)
    return dataclasses.replace(
        batch,
        latents=batch.latents[rows],
        noise=batch.noise[rows],
        sigmas=batch.sigmas[rows],
        ids=batch.ids[rows],
        mask=batch.mask[rows],
    )
