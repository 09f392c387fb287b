"""The published Lens itself, where PETZVAL_WEIGHTS names the folder of one of its checkpoints.

Needs no recorded numbers: what is checked is that the files are the architecture that we say they
are, and that a picture comes out that depends on the words.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petzval.inference.pipeline import Pipeline
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.verify import verify_checkpoint

pytestmark = pytest.mark.published_weights


@pytest.fixture
def published() -> Path:
    """The folder of one published checkpoint."""
    return Path(os.environ["PETZVAL_WEIGHTS"]).expanduser()


def test_the_files_are_the_architecture(published: Path) -> None:
    report = verify_checkpoint(published, hashes=False, values=False)
    assert report.passed, report.all_problems
    checkpoint = Checkpoint.open(published)
    assert checkpoint.denoiser_config == LENS_MMDIT
    assert checkpoint.vae_config == LENS_VAE
    ours, theirs = LENS_GPT_OSS, checkpoint.encoder_config
    for name in ("hidden_size", "num_hidden_layers", "num_local_experts", "vocab_size", "yarn"):
        assert getattr(theirs, name) == getattr(ours, name)
    denoiser = next(part for part in report.components if part.name == "transformer")
    assert denoiser.num_parameters == 4_104_225_152


def test_a_picture_comes_out_that_depends_on_the_words(published: Path) -> None:
    pipeline = Pipeline.load(published)
    options: dict[str, Any] = {"size": "256x256", "steps": 4, "seed": 1}
    fox, again, sea = (
        pipeline.generate(prompt, **options)[0].pixels.astype(float)
        for prompt in ("a red fox in the snow", "a red fox in the snow", "a blue sea at night")
    )
    assert np.array_equal(fox, again)
    assert fox.std() > 10  # neither black nor grey
    assert np.abs(fox - sea).mean() > 10
