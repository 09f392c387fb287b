"""`petzval plan`: what a picture needs on this machine, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli import options
from petzval.cli.console import plain_warnings, print_json, print_line, print_table

if TYPE_CHECKING:
    from petzval.inference.placement import NetworkPlacement, Placement
    from petzval.inference.variants import Located


def plan(
    model: options.Model = None,
    denoiser: options.Denoiser = None,
    encoder: options.Encoder = None,
    vae: options.Vae = None,
    tokenizer: options.Tokenizer = None,
    size: options.Size = None,
    aspect: options.Aspect = None,
    base: options.Base = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    memory: options.Memory = None,
    ram: options.Ram = None,
    quantise: options.Quantise = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    speeds: Annotated[
        Path | None,
        typer.Option(help="JSON file of speeds to reckon with. [default: measured now]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan where the networks will be, and predict peak memory and seconds.

    Headers and settings are read, no weights. `petzval generate` with the same options follows the
    same plan. A device that is not on this machine can be planned for, and so can a published
    model that was not fetched yet.
    """
    asked = {"size": size, "aspect": aspect, "base": base, "steps": steps, "guidance": guidance}
    given = {name: value for name, value in asked.items() if value is not None}
    machine = {"memory": memory, "ram": ram, "quantise": quantise, "device": device, "dtype": dtype}
    parts = {"denoiser": denoiser, "encoder": encoder, "vae": vae, "tokenizer": tokenizer}
    with plain_warnings():
        located, placement = _place(model, parts, given, machine, speeds)
    if json:
        from petzval.inference.planning import as_json

        print_json({**as_json(placement), "files_are_here": located.unfetched is None})
        return
    _show(placement)
    if located.unfetched is not None:
        print_line(
            f"files        are not here: this is for the published sizes of {located.name}"
            + (", read at 1 GB/s" if speeds is None else "")
            + f"; `petzval pull {located.unfetched.name}` fetches them"
        )
    _show_whose_seconds(placement.device, given=speeds is not None)


def _place(
    model: str | None,
    parts: dict[str, Path | None],
    given: dict[str, Any],
    machine: dict[str, str | None],
    speeds: Path | None,
) -> tuple[Located, Placement]:
    """Refuse what is wrong before torch is loaded, then plan."""
    from petzval.config import from_mapping, read_json
    from petzval.inference.parts import Parts
    from petzval.inference.placement import choose_storage
    from petzval.inference.request import GenerationRequest
    from petzval.inference.variants import locate

    named = Parts.of(**parts)
    name = model if model is not None or named else options.DEFAULT_MODEL
    located = locate(name, named, unfetched=True)
    request = GenerationRequest(prompt="a picture", **given)
    request.resolution(located.defaults)
    storage = choose_storage(machine["quantise"] or "exact")

    from petzval.inference.dry_networks import DEFAULT_TEXT_TOKENS
    from petzval.inference.plan import make_plan
    from petzval.inference.planning import Planning
    from petzval.inference.speeds import Speeds
    from petzval.inference.terms import Budget

    known = None if speeds is None else read_json(speeds)
    planning = Planning.open(
        located,
        (),
        device=machine["device"] or "auto",
        dtype=machine["dtype"] or "auto",
        budget=Budget.of(machine["memory"], machine["ram"]),
        storage=storage,
        speeds=None if known is None else from_mapping(Speeds, known, where=str(speeds)),
        absent=True,
    )
    plan = make_plan(request, located.defaults)
    work = planning.work(plan, text_tokens=DEFAULT_TEXT_TOKENS)
    return located, planning.planner(work).choose(planning.limits())


def _show(placement: Placement) -> None:
    from rich.table import Table

    from petzval.inference.placement import spell_bytes

    table = Table(
        "network", "plan", "files", "weights", "work", "peak", "read again", "s", box=None
    )
    for each in placement.networks:
        table.add_row(
            each.network,
            _strategy(each, placement),
            " + ".join(f"{spell_bytes(count)} {name}" for name, count in each.stored),
            spell_bytes(each.weight_bytes),
            spell_bytes(each.working_bytes + each.kept_bytes),
            spell_bytes(each.peak_bytes),
            spell_bytes(each.moved_bytes),
            f"{each.seconds:.3g}",
        )
    print_table(table)
    size = f"{placement.width}x{placement.height}, {placement.steps} calls, {placement.dtype}"
    print_line(f"picture      {size} on {placement.device}")
    where = "memory" if placement.device == "cpu" else f"memory of {placement.device}"
    print_line(
        f"peak         {spell_bytes(placement.peak_bytes)} of {where}, "
        f"{spell_bytes(placement.ram_bytes)} of RAM "
        f"(of it {spell_bytes(placement.baseline_bytes)} python and torch)"
    )
    print_line(
        f"time         {placement.seconds:.3g} s, {placement.further_seconds:.3g} s for "
        "each further picture of the same request"
    )
    print_line("picture is   " + ("the exact one" if placement.exact else "near the exact one"))


def _show_whose_seconds(device: str, *, given: bool) -> None:
    import torch

    from petzval.inference.speeds import ABSENT
    from petzval.kernels import backends

    if not given and not backends.present(torch.device(device)):
        print_line(
            f"seconds      of a card that reaches {ABSENT['flops'] / 1e12:.0f} TFLOP/s, for "
            f"{device} is not on this machine; --speeds gives another's"
        )


def _strategy(each: NetworkPlacement, placement: Placement) -> str:
    away = "" if each.strategy.device == placement.device else f" on {each.strategy.device}"
    return f"{each.strategy}{away}"
