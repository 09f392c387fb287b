from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.server.running import Running, running


@pytest.fixture(scope="module")
def shared_studio(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """The same, one for all tests of a file: for what leaves nothing behind."""
    with running(tmp_path_factory.mktemp("studio")) as started:
        yield started


@pytest.fixture
def studio(tmp_path: Path) -> Generator[Running]:
    """A server around a scripted engine, with the default settings."""
    with running(tmp_path) as started:
        yield started
