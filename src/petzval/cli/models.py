"""`petzval models`: what is here, where, and what it needs."""

from __future__ import annotations

from typing import Annotated

import typer

from petzval.cli.console import print_json, print_table


def models(
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models, where they are and what they need."""
    from petzval.errors import PetzvalError
    from petzval.inference.variants import VARIANTS, locate, places

    rows: list[dict[str, str | int | float | None]] = []
    for variant in VARIANTS.values():
        try:
            folder, defaults = locate(variant.name).folder, locate(variant.name).defaults
        except PetzvalError:
            folder, defaults = None, variant.defaults
        rows.append(
            {
                "name": variant.name,
                "title": variant.title,
                "folder": None if folder is None else str(folder),
                "looked_for": "; ".join(str(place) for place in places(variant)),
                "steps": defaults.steps,
                "guidance": defaults.guidance,
                "base": defaults.base,
                "disk_bytes": variant.disk_bytes,
                "memory": variant.memory,
                "repository": variant.repository,
            }
        )
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("model", "what", "steps", "guidance", "size", "needs", "where", box=None)
    for row in rows:
        disk = f"{_size(int(row['disk_bytes'] or 0))} on disk"
        where = row["folder"] or f"not here; petzval pull {row['name']}"
        cells = (row["name"], row["title"], row["steps"], row["guidance"], row["base"])
        table.add_row(*(str(cell) for cell in cells), f"{disk}, {row['memory']}", str(where))
    print_table(table)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2g} MB"
