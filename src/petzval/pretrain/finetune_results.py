"""What a fine-tuning run leaves: a LoRA in the form of each program, or a changed checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import petzval
from petzval.config import to_mapping
from petzval.inference.variants import CARD, Located
from petzval.pretrain.claim import RECIPE
from petzval.pretrain.finetune_run import FinetuneRun
from petzval.training.parallel import full_state_dict, full_tensor
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import LowRank
from petzval.weights.lora_keys import Family
from petzval.weights.lora_writing import TrainedLora, save_lora, save_peft
from petzval.weights.writing import Component, save_with_denoiser


def write_results(run: FinetuneRun, out: Path, keys: Sequence[Family]) -> list[Path]:
    """Write the weights as they are; all processes must call it, the first one writes.

    Returns:
        The results, in the order they were written; none on the other processes.

    Raises:
        CheckpointError: they cannot be written.
    """
    if run.adapter is None:
        return _write_checkpoint(run, out)
    halves = {
        layer: (full_tensor(down).cpu(), full_tensor(up).cpu())
        for layer, (down, up) in run.adapter.halves().items()
    }
    if not run.state.ranks.is_first:
        return []
    lora = TrainedLora(
        layers={
            layer: LowRank(down=down, up=up, scale=run.config.lora.scale)
            for layer, (down, up) in halves.items()
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


def _write_checkpoint(run: FinetuneRun, out: Path) -> list[Path]:
    model = run.objective.denoiser.model
    state = full_state_dict(model, run.state.ranks)
    if not run.state.ranks.is_first:
        return []
    folder = out / "checkpoint"
    stored = Checkpoint.open(run.located.folder).denoiser_source.infos["proj_out.weight"]
    kept = {name: tensor.to(stored.torch_dtype) for name, tensor in state.items()}
    save_with_denoiser(
        folder,
        run.located.folder,
        Component(config=model.config, state=kept),
        {
            "README.md": _card(run),
            CARD: _settings(run.located),
            "training/finetune/recipe.json": (out / RECIPE).read_text(encoding="utf-8"),
            "training/finetune/metrics.jsonl": _text(out / "metrics.jsonl"),
        },
    )
    return [folder]


def _settings(base: Located) -> str:
    """What the result is called and wants; its name is not its base's."""
    settings = {"name": f"{base.name}-finetuned"[:80], **to_mapping(base.defaults)}
    return json.dumps(settings, indent=2) + "\n"


def _card(run: FinetuneRun) -> str:
    return (
        f"# {run.located.name}, fine-tuned\n\n"
        f"All weights of the denoiser were trained for {run.state.step} steps on "
        "pictures of its maker's, with `petzval finetune --full`; the other networks are "
        f"those of {run.located.name}. Settings and log: training/finetune/.\n"
    )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
