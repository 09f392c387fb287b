"""The log: one JSON object a line on stderr, for programs and people alike.

What a person asked for is personal: prompts are not in it, unless the server is told so.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOGGER = logging.getLogger("petzval.server")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; line ends inside it are escaped, so that none can be forged."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        told |= getattr(record, "facts", {})
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def configure() -> None:
    """Write the log of the server, and the warnings of what it uses, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(True)


def note(event: str, **facts: object) -> None:
    """One line of the log.

    Args:
        facts: what it is about, as JSON.
    """
    LOGGER.info(event, extra={"facts": facts})
