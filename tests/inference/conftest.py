from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import jaxtyping
import pytest

from petzval.inference.pipeline import Pipeline


@pytest.fixture(scope="session")
def pipeline(golden_checkpoint: Path) -> Pipeline:
    """The tiny random checkpoint, in float32 on the CPU."""
    return Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")


@pytest.fixture
def without_shape_hook() -> Generator[None]:
    """The product as users run it: our own answer to a wrong type, not the test hook's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
