"""`petzval generate`: prompts in, picture files out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli.console import plain_warnings, print_json, printable, stderr
from petzval.errors import RequestError

if TYPE_CHECKING:
    from petzval.inference.event import StepEvent
    from petzval.inference.loras import LoraChoice
    from petzval.inference.pipeline import Pipeline
    from petzval.inference.recipe import Recipe
    from petzval.inference.request import GeneratedImage, GenerationRequest

DEFAULT_MODEL = "mini"


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; - reads prompts from stdin, one a line.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="File of prompts, one a line.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Make a picture again; options given here replace its own."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model by name (`petzval models`) or folder. [default: {DEFAULT_MODEL}]"
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA to add, FILE or FILE:WEIGHT; give it again for several.", show_default=False
        ),
    ] = None,
    aspect: Annotated[
        str | None, typer.Option(help="Ratio width:height, from 1:2 to 2:1, such as 16:9.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 16.")
    ] = None,
    base: Annotated[
        int | None, typer.Option(help="Family of sizes for --aspect: 1440, 1024 … 128.")
    ] = None,
    allow_any_size: Annotated[
        bool, typer.Option("--allow-any-size", help="Sizes beyond 1:2, 2:1 and 1440x1440, too.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Sampling steps, 1 to 1000.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1 is without.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    seed: Annotated[
        str | None,
        typer.Option(help="A number, or random. Further pictures count on. [default: 0]"),
    ] = None,
    num: Annotated[int | None, typer.Option(help="Pictures per prompt. [default: 1]")] = None,
    out: Annotated[str, typer.Option(help="Folder, or file with a suffix, or - for stdout.")] = ".",
    format: Annotated[
        str | None, typer.Option(help="png, jpeg or webp. [default: by suffix, or png]")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture: file, recipe, seconds.")
    ] = False,
    solver: Annotated[str | None, typer.Option(help="euler, or heun (second order).")] = None,
    mu: Annotated[
        float | None, typer.Option(help="Shift of the noise schedule. [default: by size and steps]")
    ] = None,
    parity: Annotated[
        str | None, typer.Option(help="Numerics: default, microsoft or comfyui.")
    ] = None,
    template_date: Annotated[
        str | None, typer.Option(help="Date in the chat template: YYYY-MM-DD or today.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Room for template and prompt. [default: 512]")
    ] = None,
    allow_blank: Annotated[
        bool, typer.Option("--allow-blank", help="Accept a prompt without words.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …, mps.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16. [default: auto]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: all cores]", min=1, max=1024)
    ] = None,
) -> None:
    """Draw pictures from prompts.

    Prints the path of each picture. Every file holds the recipe that makes it again: `petzval show`
    prints it, `petzval generate --from` follows it.
    """
    options = {
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
    }
    given = {name: value for name, value in options.items() if value is not None}
    with plain_warnings():
        recipe = _recipe(from_, prompt, file)
        request = _request(recipe, prompt, file, given)
        _draw(
            request,
            recipe,
            model=model,
            loras=_loras(lora, recipe, from_),
            out=out,
            format=format,
            json=json,
            device=device,
            dtype=dtype,
            threads=threads,
        )


def _draw(
    request: GenerationRequest,
    recipe: Recipe | None,
    *,
    model: str | None,
    loras: tuple[LoraChoice, ...],
    out: str,
    format: str | None,
    json: bool,
    device: str,
    dtype: str | None,
    threads: int | None,
) -> None:
    """Refuse what is wrong before torch is loaded, then draw and save picture by picture."""
    from petzval.cli.output import choose_output
    from petzval.inference.variants import locate

    name = model or _recipe_model(recipe)
    request.resolution(locate(name).defaults)
    output = choose_output(out, format, len(request.prompts) * request.num_images)
    dtype = dtype or (recipe.dtype if recipe else "auto")
    pipeline = _load(name, device, dtype, threads, loras)
    if recipe is not None:
        _compare(recipe, pipeline, chosen=model is not None)
    plan = pipeline.plan(request)
    with _progress(len(plan.images) * plan.steps) as advance:
        for event in pipeline.steps(plan):
            advance(event)
            for image in event.images:
                _report(image, output.write(image), json=json)


def _recipe_model(recipe: Recipe | None) -> str:
    """The model to use when none is named. A recipe may name a variant, never a path.

    Raises:
        RequestError: the recipe's model is no variant.
    """
    from petzval.inference.variants import VARIANTS

    if recipe is None:
        return DEFAULT_MODEL
    if recipe.model not in VARIANTS:
        raise RequestError(
            f"the picture was made with {printable(recipe.model)[:80]!r}, which is no known model",
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
    name: str, device: str, dtype: str, threads: int | None, loras: tuple[LoraChoice, ...]
) -> Pipeline:
    console = stderr()
    with console.status(f"loading {name}"):
        import torch

        from petzval.inference.pipeline import Pipeline

        if threads is not None:
            torch.set_num_threads(threads)
        return Pipeline.load(name, device=device, dtype=dtype, lora=loras)


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
    if "seed" in given or "num_images" in given:
        given.setdefault("seed", recipe.seed)
    return replace(request, **given)


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if text.strip().lower() == "random":
        return secrets.randbelow(2**31)
    if not text.strip().lstrip("+-").isdecimal() or len(text) > 40:
        raise RequestError(f"cannot read the seed {text[:40]!r}", "give a whole number, or random")
    return int(text)


def _compare(recipe: Recipe, pipeline: Pipeline, *, chosen: bool) -> None:
    """A recipe only makes its picture again with its own weights; say so where they differ.

    Raises:
        RequestError: other weights, and the user did not name them.
    """
    console = stderr()
    if recipe.checkpoint != pipeline.identity:
        what = (
            f"the picture was made with {recipe.model} ({recipe.checkpoint[:12]}), "
            f"here is {pipeline.name} ({pipeline.identity[:12]})"
        )
        if not chosen:
            raise RequestError(what, f"to draw with these weights, add --model {recipe.model}")
        console.print(f"warning: {what}; expect another picture", markup=False)
    used, recorded = (
        [(lora.sha256, lora.weight) for lora in loras] for loras in (pipeline.loras, recipe.loras)
    )
    if used != recorded:
        console.print(
            "warning: the picture was made with other LoRAs; expect another picture", markup=False
        )
    if recipe.device.split()[0] != pipeline.device.type:
        console.print(
            f"warning: made on {recipe.device}, drawn on {pipeline.device.type}; "
            "expect the same picture up to rounding",
            markup=False,
        )


@contextmanager
def _progress(total: int) -> Generator[Callable[[StepEvent], None]]:
    """A progress bar on stderr, where stderr is a terminal; yields what to call with each event."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    console = stderr()
    columns = ("drawing", BarColumn(), MofNCompleteColumn(), "steps", TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)

        def advance(event: StepEvent) -> None:
            progress.advance(task, len(event.indices))

        yield advance


def _report(image: GeneratedImage, path: Path | None, *, json: bool) -> None:
    """One line of stdout for a picture; nothing where stdout carries the picture itself."""
    from petzval.config import to_mapping

    if path is None:
        return
    if json:
        seconds = {stage: round(time, 3) for stage, time in image.seconds.items()}
        print_json({"file": str(path), "recipe": to_mapping(image.recipe), "seconds": seconds})
    else:
        print(path, flush=True)
