"""A row of the waterfall as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petzval.bench.floor import STAGES


def fastest(ways: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the ways that are exact; the last one need not be it. Of all, where none is exact."""
    exact = [way for way in ways if way["exact"]]
    return min(exact or ways, key=lambda way: way["total_ms"])


def table(row: dict[str, Any]) -> str:
    """Ways from top to bottom: milliseconds of each stage, the whole, how many times as fast."""
    lines = [
        f"**{row['title']}** · {row['device']}, {row['dtype']}",
        "",
        "| way | encode | denoise | decode | whole, ms | times as fast | difference |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for way in row["ways"]:
        stages = " | ".join(_milliseconds(way["stages_ms"][stage]) for stage in STAGES)
        spread = f"{_milliseconds(way['low_ms'])}–{_milliseconds(way['high_ms'])}"
        whole = f"{_milliseconds(way['total_ms'])} ({spread})"
        difference = f"{way['error']:.1e}" + ("" if way["exact"] else ", not exact")
        lines.append(f"| {way['name']} | {stages} | {whole} | {way['ratio']:.2f} | {difference} |")
    floor = {stage: row["floor"][stage]["ms"] for stage in STAGES}
    cells = " | ".join(_milliseconds(floor[stage]) for stage in STAGES)
    lines += [
        f"| *the floor* | {cells} | {_milliseconds(sum(floor.values()))} | | |",
        "",
        f"Ceilings measured in the same run: {row['ceilings']['flops'] / 1e12:.3g} TFLOP/s, "
        f"{row['ceilings']['bytes'] / 1e9:.3g} GB/s. The fastest exact way reaches "
        f"{100 * row['share_of_floor']:.0f} % of the floor: {fastest(row['ways'])['name']}. "
        f"Peak memory {row['peak_mib']:.0f} MiB.",
    ]
    lines += [f"Not measured: {name}: {why}." for name, why in row.get("failed", {}).items()]
    if row["extrapolated"]:
        parts = ", ".join(f"{stage} x {share:.4g}" for stage, share in row["extrapolated"].items())
        lines.append(f"*Extrapolated* from a part of the networks by the count of work: {parts}.")
    if row["setting"]["blocks"]:
        lines.append("A decoder that several ways share was timed once a round.")
    return "\n".join(lines)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
