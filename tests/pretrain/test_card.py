"""The card says what the runs say."""

from __future__ import annotations

import json
from pathlib import Path

from petzval.pretrain import results
from petzval.pretrain.card import model_card, summarise

SETTINGS = {"name": "smoke", "steps": 2, "guidance": 3.0, "base": 128}


def test_a_run_is_summarised_from_its_files(smoke_runs: Path, tmp_path: Path) -> None:
    summary = summarise(smoke_runs / "denoiser")
    assert summary is not None
    assert (summary.recipe, summary.seed) == ("smoke_denoiser", 4)
    assert [part.split(":")[0] for part in summary.parts] == ["low", "mixed"]
    assert all("4 steps" in part for part in summary.parts)
    assert summarise(tmp_path) is None


def test_the_card_names_networks_runs_sources_and_what_was_held_out(
    smoke_runs: Path, tmp_path: Path
) -> None:
    packages = [
        {"title": "Good Pictures", "author": "A. Painter", "licence": "CC-BY-4.0", "use": "train"},
        {"title": "Kept Apart", "author": "B. Painter", "licence": "MIT", "use": "evaluate"},
    ]
    licences = {"packages": packages, "optional": {"Clip Art": "present", "More": "not present"}}
    (tmp_path / "licences.json").write_text(json.dumps(licences))
    denoiser = results.load_denoiser(smoke_runs / "denoiser")
    folders = [smoke_runs / name for name in ("tokenizer", "vae", "denoiser")]
    card = model_card(SETTINGS, {"denoiser": denoiser}, folders, tmp_path)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    assert "–" not in card
    for words in (
        "`petzval verify` counts all numbers",
        f"| denoiser | MMDiT | {count:,} |",
        "| Good Pictures | A. Painter | CC-BY-4.0 | pictures |",
        "whole styles: Kept Apart.",
        "Also: Clip Art.",
        "    petzval pretrain smoke_denoiser",
        "low: 4 steps",
        "**not photographs**",
        "Apache-2.0",
    ):
        assert words in card
    assert "More" not in card.split("## Limits")[0].split("Also")[1]


def test_the_export_carries_its_card(smoke_runs: Path) -> None:
    card = (smoke_runs / "export" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "# smoke" in card and "smoke_language_model" in card


def test_what_no_run_recorded_is_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "recipe.json").write_text('{"recipe": "mini_vae", "seed": 1}')
    card = model_card(SETTINGS, {}, [tmp_path / "vae"], None)
    assert "| mini_vae | 1 | not recorded | not recorded |" in card
