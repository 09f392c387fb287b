"""Finished toy runs that several tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from petzval.pretrain.run import run


@pytest.fixture(scope="session")
def smoke_runs(tmp_path_factory: pytest.TempPathFactory, golden_checkpoint: Path) -> Path:
    """Every smoke recipe, run in order in one folder; the last is the exported checkpoint."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(golden_checkpoint / "tokenizer", runs / "tokenizer")
    for part in ("vae", "language_model", "latents", "denoiser", "export"):
        run(
            f"smoke_{part}",
            data_folder=runs / "no_data",
            run_folder=runs / part,
            report=lambda line: None,
        )
    return runs
