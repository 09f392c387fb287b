"""`petzval show`: the recipe inside a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petzval.cli.console import print_json, print_line, printable


def show(
    file: Annotated[Path, typer.Argument(help="A picture made by petzval.")],
    json: Annotated[bool, typer.Option("--json", help="Print the recipe as JSON.")] = False,
) -> None:
    """Print the recipe inside a picture: what makes it again."""
    from petzval.config import to_mapping
    from petzval.inference.image import read_recipe

    made = read_recipe(file)
    recipe = to_mapping(made)
    if json:
        print_json(recipe)
        return
    recipe["loras"] = ", ".join(
        f"{lora.file}:{lora.weight:g} (sha256 {lora.sha256})" for lora in made.loras
    )
    width = max(len(name) for name in recipe)
    for name, value in recipe.items():
        print_line(f"{name:<{width}}  {printable('' if value is None else str(value))}")
