"""The command `petzval`: a menu, and the one command that was asked for.

Only that command's module is imported; the others appear in the menu by their summary. So help
answers in a tenth of a second, and a test keeps torch and rich out of it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, cast

import typer

import petzval
from petzval.cli.console import PipeClosedError, complain, print_line
from petzval.cli.signals import EXIT_INTERRUPTED, EXIT_TERMINATED, say_end, stoppable
from petzval.errors import PetzvalError, TerminatedError

P = ParamSpec("P")
R = TypeVar("R")

Entry: TypeAlias = "Callable[..., object] | Mapping[str, Any]"

COMMANDS: Mapping[str, str] = {
    "generate": "Draw pictures from prompts.",
    "plan": "Plan memory and time of a picture before anything is loaded.",
    "show": "Print the recipe inside a picture.",
    "models": "List the models, where they are and what they need.",
    "pull": "Fetch weights from a mirror, proven, with their licence shown first.",
    "doctor": "Report versions, devices, memory and kernels, with reasons.",
    "bench": "Measure how fast this machine makes pictures, technique by technique.",
    "convert": "Write a model or one of its parts in another format.",
    "verify": "Check a checkpoint, and its results against recorded ones.",
    "data": "Fetch and build training data.",
    "pretrain": "Train a part of a model, or go on with it.",
    "finetune": "Teach a model pictures of your own, as a LoRA or in all its weights.",
    "distill": "Teach a model to draw in four steps without guidance.",
    "evaluate": "Measure how well a model follows prompts.",
    "compare": "Compare models, or step counts of one, on the same prompts.",
    "serve": "Run the studio: a page, jobs, and OpenAI's Images API.",
}
"""Name -> summary. The command is what has that name in `petzval.cli.<name>`: a function; or verbs
and their functions, where "" is what the name does alone, and a verb may have verbs of its own."""

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR, EXIT_PIPE_CLOSED = 0, 1, 2, 141
EXIT_CODES = (
    f"Exit codes: {EXIT_OK} done, {EXIT_FAILED} a verification or an evaluation failed, "
    f"{EXIT_USER_ERROR} the request was wrong (a hint says what to try), "
    f"{EXIT_INTERRUPTED} interrupted, {EXIT_PIPE_CLOSED} nobody reads stdout any more, "
    f"{EXIT_TERMINATED} terminated. "
    "Results go to stdout, everything else to stderr."
)

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Threads that wait for their turn sleep: spinning ones starve each other on a shared machine
    # (a picture on two busy threads took 46 s of processor time in place of 4).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build(words)(args=words, prog_name="petzval")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else EXIT_FAILED
    return EXIT_OK


def build(words: Sequence[str] = ()) -> typer.Typer:
    """The menu, with the command that `words` name loaded and the others as summaries."""
    asked = next((word for word in words if not word.startswith("-")), None)
    # An option of the menu that is not given makes typer import pydantic, a tenth of a second; so
    # the menu has options only where the command is not the first word.
    has_options = asked is None or words[0] != asked
    app = typer.Typer(
        help="Draw pictures from words with the Lens family of models.",
        epilog=EXIT_CODES,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_help_option=has_options,
        context_settings=_SETTINGS,
    )
    app.callback()(_options if has_options else _summary_only)
    for name, summary in COMMANDS.items():
        if name == asked:
            _load(app, name, summary)
        else:
            app.command(name, help=summary)(_summary_only)
    return app


def _load(app: typer.Typer, name: str, summary: str) -> None:
    module = import_module(f"petzval.cli.{name}")
    _add(app, name, summary, getattr(module, name))


def _add(app: typer.Typer, name: str, summary: str | None, entry: Entry) -> None:
    if not isinstance(entry, Mapping):
        app.command(name, epilog=EXIT_CODES, context_settings=_SETTINGS)(_guarded(entry))
        return
    alone = cast("Callable[..., object] | None", entry.get(""))
    group = typer.Typer(
        no_args_is_help=alone is None, invoke_without_command=True, rich_markup_mode=None
    )
    group.callback(epilog=EXIT_CODES)(_summary_only if alone is None else _guarded(alone))
    for verb, below in entry.items():
        if verb:
            _add(group, verb, _first_line(below), below)
    app.add_typer(group, name=name, help=summary, context_settings=_SETTINGS)


def _first_line(entry: Entry) -> str | None:
    return None if not isinstance(entry, Mapping) else f"{', '.join(entry).capitalize()}."


def _guarded(function: Callable[P, R]) -> Callable[P, R]:
    """A user's mistake becomes one line and a hint; an interruption leaves quietly."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        heard: Sequence[int] = ()
        try:
            with stoppable() as heard:
                return function(*args, **kwargs)
        except BaseException as error:
            code = _end(error, heard)
            if code is None:
                raise
        raise typer.Exit(code)

    return run


def _end(error: BaseException, heard: Sequence[int]) -> int | None:
    """Say how a command ended, and return its exit code; None for what is a bug, or no end."""
    if heard:  # whatever the signal became on its way up
        return say_end(heard[-1])
    if isinstance(error, KeyboardInterrupt):
        stopped_by = signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT
        return say_end(stopped_by)
    if isinstance(error, PipeClosedError):
        return EXIT_PIPE_CLOSED
    if not isinstance(error, PetzvalError):
        return None
    complain("error", error.message)
    if error.hint:
        complain("hint", error.hint)
    return EXIT_USER_ERROR


def _version(wanted: bool) -> None:
    if wanted:
        print_line(petzval.__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version


def _summary_only() -> None:
    """Stands in the menu for a command that was not asked for."""
