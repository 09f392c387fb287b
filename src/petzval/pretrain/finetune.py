"""Fine-tuning: any checkpoint, a folder of captioned pictures → a LoRA, or a changed checkpoint.

The objective is that of pre-training, the loop that of every stage. A run's folder:

    out/
        recipe.json  metrics.jsonl  checkpoints/  grids/   as every run has them
        latents/                                           each picture, encoded once
        lora/                                              the result, in PEFT's form
        lora-comfyui.safetensors  lora-kohya.safetensors   … in other programs' keys, if asked for
        checkpoint/                                        or, with `full`, a whole checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

import petzval
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import check_ranges, setting, to_mapping
from petzval.errors import ConfigError, TrainingError
from petzval.inference.variants import CARD, Located, locate
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.pretrain.captioned_folder import CaptionedPicture, describe, read_folder
from petzval.pretrain.card import machine
from petzval.pretrain.claim import RECIPE, claim, describe_run
from petzval.pretrain.denoiser import DenoiserBatch, DenoiserConfig, DenoiserObjective
from petzval.pretrain.folder_pool import FolderPool, batch_tokens, encode_folder
from petzval.pretrain.preview import sample_pictures
from petzval.resolution import PRESETS
from petzval.training.ema import Ema
from petzval.training.loop import LoopConfig, train
from petzval.training.lora import LoraAdapter, LoraConfig
from petzval.training.objective import Loss
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.pictures import save_grid
from petzval.training.state import RunState
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import LowRank
from petzval.weights.lora_keys import PREFIXES, Family
from petzval.weights.lora_writing import TrainedLora, save_lora, save_peft
from petzval.weights.writing import Component, save_with_denoiser

Report = Callable[[str], None]

_NUM_PREVIEWS = 4
_TEXT_TOKENS = 415
"""Prompt and suffix: with the template's 97 tokens the 512 that inference has room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Settings of a fine-tuning run.

    Attributes:
        full: change all of the denoiser's weights, in place of training a LoRA.
        lora: rank, alpha, dropout and layers; of no meaning with `full`.
        num_steps: the run ends after this many.
        minutes: … or after this much time in steps; None for no limit.
        batch_size: pictures a step; some more where a bucket's are smaller.
        learning_rate: peak; None takes 1e-4 for a LoRA, 1e-5 for all weights.
        text_dropout: share of the samples that lose their caption, for guidance.
        base: family of sizes; None takes the checkpoint's own.
        trigger: caption of pictures that have none; None refuses them.
        ema_decay: of the averages, which are the result.
        preview_steps, preview_guidance: of the grids; None takes the checkpoint's own.
        seed: of everything random.
    """

    full: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_steps: int = setting(1000, minimum=1)
    minutes: float | None = setting(None, minimum=0, maximum=1e6)
    batch_size: int = setting(4, minimum=1, maximum=4096)
    learning_rate: float | None = setting(None, minimum=0, maximum=1)
    text_dropout: float = setting(0.1, minimum=0, maximum=1)
    base: int | None = None
    trigger: str | None = None
    ema_decay: float = setting(0.99, minimum=0, maximum=0.99999)
    preview_steps: int | None = setting(None, minimum=1, maximum=1000)
    preview_guidance: float | None = setting(None, minimum=0, maximum=100)
    seed: int = setting(0, minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        check_ranges(self, where="fine-tuning")
        if self.base is not None and self.base not in PRESETS:
            known = ", ".join(str(base) for base in sorted(PRESETS))
            raise ConfigError(f"unknown base size {self.base}", f"base sizes are {known}")

    def loop(self, autocast: Literal["none", "bfloat16"] = "none") -> LoopConfig:
        """The loop's settings, scaled to the length of the run."""
        usual = 1e-5 if self.full else 1e-4
        return LoopConfig(
            optimizer=OptimizerConfig(
                learning_rate=usual if self.learning_rate is None else self.learning_rate,
                warmup_steps=min(100, self.num_steps // 10),
            ),
            num_steps=self.num_steps,
            minutes=self.minutes,
            autocast=autocast,
            log_every=max(1, min(20, self.num_steps // 20)),
            ema_decay=self.ema_decay,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOutcome:
    """How a session ended.

    Attributes:
        interrupted: True if a signal stopped it; the same call goes on.
        files: the results, in the order they were written; none if interrupted.
    """

    interrupted: bool
    files: tuple[Path, ...]


def finetune(
    model: str | Path,
    folder: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    keys: Sequence[Family] = (),
    resume: bool = True,
    device: str = "cpu",
    report: Report = print,
) -> FinetuneOutcome:
    """Fine-tune a checkpoint on a folder of pictures, or go on with it.

    Args:
        model: name of a variant, or a checkpoint folder.
        folder: pictures, each with its caption in a `.txt` beside it.
        out: of the run; its pictures, model and settings must be the same when it goes on.
        config: see there.
        keys: further forms of the LoRA: "comfyui", "kohya", "diffusers".
        resume: False begins anew.
        device: "cpu", or "cuda" for one GPU.
        report: receives lines of progress.

    Raises:
        DataError: a picture or caption cannot be used.
        TrainingError: `out` holds something else.
        RequestError, CheckpointError, ConfigError: the model or a setting cannot be used.
    """
    if keys and config.full:
        raise TrainingError("keys are those of a LoRA, but all weights are trained", "leave them")
    place = torch.device(device)
    loop = config.loop("bfloat16" if place.type == "cuda" else "none")
    pictures = read_folder(folder, trigger=config.trigger)
    located = locate(model)
    base = config.base or located.defaults.base
    checkpoint = Checkpoint.open(located.folder)
    report(describe(pictures, base))
    record = describe_run(
        located.name, checkpoint.identity, pictures, to_mapping(config), machine=machine()
    )
    claim(out, record, resume=resume)
    run = _build(located, checkpoint, pictures, base, out, config, place, report)
    report(run.summary)
    before = run.preview_file(0)
    if not before.exists():
        run.draw(before)
    outcome = train(
        run.objective,
        run.state,
        loop,
        out,
        callbacks=[run.preview],
        resume=resume,
        report=report,
    )
    if outcome.reason == "interrupted":
        return FinetuneOutcome(interrupted=True, files=())
    assert run.state.ema is not None
    with run.state.ema.applied_to(run.state.model):
        return FinetuneOutcome(interrupted=False, files=tuple(_write(run, out, keys)))


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppingObjective:
    """The denoiser's objective with dropout in an adapter, drawn from each batch's own noise."""

    denoiser: DenoiserObjective
    adapter: LoraAdapter

    def batch(self, step: int) -> DenoiserBatch:
        """As the denoiser's."""
        return self.denoiser.batch(step)

    def prepare(self, batch: DenoiserBatch) -> DenoiserBatch:
        """As the denoiser's."""
        return self.denoiser.prepare(batch)

    def loss(self, batch: DenoiserBatch) -> Loss:
        """The denoiser's, with dropout that is a function of the batch."""
        bits = batch.noise.flatten()[:1].view(torch.int32)
        with self.adapter.dropout(int(bits)):
            return self.denoiser.loss(batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """All that a session works with."""

    located: Located
    config: FinetuneConfig
    denoiser: DenoiserObjective
    autoencoder: Autoencoder
    adapter: LoraAdapter | None
    state: RunState
    grids: Path
    prompts: Sequence[str]
    grid: tuple[int, int]

    @property
    def objective(self) -> DenoiserObjective | DroppingObjective:
        """What the loop trains."""
        if self.adapter is not None and self.config.lora.dropout > 0:
            return DroppingObjective(denoiser=self.denoiser, adapter=self.adapter)
        return self.denoiser

    @property
    def summary(self) -> str:
        trained = sum(p.numel() for p in self.state.model.parameters() if p.requires_grad)
        pool = cast("FolderPool", self.denoiser.pool)
        what = "all weights" if self.adapter is None else f"a LoRA of rank {self.config.lora.rank}"
        return f"training {what}: {trained:,} numbers; steps an epoch: {pool.steps_per_epoch}"

    def preview_file(self, step: int) -> Path:
        """Grid 0 shows the model before training."""
        return self.grids / f"{step:08d}.png"

    def preview(self, state: RunState) -> dict[str, float]:
        """Draw with the averages."""
        assert state.ema is not None
        with state.ema.applied_to(state.model):
            self.draw(self.preview_file(state.step))
        return {}

    def draw(self, file: Path) -> None:
        """A grid of the first captions, with the weights as they are."""
        defaults, config = self.located.defaults, self.config
        guidance = config.preview_guidance
        pictures = sample_pictures(
            self.denoiser,
            self.autoencoder,
            self.prompts,
            self.grid,
            num_steps=config.preview_steps or defaults.steps,
            guidance=defaults.guidance if guidance is None else guidance,
        )
        save_grid(file, [picture.cpu() for picture in pictures], len(pictures))


def _build(
    located: Located,
    checkpoint: Checkpoint,
    pictures: Sequence[CaptionedPicture],
    base: int,
    out: Path,
    config: FinetuneConfig,
    device: torch.device,
    report: Report,
) -> _Run:
    autoencoder = checkpoint.load_vae(torch.float32, device)
    tokens = batch_tokens(config.batch_size, base)
    samples = encode_folder(
        pictures,
        autoencoder,
        base=base,
        cache=out / "latents",
        autoencoder_id=checkpoint.vae_source.digest(),
    )
    report(f"encoded {len(pictures)} pictures")
    # Frozen weights may be bfloat16 on a GPU; what is trained is float32 everywhere.
    frozen = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = checkpoint.load_denoiser(torch.float32 if config.full else frozen, device)
    adapter = None if config.full else LoraAdapter(model, config.lora, seed=config.seed)
    trained = adapter or _trainable(model)
    objective = DenoiserObjective(
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
    loop = config.loop()
    state = RunState(
        model=trained,
        optimizers=build_optimizers(trained, loop.optimizer),
        ema=Ema(trained, loop.ema_decay),
    )
    return _Run(
        located=located,
        config=config,
        denoiser=objective,
        autoencoder=autoencoder,
        adapter=adapter,
        state=state,
        grids=out / "grids",
        prompts=list(dict.fromkeys(picture.caption for picture in pictures))[:_NUM_PREVIEWS],
        grid=PRESETS[base]["1:1"].grid,
    )


def _trainable(model: MMDiT) -> MMDiT:
    """The denoiser with weights of its own: loaded ones may be a mapping of their file."""
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return model


def _write(run: _Run, out: Path, keys: Sequence[Family]) -> list[Path]:
    """The results, with the weights as they are."""
    recipe = (out / RECIPE).read_text(encoding="utf-8")
    if run.adapter is None:
        folder = out / "checkpoint"
        stored = Checkpoint.open(run.located.folder).denoiser_source.infos["proj_out.weight"]
        save_with_denoiser(
            folder,
            run.located.folder,
            Component.of(run.denoiser.model, stored.torch_dtype),
            {
                "README.md": _card(run),
                CARD: _settings(run.located),
                "training/finetune/recipe.json": recipe,
                "training/finetune/metrics.jsonl": _text(out / "metrics.jsonl"),
            },
        )
        return [folder]
    lora = TrainedLora(
        layers={
            layer: LowRank(down=down.cpu(), up=up.cpu(), scale=run.config.lora.scale)
            for layer, (down, up) in run.adapter.halves().items()
        },
        rank=run.config.lora.rank,
        alpha=run.config.lora.alpha,
        dropout=run.config.lora.dropout,
        base=run.located.name,
        notes={"petzval": petzval.__version__, "steps": str(run.state.step)},
    )
    files = [save_peft(out / "lora", lora)]
    return files + [
        save_lora(out / f"lora-{family}.safetensors", lora, family)
        for family in dict.fromkeys(keys)
    ]


def _settings(base: Located) -> str:
    """What the result is called and wants; its name is not its base's."""
    settings = {"name": f"{base.name}-finetuned"[:80], **to_mapping(base.defaults)}
    return json.dumps(settings, indent=2) + "\n"


def _card(run: _Run) -> str:
    return (
        f"# {run.located.name}, fine-tuned\n\n"
        f"All weights of the denoiser were trained for {run.state.step} steps on "
        "pictures of its maker's, with `petzval finetune --full`; the other networks are "
        f"those of {run.located.name}. Settings and log: training/finetune/.\n"
    )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def families(names: Sequence[str]) -> list[Family]:
    """Families of keys by name.

    Raises:
        ConfigError: unknown.
    """
    for name in names:
        if name not in PREFIXES:
            raise ConfigError(f"unknown keys {name[:40]!r}", f"known are {', '.join(PREFIXES)}")
    return [cast("Family", name) for name in names]
