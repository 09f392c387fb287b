"""Commands are run as the command line's own tests run them."""

from __future__ import annotations

from tests.cli.conftest import run

__all__ = ["run"]
