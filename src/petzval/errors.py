"""What can go wrong, and what to do next.

    PetzvalError
    ├── RequestError            a picture was asked for in a way that cannot be served
    │   └── ResolutionError     … because of its size
    ├── ConfigError             a setting is unknown, missing or of the wrong kind
    ├── CheckpointError         files of a checkpoint are missing, damaged or of another shape
    ├── DownloadError           weights cannot be fetched, or are not what was promised
    ├── DataError               a corpus, a sprite library or a packaged set cannot be read
    ├── TrainingError           a run cannot start, go on or be resumed
    ├── NumericsError           a number stopped being finite while a picture was made
    ├── PlacementError          memory does not suffice, or ran out
    ├── QueueFullError          as many requests wait as may wait; nothing was accepted
    ├── ServerError             the server cannot start, or a key or its data cannot be used
    └── MissingExtraError       an optional dependency is not installed

    KeyboardInterrupt
    └── TerminatedError         SIGTERM asked to stop, as Ctrl-C does; no mistake, and no hint

Every `PetzvalError` carries a `hint`: the next thing to try. The command line prints both and exits
with 2; an error that is not in this tree is a bug of ours and is shown with its traceback.
"""

from __future__ import annotations


class PetzvalError(Exception):
    """Base of every error that a user can cause and mend.

    Args:
        message: one line that says what was wrong and what was expected.
        hint: one line that says what to try next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class RequestError(PetzvalError):
    """The request itself is wrong: prompt, steps, guidance, seed, output."""


class ResolutionError(RequestError):
    """The size is off the grid, out of range or not a known preset."""


class ConfigError(PetzvalError):
    """A configuration value is unknown, missing, or of the wrong type."""


class CheckpointError(PetzvalError):
    """A checkpoint is refused whole: the message names the file and the key."""


class DownloadError(PetzvalError):
    """A download is refused or fails; the message names the file or the repository."""


class DataError(PetzvalError):
    """Training or evaluation data is missing or damaged."""


class TrainingError(PetzvalError):
    """A training run cannot start, continue or resume."""


class NumericsError(PetzvalError):
    """A tensor stopped being finite; the message names the step."""


class PlacementError(PetzvalError):
    """No plan fits the memory there is; the hint names one that would."""


class QueueFullError(PetzvalError):
    """Too many requests wait already; the same one may be accepted later."""


class ServerError(PetzvalError):
    """The server cannot start, or its folder or one of its keys cannot be used."""


class MissingExtraError(PetzvalError):
    """An optional dependency is absent; the hint is the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            f"pip install 'petzval[{extra}]'",
        )


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, it unwinds what is under way, so that no unfinished file is left."""
