"""The card of an exported checkpoint: what it is, what it learned from, how it was made.

Every number in it is read from the runs: recipes, metrics, licences and the networks themselves.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from petzval.config import read_json
from petzval.training.metrics import read_metrics

_HEAD = """\
---
license: apache-2.0
pipeline_tag: text-to-image
library_name: petzval
---

# {name}

A small illustrator: a text-to-image model in the form of Lens, trained from scratch on scenes
composed from openly licensed illustrations. It draws emoji-like illustrations on plain
backgrounds, **not photographs**, and it is small: expect colours, backgrounds and simple things,
not fine detail.

    petzval generate "a red apple on a white background" --model {name}

What it can do, measured, with confidence intervals: `docs/mini.md` of the repository. Defaults:
{steps} steps, guidance {guidance:g}, the {base}-pixel family of sizes, aspect ratios 1:2 to 2:1.
"""

_UNKNOWN = "not recorded"

_LIMITS = """\
## Limits

- Prompts are understood best in English. The text encoder read twelve languages in training; the
  denoiser saw English captions only.
- It knows the things, colours and styles of its pictures and little else. Faces are cartoon
  portraits, no person can be recognised, words longer than a few letters come out wrong.
- Emoji sets carry their vendors' view of the world: flags, gestures, foods and professions are
  unevenly covered, and so are they here.
- For learning, testing and demonstration; not for products.

## Licence

The weights are under Apache-2.0. The pictures keep their own licences, listed above and in `NOTICE`
and `licences.json`; some ask for attribution (CC-BY), which those files give.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a run's folder tells of it.

    Attributes:
        recipe: name of the recipe.
        seed: the recipe's.
        parts: one line a stage: name, steps, samples, minutes.
        session: minutes, threads, device and machine as asked for, where recorded.
        torch: version.
    """

    recipe: str
    seed: int | None
    parts: tuple[str, ...]
    session: Mapping[str, Any]
    torch: str


def summarise(run_folder: Path) -> RunSummary | None:
    """Read `recipe.json` and every `metrics.jsonl` of a run; None if there is no run."""
    path = run_folder / "recipe.json"
    if not path.is_file():
        return None
    recipe: dict[str, Any] = read_json(path)
    parts: list[str] = []
    for metrics in sorted(run_folder.rglob("metrics.jsonl")):
        rows = [row for row in read_metrics(metrics) if "seconds" in row]
        if rows:
            last, stage = rows[-1], metrics.parent.relative_to(run_folder).as_posix()
            parts.append(
                ("" if stage == "." else f"{stage}: ")
                + f"{int(last['step']):,} steps, {int(last['num_items']):,} samples, "
                + f"{last['seconds'] / 60:.0f} min, last loss {last['loss']:.3f}"
            )
    return RunSummary(
        recipe=str(recipe.get("recipe", run_folder.name)),
        seed=recipe.get("seed"),
        parts=tuple(parts),
        session=recipe.get("session", {}),
        torch=str(recipe.get("torch", "")),
    )


def machine() -> str:
    """This machine in a few words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU threads"


def model_card(
    settings: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    run_folders: Sequence[Path],
    data_folder: Path | None,
) -> str:
    """The README of a checkpoint, in Markdown.

    Args:
        settings: name, steps, guidance and base.
        networks: by what they are called in the table.
        run_folders: in the order of the chain.
        data_folder: holds `licences.json`; None leaves the table of sources out.
    """
    sections = [
        _HEAD.format(**settings),
        _architecture(networks),
        _data(data_folder),
        _training(run_folders),
        _LIMITS,
    ]
    return "\n".join(section for section in sections if section)


def _architecture(networks: Mapping[str, nn.Module]) -> str:
    rows = [
        f"| {name} | {type(module).__name__} | {sum(p.numel() for p in module.parameters()):,} |"
        for name, module in networks.items()
    ]
    table = "\n".join(["| part | class | parameters |", "| --- | --- | --: |", *rows])
    return (
        "## Architecture\n\n"
        "The three networks of Lens in small sizes, keys and folders as published: a dual-stream\n"
        "diffusion transformer over FLUX.2-form latents, read by hidden states of a GPT-OSS-form\n"
        f"mixture of experts.\n\n{table}\n\n"
        "Parameters are those of the networks. `petzval verify` counts all numbers in the files:\n"
        "also the text encoder's final norm, which no picture needs, and the autoencoder's\n"
        "statistics.\n"
    )


def _data(data_folder: Path | None) -> str:
    path = None if data_folder is None else data_folder / "licences.json"
    if path is None or not path.is_file():
        return ""
    licences = json.loads(path.read_text(encoding="utf-8"))
    uses = {"train": "pictures", "names": "names", "evaluate": "never trained on"}
    rows = [
        f"| {p['title']} | {p['author']} | {p['licence']} | {uses.get(p['use'], p['use'])} |"
        for p in licences["packages"]
    ]
    held_out = [p["title"] for p in licences["packages"] if p["use"] == "evaluate"]
    table = "\n".join(["| work | by | licence | use |", "| --- | --- | --- | --- |", *rows])
    present = [name for name, state in licences.get("optional", {}).items() if state == "present"]
    optional = "".join(f"\nAlso: {name}.\n" for name in present)
    return (
        "## Data\n\n"
        "Scenes are composed without end from these pictures: one or several things, counts,\n"
        "colours, sizes, places, relations, backgrounds, drawing styles, short words. Captions of\n"
        "four lengths are written from the scene's own truth.\n\n"
        f"{table}\n{optional}\n"
        "Never trained on: one concept in ten (by a hash of its Unicode CLDR name, over all sets\n"
        f"at once), and whole styles: {', '.join(held_out)}. The text encoder knows the *words*\n"
        "for all concepts.\n"
    )


def _training(run_folders: Sequence[Path]) -> str:
    commands = ["petzval data build mini"]
    rows: list[str] = []
    versions: set[str] = set()
    for folder in run_folders:
        summary = summarise(folder)
        if summary is None:
            commands.append(f"petzval pretrain mini_{folder.name}")
            continue
        commands.append(_command(summary))
        versions.add(summary.torch)
        where = str(summary.session.get("machine", _UNKNOWN))
        what = "; ".join(summary.parts) or _UNKNOWN
        rows.append(f"| {summary.recipe} | {summary.seed} | {what} | {where} |")
    commands.append("petzval pretrain mini_export")
    listed = "\n".join(f"    {command}" for command in commands)
    table = "\n".join(
        ["| recipe | seed | what was run | machine |", "| --- | --: | --- | --- |", *rows]
    )
    torch_versions = ", ".join(sorted(version for version in versions if version))
    return (
        "## Training\n\n"
        f"{listed}\n\n{table}\n\n"
        f"torch {torch_versions}; exported on {machine()}. Recipes and thinned logs are in\n"
        "`training/`. Batches are a function of (seed, step); where a run was given minutes, its\n"
        "learning rate followed the clock, so a second run agrees in kind, not bit for bit.\n"
    )


def _command(summary: RunSummary) -> str:
    minutes, start = summary.session.get("minutes"), summary.session.get("start")
    began = f" --start {start}" if start else ""
    return f"petzval pretrain {summary.recipe}{began}" + (
        f" --minutes {minutes:g}" if minutes else ""
    )
