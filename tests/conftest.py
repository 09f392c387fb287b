"""What every test shares: one thread a worker, no network, seeds, and markers of what is needed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

# Two workers with all cores each would wait for one another. Set before torch is imported; programs
# that a test starts inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

CHROMIUM = os.environ.get("PETZVAL_CHROMIUM") or shutil.which("chromium")
"""The browser that the page is tested in: the operating system's own."""

# The same examples in every run, however busy the machine is and whatever an earlier run found.
settings.register_profile(
    "petzval",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("petzval")

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDENS = REPOSITORY / "tests" / "goldens" / "public"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of golden tensors recorded from the original program; its README says how."""
    return GOLDENS


@pytest.fixture(scope="session")
def golden_checkpoint(goldens: Path) -> Path:
    """The tiny random checkpoint in the published layout that the goldens were recorded from."""
    return goldens / "checkpoint"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test, and every fixture made for it, draws the same numbers, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason, so that the summary counts it."""
    compile_only = config.getoption("markexpr") == "compile"
    absent = {
        "gpu": None if torch.cuda.is_available() else "needs a GPU",
        "published_weights": (
            None if os.environ.get("PETZVAL_WEIGHTS") else "needs the published weights"
        ),
        "browser": None if CHROMIUM else "needs Chromium: apt-get install chromium",
        "ray": None if os.environ.get("PETZVAL_RAY") else "starts a Ray cluster: set PETZVAL_RAY",
        "compile": None if compile_only else "compiles: run `make test-compile`",
    }
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            # Compilers and drivers warn of their own affairs, of each card and release others.
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
        for marker, reason in absent.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
