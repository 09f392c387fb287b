"""Which LoRAs a pipeline is loaded with: asked for by a person, or named by a picture's recipe.

Nothing here needs torch, so that a wrong file or weight is answered before torch is loaded. The
files themselves are read by `weights.lora`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from petzval.errors import RequestError
from petzval.inference.paths import user_path
from petzval.inference.recipe import MAX_LORA_WEIGHT, Recipe, UsedLora

LORAS_VARIABLE = "PETZVAL_LORAS"
"""Environment variable that names a folder of LoRAs, where recipes' files are looked for."""

LoraAsked: TypeAlias = str | Path | tuple[str | Path, float]
"""A file, with its weight behind a colon where it is a text; or a file and its weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraChoice:
    """A LoRA file, or a folder as PEFT writes it, and how strongly it is applied.

    Raises:
        RequestError: the weight is no finite number from -100 to 100.
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        weight = cast("object", self.weight)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise RequestError(f"the weight of {self.path} must be a number, got {weight!r}")
        if not (math.isfinite(weight) and abs(weight) <= MAX_LORA_WEIGHT):
            raise RequestError(
                f"the weight of {self.path} must be between {-MAX_LORA_WEIGHT:g} and "
                f"{MAX_LORA_WEIGHT:g}, got {weight}",
                "weights are mostly between 0 and 1",
            )


def parse_lora(text: str) -> LoraChoice:
    """Read `FILE` or `FILE:WEIGHT`.

    A file of exactly this name wins; otherwise what follows the last colon is the weight, unless a
    folder begins there, as in `C:\\loras\\style.safetensors`.

    Raises:
        RequestError: no such file, or the weight is no number in range.
    """
    if _exists(text):
        return LoraChoice(path=Path(text))
    head, colon, tail = text.rpartition(":")
    if colon and head and not {"/", "\\"} & set(tail):
        try:
            weight = float(tail.replace("_", "?"))  # Python alone reads 1_0 as ten
        except ValueError:
            if _exists(head):
                raise RequestError(
                    f"cannot read the weight {tail[:40]!r} of {head}",
                    "write FILE:WEIGHT, such as style.safetensors:0.8",
                ) from None
        else:
            choice = LoraChoice(path=Path(head), weight=weight)
            _require(head)
            return choice
    _require(text)
    return LoraChoice(path=Path(text))


def choose_loras(asked: LoraAsked | Sequence[LoraAsked | LoraChoice]) -> tuple[LoraChoice, ...]:
    """One LoRA or several, in any of the forms of `LoraAsked`.

    Raises:
        RequestError: as `parse_lora`.
    """
    one = isinstance(asked, str | Path) or _is_pair(asked)
    several = cast("Sequence[LoraAsked | LoraChoice]", (asked,) if one else asked)
    return tuple(_choice(each) for each in several)


def reweighed(loras: Sequence[UsedLora], weights: Sequence[int | float]) -> tuple[UsedLora, ...]:
    """The same LoRAs with other weights.

    Raises:
        RequestError: a weight is missing, one too many, or out of range.
    """
    if len(weights) != len(loras):
        raise RequestError(f"{len(weights)} weights for {len(loras)} LoRAs", "give one for each")
    choices = [
        LoraChoice(path=Path(lora.file), weight=float(weight))
        for lora, weight in zip(loras, weights, strict=True)
    ]
    return tuple(
        replace(lora, weight=float(choice.weight))
        for lora, choice in zip(loras, choices, strict=True)
    )


def recorded_loras(recipe: Recipe, picture: Path) -> tuple[LoraChoice, ...]:
    """The LoRAs that a recipe names, found again: same name, same content.

    They are looked for beside the picture, in the current folder and in the folder that
    `PETZVAL_LORAS` names; anybody may have written the recipe, so it names no folder itself.

    Raises:
        RequestError: one is absent, or only another file of its name is there.
    """
    return tuple(_find(used, picture) for used in recipe.loras)


def _find(used: UsedLora, picture: Path) -> LoraChoice:
    from petzval.weights.lora import lora_sha256

    if Path(used.file).name != used.file or used.file in ("", ".", ".."):
        raise RequestError(
            f"the recipe names a LoRA by a path: {used.file[:80]!r}", "give it with --lora"
        )
    different: list[Path] = []
    for place in _places(picture):
        path = place / used.file
        if _exists(str(path)):
            if lora_sha256(path) == used.sha256:
                return LoraChoice(path=path, weight=used.weight)
            different.append(path)
    if different:
        raise RequestError(
            f"{different[0]} is not the LoRA that the picture was made with "
            f"(sha256 {used.sha256[:12]})",
            f"give the right file with --lora FILE:{used.weight:g}",
        )
    raise RequestError(
        f"the picture was made with the LoRA {used.file[:80]!r} (sha256 {used.sha256[:12]}), "
        "which is not here",
        f"put it beside the picture or into ${LORAS_VARIABLE}, or give --lora FILE:{used.weight:g}",
    )


def _places(picture: Path) -> Iterator[Path]:
    yield picture.parent
    yield Path()
    folder = os.environ.get(LORAS_VARIABLE)
    if folder:
        yield user_path(folder)


def _choice(each: LoraAsked | LoraChoice) -> LoraChoice:
    if isinstance(each, LoraChoice):
        return each
    if isinstance(each, str):
        return parse_lora(each)
    if isinstance(each, Path):
        _require(str(each))
        return LoraChoice(path=each)
    path, weight = each
    choice = LoraChoice(path=Path(path), weight=weight)
    _require(str(choice.path))
    return choice


def _is_pair(value: object) -> bool:
    items = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else ()
    return len(items) == 2 and isinstance(items[1], int | float)


def _exists(text: str) -> bool:
    try:
        return text != "" and Path(text).exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _require(text: str) -> None:
    if not _exists(text):
        raise RequestError(
            f"the LoRA {text[:200]!r} does not exist",
            "name a safetensors file, or a folder as `petzval finetune` writes it",
        )
