"""The small library that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from petzval.data.sprites import SpriteLibrary, write_library
from tests.data.small_library import small_concepts, small_pictures


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder; tests that damage it must work on a copy."""
    folder = tmp_path_factory.mktemp("library")
    write_library(folder, small_pictures(), small_concepts(), num_processes=1)
    return folder


@pytest.fixture(scope="session")
def library(library_folder: Path) -> SpriteLibrary:
    """The opened small library."""
    return SpriteLibrary.open(library_folder)
