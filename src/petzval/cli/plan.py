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

_FEW_BYTES = 1000
"""Of a type in a file; less is a counter, and says nothing of memory."""

_WORDS = {
    "staged": "loaded for its part of a picture, then freed",
    "streamed": "read layer by layer as it runs, never there as a whole",
    "layers kept": "of a streamed network's, so many stay once they were read",
    "folded": "what depends on the step alone is computed once for all steps, its weights let go",
    "coded as its file": "kept in the file's own few bits, decoded layer by layer",
    "strips": "decoded in rows that join without seams",
    "read again": "from the files, for each further picture of the same words",
}
"""The words of a plan that do not explain themselves; "read again" is a column of every table."""


def plan(
    model: options.Model = None,
    denoiser: options.Denoiser = None,
    encoder: options.Encoder = None,
    vae: options.Vae = None,
    tokenizer: options.Tokenizer = None,
    size: options.Size = None,
    aspect: options.Aspect = None,
    base: options.Base = None,
    allow_any_size: options.AllowAnySize = False,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Pictures that run together, as `petzval serve` has it.", min=1, max=1024
        ),
    ] = 1,
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
    # Of as many prompts, as a server's pictures are.
    prompts = [f"picture {number}" for number in range(batch_size)]
    asked |= {"allow_any_size": allow_any_size or None, "prompt": prompts}
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
        read = ", read at 1 GB/s" if speeds is None else ""
        sizes = f"are not here: this is for the published sizes of {located.name}{read}"
        _say("files", f"{sizes}; `petzval pull {located.unfetched.name}` fetches them")
    _show_whose_seconds(placement.device, given=speeds is not None)
    _explain(placement)


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
    request = GenerationRequest(**given)
    request.resolution(located.defaults)
    chosen = {name: value for name, value in machine.items() if value is not None}
    storage = choose_storage(chosen.get("quantise", "exact"))

    from petzval.inference.dry_networks import DEFAULT_TEXT_TOKENS
    from petzval.inference.plan import make_plan
    from petzval.inference.planning import Planning
    from petzval.inference.speeds import Speeds
    from petzval.inference.terms import Budget

    known = None if speeds is None else read_json(speeds)
    planning = Planning.open(
        located,
        (),
        device=chosen.get("device", "auto"),
        dtype=chosen.get("dtype", "auto"),
        budget=Budget.of(machine["memory"], machine["ram"]),
        storage=storage,
        speeds=None if known is None else from_mapping(Speeds, known, where=str(speeds)),
        absent=True,
    )
    plan = make_plan(request, located.defaults)
    together = len(request.prompts)
    work = planning.work(plan, text_tokens=DEFAULT_TEXT_TOKENS, batch_size=together)
    return located, planning.planner(work).choose(planning.limits())


def _show(placement: Placement) -> None:
    """A line for each network, and the sums."""
    from petzval.inference.placement import spell_bytes

    _show_networks(placement)
    print_line()
    size = f"{placement.width}x{placement.height}, {placement.steps} steps, {placement.dtype}"
    together = f"{placement.batch} at once of " if placement.batch > 1 else ""
    _say("picture", f"{together}{size} on {placement.device}")
    ram = f"{spell_bytes(placement.ram_bytes)} of RAM"
    device = f"{spell_bytes(placement.peak_bytes)} of memory of {placement.device}, "
    of_it = f"of it {spell_bytes(placement.baseline_bytes)} python and torch"
    _say("peak", f"{'' if placement.device == 'cpu' else device}{ram} ({of_it})")
    further, other = _time(placement.further_seconds), _time(placement.other_seconds)
    once_more = "a further picture" if placement.batch == 1 else f"{placement.batch} further ones"
    _say("time", f"{_time(placement.seconds)}; {once_more} {further}, of other words {other}")
    storage = placement.networks[1].strategy.storage
    rounded = f"near the exact one: the denoiser's blocks are rounded to {storage}"
    _say("picture is", "the exact one, up to rounding" if placement.exact else rounded)


def _explain(placement: Placement) -> None:
    """What the words of this plan mean."""
    print_line()
    used = " ".join(str(each.strategy) for each in placement.networks) + " read again"
    for word, meaning in _WORDS.items():
        if word in used:
            _say(word, meaning)


def _say(label: str, text: str) -> None:
    """Below the table's first column, so that the text stands under its second."""
    print_line(f"{label:<14}{text}")


def _show_networks(placement: Placement) -> None:
    from rich.table import Table

    from petzval.inference.placement import spell_bytes

    table = Table("network", "plan", "files", box=None, pad_edge=False)
    for heading in ("weights", "work", "peak", "read again", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in placement.networks:
        table.add_row(
            each.network,
            _strategy(each, placement),
            " + ".join(f"{spell_bytes(n)} {name}" for name, n in each.stored if n >= _FEW_BYTES),
            spell_bytes(each.weight_bytes),
            spell_bytes(each.working_bytes),
            spell_bytes(each.peak_bytes),
            spell_bytes(each.moved_bytes) if each.moved_bytes else "–",
            _time(each.seconds),
        )
    print_table(table)


def _time(seconds: float) -> str:
    """Two digits, all that a prediction is good for, and a unit that a person would choose."""
    if seconds < 0.0005:
        return "under 1 ms"
    units = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
    size, unit = next((each for each in units if seconds >= 1.95 * each[0]), (1e-3, "ms"))
    return f"{float(f'{seconds / size:.2g}'):g} {unit}"


def _show_whose_seconds(device: str, *, given: bool) -> None:
    import torch

    from petzval.inference.speeds import ABSENT
    from petzval.kernels import backends

    if not given and not backends.present(torch.device(device)):
        rate = f"{ABSENT['flops'] / 1e12:.0f} TFLOP/s"
        _say(
            "seconds",
            f"of a card that reaches {rate}, for {device} is not on this machine; "
            "--speeds gives another's",
        )


def _strategy(each: NetworkPlacement, placement: Placement) -> str:
    away = "" if each.strategy.device == placement.device else f" on {each.strategy.device}"
    return f"{each.strategy}{away}"
