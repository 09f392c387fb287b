"""`python -m petzval` is the command `petzval`."""

from __future__ import annotations

import sys

from petzval.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
