"""The options of `generate`, and those that commands have in common: each is told of once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DEFAULT_MODEL = "mini-turbo"
"""`inference.variants.DEFAULT_MODEL`, which help has no time to import."""

# What to draw.
Prompt: TypeAlias = Annotated[
    str | None, typer.Argument(help="What to draw; - reads prompts from stdin, one a line.")
]
PromptFile: TypeAlias = Annotated[
    Path | None, typer.Option("--file", help="File of prompts, one a line.")
]
Picture: TypeAlias = Annotated[
    Path | None,
    typer.Option("--from", help="Make a picture again; options given here replace its own."),
]
AllowBlank: TypeAlias = Annotated[
    bool, typer.Option("--allow-blank", help="Accept a prompt without words.")
]

# With which model.
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"Model by name (`petzval models`), folder or TOML. [default: {DEFAULT_MODEL}]"
    ),
]
Denoiser: TypeAlias = Annotated[
    Path | None, typer.Option(help="Denoiser from a file or folder of any format.")
]
Encoder: TypeAlias = Annotated[
    Path | None, typer.Option(help="Text encoder from a file or folder of any format.")
]
Vae: TypeAlias = Annotated[
    Path | None, typer.Option(help="Autoencoder from a file or folder of either style.")
]
Tokenizer: TypeAlias = Annotated[
    Path | None, typer.Option(help="Tokenizer: folder, tokenizer.json, or weights with it inside.")
]
Loras: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="LoRA to add, FILE or FILE:WEIGHT; give it again for several.", show_default=False
    ),
]

# Of which size.
Aspect: TypeAlias = Annotated[
    str | None, typer.Option(help="Ratio width:height, from 1:2 to 2:1, such as 16:9.")
]
Size: TypeAlias = Annotated[
    str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 16.")
]
Base: TypeAlias = Annotated[
    int | None, typer.Option(help="Family of sizes for --aspect: 1440, 1024 … 128.")
]
AllowAnySize: TypeAlias = Annotated[
    bool, typer.Option("--allow-any-size", help="Sizes beyond 1:2, 2:1 and 1440x1440, too.")
]

# How.
Steps: TypeAlias = Annotated[int | None, typer.Option(help="Sampling steps, 1 to 1000.")]
Guidance: TypeAlias = Annotated[
    float | None, typer.Option(help="How closely to follow the prompt; 1 is without.")
]
Negative: TypeAlias = Annotated[str | None, typer.Option(help="What to stay away from.")]
Seed: TypeAlias = Annotated[
    str | None,
    typer.Option(help="A number, or random. Further pictures count on. [default: 0]"),
]
NumImages: TypeAlias = Annotated[
    int | None, typer.Option("--num", help="Pictures per prompt. [default: 1]")
]
Solver: TypeAlias = Annotated[str | None, typer.Option(help="euler, or heun (second order).")]
Mu: TypeAlias = Annotated[
    float | None, typer.Option(help="Shift of the noise schedule. [default: by size and steps]")
]
ParityMode: TypeAlias = Annotated[
    str | None, typer.Option(help="Numerics: default, microsoft or comfyui.")
]
TemplateDate: TypeAlias = Annotated[
    str | None, typer.Option(help="Date in the chat template: YYYY-MM-DD or today.")
]
MaxTokens: TypeAlias = Annotated[
    int | None, typer.Option(help="Room for template and prompt. [default: 512]")
]
Mark: TypeAlias = Annotated[
    str | None,
    typer.Option(help='Words in a corner of every picture, such as "made by AI". [default: none]'),
]

# Where it goes.
Out: TypeAlias = Annotated[
    str, typer.Option(help="Folder, or file with a suffix, or - for stdout.")
]
Format: TypeAlias = Annotated[
    str | None, typer.Option(help="png, jpeg or webp. [default: by suffix, or png]")
]

# On what it runs.
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …, xpu, mps.")]
Dtype: TypeAlias = Annotated[
    str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")
]
Memory: TypeAlias = Annotated[
    str | None, typer.Option(help="Memory of the device to stay within, such as 8GB.")
]
Ram: TypeAlias = Annotated[
    str | None, typer.Option(help="RAM of this process to stay within, such as 12GB.")
]
Quantise: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Denoiser's blocks: exact, or smaller in float8, int8 or int4; auto: smaller where "
        "nothing exact fits. [default: exact]"
    ),
]
Compile: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the networks first. [default: where it saves more time than it costs]",
        show_default=False,
    ),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(help="CPU threads. [default: all cores]", min=1, max=1024)
]
