"""The generated parts of the documentation, printed by cog into the pages (`make reference`).

Each function returns Markdown made from the program itself, so that a page cannot say something
else than the code: `make docs` fails when one of them is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "petzval"


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0].rstrip(".:")


def layers() -> list[list[str]]:
    """The floors of the house, top first, from the import contract."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    house = next(contract for contract in contracts if contract["type"] == "layers")
    return [[room.strip(" ()") for room in layer.split("|")] for layer in house["layers"]]


def room_table() -> str:
    """Floor by floor: each room and the first line of its docstring."""
    lines = ["| room | what it is for |", "| --- | --- |"]
    for floor in layers():
        for room in floor:
            folder = PACKAGE / room / "__init__.py"
            path = folder if folder.exists() else PACKAGE / f"{room}.py"
            target = path.parent if folder.exists() else path
            link = target.relative_to(REPOSITORY).as_posix()
            lines.append(f"| [`{room}`]({link}) | {_first_line(path)} |")
    return "\n".join(lines)


def house() -> str:
    """The floors as a picture; an import may only go down."""
    width = max(len("   ".join(floor)) for floor in layers()) + 4
    lines = ["```", "┌" + "─" * width + "┐"]
    for floor in layers():
        lines.append("│  " + "   ".join(floor).ljust(width - 2) + "│")
        lines.append("├" + "─" * width + "┤")
    lines[-1] = "└" + "─" * width + "┘"
    return "\n".join([*lines, "```"])


def _help(*command: str) -> str:
    environment = os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    program = Path(sys.executable).with_name("petzval")
    run = subprocess.run(
        [str(program), *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())


def command_line() -> str:
    """`--help` of the program and of every command, subcommands included."""
    parts: list[str] = []
    pending: list[tuple[str, ...]] = [()]
    while pending:
        command = pending.pop(0)
        text = _help(*command)
        title = " ".join(("petzval", *command))
        parts.append(f"{'#' * (2 + len(command))} `{title}`\n\n```\n{text}\n```\n")
        pending = [(*command, name) for name in _commands(text)] + pending
    return "\n".join(parts)


def _commands(text: str) -> list[str]:
    """The names in the list of commands of a help text."""
    match = re.search(r"^Commands:\n((?:  .*\n)+)", text + "\n", re.MULTILINE)
    return re.findall(r"^  ([a-z][a-z-]*)", match[1], re.MULTILINE) if match else []


def _attribute_notes(cls: type[Any]) -> dict[str, str]:
    """What the class's docstring says about each of its attributes.

    An entry is `name: text` or `one, two: text`; continuation lines are indented further.
    """
    docstring = inspect.getdoc(cls) or ""
    match = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    notes: dict[str, str] = {}
    names: list[str] = []
    for line in (match[1] if match else "").splitlines():
        entry = re.match(r"^ {4}(\w+(?:, \w+)*): (.*)$", line)
        if entry:
            names = entry[1].split(", ")
            notes |= dict.fromkeys(names, entry[2])
        elif line.strip():
            notes |= {name: f"{notes[name]} {line.strip()}" for name in names}
    return notes


def settings(*places: str) -> str:
    """A table for each dataclass, given as `module:Class`: setting, type, default, meaning."""
    parts: list[str] = []
    for place in places:
        module, name = place.split(":")
        cls = getattr(import_module(module), name)
        summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        parts += [f"## `{name}`", "", f"`{module}`. {summary}", ""]
        parts += ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        notes = _attribute_notes(cls)
        for field in dataclasses.fields(cls):
            kind = str(field.type).replace("|", "or")
            note = notes.get(field.name, "").replace("|", "or")
            parts.append(f"| `{field.name}` | {kind} | {_default(field)} | {note} |")
        parts.append("")
    return "\n".join(parts)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        name = type(made).__name__
        return f"see `{name}`" if dataclasses.is_dataclass(made) else f"`{made!r}`"
    return "required"


def errors() -> str:
    """The tree of errors, as drawn in its module, and when each one happens."""
    module = import_module("petzval.errors")
    drawing, *_ = (inspect.getdoc(module) or "").split("\n\nEvery one")
    tree = drawing.split("\n\n", 1)[1]
    lines = ["```", inspect.cleandoc(tree), "```", "", "| error | when |", "| --- | --- |"]
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and issubclass(cls, Exception):
            summary = (inspect.getdoc(cls) or "").splitlines()[0]
            lines.append(f"| `{name}` | {summary} |")
    return "\n".join(lines)


def presets() -> str:
    """Sizes by base and aspect ratio, width x height."""
    table = import_module("petzval.resolution").PRESETS
    ratios = list(next(iter(table.values())))
    lines = ["| base | " + " | ".join(ratios) + " |", "| --: |" + " --- |" * len(ratios)]
    for base, family in table.items():
        lines.append(f"| {base} | " + " | ".join(str(family[ratio]) for ratio in ratios) + " |")
    return "\n".join(lines)


def door() -> str:
    """The public names of the package, in their order, with the first line of each docstring."""
    petzval = import_module("petzval")
    lines = ["| name | what it is |", "| --- | --- |"]
    for name in petzval.__all__:
        if name.startswith("__"):
            continue
        thing = getattr(petzval, name)
        documented = inspect.isclass(thing) or inspect.isfunction(thing)
        summary = (inspect.getdoc(thing) or "").splitlines()[0] if documented else _constant(name)
        lines.append(f"| `petzval.{name}` | {summary} |")
    return "\n".join(lines)


def _constant(name: str) -> str:
    """The string that stands below a constant's definition in its module."""
    petzval = import_module("petzval")
    module = import_module(petzval._HOMES[name])
    body = ast.parse(inspect.getsource(module)).body
    for node, following in zip(body, body[1:], strict=False):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return str(following.value.value).splitlines()[0]
    return ""


def benchmark_table() -> str:
    """One line a benchmark case, from the latest results."""
    sys.path.insert(0, str(REPOSITORY))
    from benchmarks.report import summary_table

    return summary_table(REPOSITORY / "benchmarks" / "results")
