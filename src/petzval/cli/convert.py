"""`petzval convert`: a model, or one of its parts, from any format that is read into another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli.console import print_line, stage_bars
from petzval.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from petzval.inference.variants import Located
    from petzval.weights.formats import Kind, Target

_DTYPES = ("float32", "bfloat16", "float16")
_TEXT_SUFFIXES = (".md", ".json", ".txt", "")
"""Of a checkpoint's own texts: card, licences, notice."""

_TEXT_LIMIT_BYTES = 1 << 20


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Model by name, folder, TOML, or file of one part.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder or file to write.")],
    to: Annotated[str, typer.Option(help="folder, comfyui, comfyui-fp8 or gguf-q8_0.")] = "folder",
    part: Annotated[
        str | None,
        typer.Option(help="denoiser, encoder or vae. [default: all; in one file, the denoiser]"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16, where not quantised. [default: kept]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")] = False,
) -> None:
    """Write a model, or one of its parts, in another format.

    Nothing is at OUT until all is written. Prints the path. What was quantised becomes bfloat16
    where the new format does not quantise it.
    """
    from petzval.weights.formats import KINDS, TARGETS, as_kind, as_target

    target, kind = as_target(to), None if part is None else as_kind(part)
    if target is None:
        raise RequestError(f"unknown format {to[:40]!r}", f"formats are {', '.join(TARGETS)}")
    if part is not None and kind is None:
        raise RequestError(f"unknown part {part[:40]!r}", f"parts are {', '.join(KINDS)}")
    if dtype is not None and dtype not in _DTYPES:
        raise RequestError(f"unknown dtype {dtype[:40]!r}", f"dtypes are {', '.join(_DTYPES)}")
    _check_name(out, target)
    if out.exists() and not overwrite:
        raise CheckpointError(
            f"{out}: already exists; nothing was written", "choose another place, or --overwrite"
        )
    located = _whole(source)
    if located is not None and target != "folder":
        kind = kind or "denoiser"
    with stage_bars() as advance:
        options: dict[str, Any] = {
            "dtype": dtype,
            "overwrite": overwrite,
            "progress": lambda done, total: advance("writing", done, total),
        }
        if located is not None and kind is None:
            _convert_whole(located, out, **options)
        else:
            place = Path(source) if located is None else _place(located, kind or "denoiser")
            _convert_part(place, kind, out, target, **options)
    print_line(out)


def _check_name(out: Path, target: Target) -> None:
    """Refuse a name that says something else than the format: programs go by it."""
    suffix = out.suffix.lower()
    wanted = {"folder": "", "gguf-q8_0": ".gguf"}.get(target, ".safetensors")
    if suffix in (".safetensors", ".gguf") and suffix != wanted:
        what = "a folder" if target == "folder" else f"{target}, a {wanted} file,"
        formats = "gguf-q8_0" if suffix == ".gguf" else "comfyui or comfyui-fp8"
        raise RequestError(
            f"{out} is the name of a {suffix} file, and {what} would be written",
            f"name it otherwise, or give --to {formats}",
        )


def _whole(source: str) -> Located | None:
    """A whole model; None for a file or folder of one part."""
    from petzval.inference.parts import SUFFIX
    from petzval.inference.paths import user_path
    from petzval.inference.variants import VARIANTS, locate

    path = user_path(source)
    parts = path.is_file() and path.suffix.lower() != SUFFIX
    alone = path.is_dir() and not (path / "transformer").is_dir()
    if source.lower() not in VARIANTS and (parts or alone):
        return None
    return locate(source)


def _place(located: Located, kind: Kind) -> Path:
    """Where one part of a model lies."""
    named = {
        "denoiser": located.parts.denoiser,
        "encoder": located.parts.encoder,
        "vae": located.parts.vae,
    }[kind]
    place = named or located.base
    assert place is not None
    return place


def _convert_whole(
    located: Located, out: Path, *, dtype: str | None, overwrite: bool, progress: Any
) -> None:
    import torch

    from petzval.inference.opening import open_checkpoint
    from petzval.weights.convert import convert_checkpoint

    convert_checkpoint(
        open_checkpoint(located, keep=("mxfp4",)),
        out,
        dtype=None if dtype is None else getattr(torch, dtype),
        extra_files={} if located.base is None else _texts(located.base),
        overwrite=overwrite,
        progress=progress,
    )


def _convert_part(
    place: Path,
    kind: Kind | None,
    out: Path,
    target: Target,
    *,
    dtype: str | None,
    overwrite: bool,
    progress: Any,
) -> None:
    import torch

    from petzval.weights.component import open_component
    from petzval.weights.convert import convert_component

    convert_component(
        open_component(place, kind, keep=("mxfp4",)),
        out,
        target,
        dtype=None if dtype is None else getattr(torch, dtype),
        overwrite=overwrite,
        progress=progress,
    )


def _texts(folder: Path) -> dict[str, str]:
    """The texts at the top of a checkpoint's folder: what they say goes with the weights."""
    texts: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        known = path.suffix in _TEXT_SUFFIXES and path.name != "model_index.json"
        if not known or not path.is_file() or path.name.startswith("."):
            continue
        if path.stat().st_size <= _TEXT_LIMIT_BYTES:
            try:
                texts[path.name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return texts
