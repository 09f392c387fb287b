"""`petzval generate`: prompts in, picture files out."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli import options
from petzval.cli.console import complain, plain_warnings, print_json, print_line, printable, stderr
from petzval.errors import RequestError

if TYPE_CHECKING:
    import torch

    from petzval.inference.engine import Engine
    from petzval.inference.loras import LoraChoice
    from petzval.inference.pipeline import Pipeline
    from petzval.inference.plan import GenerationPlan
    from petzval.inference.recipe import Recipe
    from petzval.inference.request import GeneratedImage, GenerationRequest
    from petzval.inference.task import Task

_WORD_LIMIT = 80
"""Characters of a recipe's word in a message."""


def generate(
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    from_: options.Picture = None,
    model: options.Model = None,
    denoiser: options.Denoiser = None,
    encoder: options.Encoder = None,
    vae: options.Vae = None,
    tokenizer: options.Tokenizer = None,
    lora: options.Loras = None,
    aspect: options.Aspect = None,
    size: options.Size = None,
    base: options.Base = None,
    allow_any_size: options.AllowAnySize = False,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    seed: options.Seed = None,
    num: options.NumImages = None,
    out: options.Out = ".",
    format: options.Format = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture: file, recipe, seconds.")
    ] = False,
    solver: options.Solver = None,
    mu: options.Mu = None,
    parity: options.ParityMode = None,
    template_date: options.TemplateDate = None,
    max_tokens: options.MaxTokens = None,
    allow_blank: options.AllowBlank = False,
    mark: options.Mark = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    memory: options.Memory = None,
    ram: options.Ram = None,
    quantise: options.Quantise = None,
    compile: options.Compile = None,
) -> None:
    """Draw pictures from prompts.

    Prints the path of each picture. Every file holds the recipe that makes it again: `petzval show`
    prints it, `petzval generate --from` follows it.
    """
    asked = {
        "aspect": aspect,
        "size": size,
        "base": base,
        "allow_any_size": allow_any_size or None,
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative,
        "seed": _seed(seed),
        "num_images": num,
        "solver": solver,
        "mu": mu,
        "parity": parity,
        "template_date": template_date,
        "max_tokens": max_tokens,
        "allow_blank": allow_blank or None,
        "mark": mark,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    with plain_warnings():
        recipe = _recipe(from_, prompt, file)
        request = _request(recipe, prompt, file, given)
        loras = _loras(lora, recipe, from_)
        limits = {"memory": memory, "ram": ram, "quantise": quantise}
        machine = {"device": device, "dtype": dtype, "threads": threads, "limits": limits}
        parts = {"denoiser": denoiser, "encoder": encoder, "vae": vae, "tokenizer": tokenizer}
        _draw(
            request,
            recipe,
            model,
            parts,
            loras,
            machine,
            compile=compile,
            out=out,
            format=format,
            json=json,
        )


def _draw(
    request: GenerationRequest,
    recipe: Recipe | None,
    model: str | None,
    parts: dict[str, Path | None],
    loras: tuple[LoraChoice, ...],
    machine: dict[str, Any],
    *,
    compile: bool | None,
    out: str,
    format: str | None,
    json: bool,
) -> None:
    """Refuse what is wrong before torch is loaded, then draw and save picture by picture.

    The engine draws, as it does for the server; but in this thread, so that Ctrl-C need not wait
    for the end of a step.
    """
    from petzval.cli.output import choose_output
    from petzval.cli.writer import PictureWriter
    from petzval.inference.parts import Parts
    from petzval.inference.task import Ended, Finished, Stepped
    from petzval.inference.variants import locate

    named = Parts.of(**parts)
    name = model if model is not None or named else _recipe_model(recipe)
    request.resolution(locate(name, named).defaults)
    output = choose_output(out, format, len(request.prompts) * request.num_images)
    pipeline = _load(name, parts, request, recipe, loras, **machine)
    if recipe is not None:
        _compare(recipe, pipeline, chosen=model is not None or bool(named))
    plan = pipeline.plan(request)
    events = _engine(pipeline).run(_task(plan, pipeline.name))
    output.prepare()
    kept = _compile(pipeline, plan, compile)
    written = partial(_report, json=json)
    with (
        _progress(len(plan.images) * plan.steps) as advance,
        PictureWriter(output.write, written) as writer,
    ):
        for event in events:
            if isinstance(event, Stepped):
                advance()
                writer.look()
            elif isinstance(event, Finished):
                writer.put(event.image)
            elif isinstance(event, Ended) and event.error is not None:
                raise event.error
    kept()


def _engine(pipeline: Pipeline) -> Engine:
    from petzval.inference.drawer import LoadedDrawer
    from petzval.inference.engine import Engine

    return Engine([LoadedDrawer(pipeline)])


def _task(plan: GenerationPlan, model: str) -> Task:
    from petzval.inference.task import Task

    return Task(id="generate", plan=plan, model=model, previews=False)


def _compile(pipeline: Pipeline, plan: GenerationPlan, asked: bool | None) -> Callable[[], object]:
    """Compile the networks where that was asked for or pays; returns what to call when it worked.

    The choice is said on stderr only where it was made for the user and costs time.
    """
    from petzval.inference.compile import compile_for

    choice, done = compile_for(pipeline, plan, asked)
    if choice.compile and asked is None:
        complain("note", f"compiling: {choice.reason}; --no-compile leaves it out")
    return done


def _recipe_model(recipe: Recipe | None) -> str:
    """The model to use when none is named. A recipe may name a variant, never a path.

    Raises:
        RequestError: the recipe's model is no variant.
    """
    from petzval.inference.variants import VARIANTS

    if recipe is None:
        return options.DEFAULT_MODEL
    if recipe.model not in VARIANTS:
        raise RequestError(
            f"the picture was made with {recipe.model[:_WORD_LIMIT]!r}, which is no known model",
            "name its checkpoint folder with --model",
        )
    return recipe.model


def _loras(
    given: list[str] | None, recipe: Recipe | None, picture: Path | None
) -> tuple[LoraChoice, ...]:
    """The LoRAs that the options name; those of the recipe where they name none."""
    from petzval.inference.loras import parse_lora, recorded_loras

    if given:
        return tuple(parse_lora(text) for text in given)
    if recipe is None or picture is None:
        return ()
    return recorded_loras(recipe, picture)


def _load(
    name: str | None,
    parts: dict[str, Path | None],
    request: GenerationRequest,
    recipe: Recipe | None,
    loras: tuple[LoraChoice, ...],
    *,
    device: str,
    dtype: str | None,
    threads: int | None,
    limits: dict[str, str | None],
) -> Pipeline:
    """The model, in the form and on the number of threads of the recipe where none are given."""
    from rich.text import Text

    label = printable(name or str(parts["denoiser"]), _WORD_LIMIT)
    with stderr().status(Text(f"loading {label}")):
        import torch

        from petzval.inference.device import choose_device
        from petzval.inference.pipeline import Pipeline

        threads = _recorded_threads(recipe, choose_device(device)) if threads is None else threads
        if threads is not None:
            torch.set_num_threads(threads)
        if dtype is None:
            dtype = recipe.dtype if recipe else "auto"
        kept = limits["quantise"]
        if kept is None:
            kept = recipe.weights if recipe else "exact"
        limited: dict[str, Any] = {**parts, **limits, "quantise": kept}
        return Pipeline.load(
            name, device=device, dtype=dtype, lora=loras, request=request, **limited
        )


def _recorded_threads(recipe: Recipe | None, device: torch.device) -> int | None:
    """The recipe's number of threads, which decides the order of sums, where it can be had here."""
    if recipe is None or recipe.threads is None or recipe.device_kind != device.type:
        return None
    return recipe.threads if recipe.threads <= (os.cpu_count() or 1) else None


def _recipe(picture: Path | None, prompt: str | None, file: Path | None) -> Recipe | None:
    if picture is None:
        return None
    from petzval.inference.image import read_recipe

    if prompt is not None and file is not None:
        raise RequestError("a prompt and a file of prompts are both given", "give one of them")
    return read_recipe(picture)


def _request(
    recipe: Recipe | None, prompt: str | None, file: Path | None, given: dict[str, Any]
) -> GenerationRequest:
    """The request that the options describe, on top of the recipe's where there is one."""
    from dataclasses import replace

    from petzval.cli.prompts import collect
    from petzval.inference.request import GenerationRequest, request_from_recipe

    if recipe is None:
        return GenerationRequest(prompt=collect(prompt, file), **given)
    request = request_from_recipe(recipe)
    if prompt is not None or file is not None:
        given["prompt"] = collect(prompt, file)
    if given.keys() & {"aspect", "size", "base"}:
        given |= {"height": None, "width": None}
    if given.keys() & {"aspect", "size", "base", "steps"}:
        given.setdefault("mu", None)  # the recipe's belongs to its own size and steps
    if "seed" in given:
        given["noise_row"] = 0  # the recipe's belongs to its own seed
    elif "num_images" in given:
        given["seed"] = recipe.seed
    return replace(request, **given)


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if text.strip().lower() == "random":
        return secrets.randbelow(2**31)
    if not re.fullmatch(r"\s*[+-]?\d+\s*", text) or len(text) > 40:
        raise RequestError(f"cannot read the seed {text[:40]!r}", "give a whole number, or random")
    return int(text)


def _compare(recipe: Recipe, pipeline: Pipeline, *, chosen: bool) -> None:
    """A recipe only makes its picture again with its own weights; say so where they differ.

    Raises:
        RequestError: other weights, and the user did not name them.
    """
    import torch

    if recipe.checkpoint != pipeline.identity:
        model = recipe.model[:_WORD_LIMIT]
        what = (
            f"the picture was made with {model} ({recipe.checkpoint[:12]}), "
            f"here is {pipeline.name} ({pipeline.identity[:12]})"
        )
        if not chosen:
            raise RequestError(what, f"to draw with these weights, add --model {model}")
        complain("warning", f"{what}; expect another picture")
    used, recorded = (
        [(lora.sha256, lora.weight) for lora in loras] for loras in (pipeline.loras, recipe.loras)
    )
    if used != recorded:
        complain("warning", "the picture was made with other LoRAs; expect another picture")
    made_on, threads = recipe.device[:_WORD_LIMIT], torch.get_num_threads()
    if recipe.device_kind != pipeline.device.type:
        complain(
            "warning",
            f"made on {made_on}, drawn on {pipeline.device.type}; "
            "expect the same picture up to rounding",
        )
    elif recipe.threads not in (None, threads):
        complain(
            "warning",
            f"made on {recipe.threads} threads, drawn on {threads}; "
            "expect the same picture up to rounding",
        )


@contextmanager
def _progress(total: int) -> Generator[Callable[[], None]]:
    """A progress bar on stderr, where stderr is a terminal; yields what to call with each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    console = stderr()
    columns = ("drawing", BarColumn(), MofNCompleteColumn(), "steps", TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)

        yield lambda: progress.advance(task)


def _report(image: GeneratedImage, path: Path | None, *, json: bool) -> None:
    """One line of stdout for a picture; nothing where stdout carries the picture itself."""
    if path is None:
        return
    if json:
        seconds = {stage: round(time, 3) for stage, time in image.seconds.items()}
        print_json({"file": str(path), "recipe": image.recipe.to_mapping(), "seconds": seconds})
    else:
        print_line(path)
