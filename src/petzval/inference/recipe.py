"""The recipe of a picture: every decision that its pixels depend on, as one flat JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from petzval.config import from_mapping, parse_json, setting, to_mapping
from petzval.errors import ConfigError, RequestError
from petzval.inference.parity import Markers, ParityName, Truncate
from petzval.inference.placement import Storage
from petzval.resolution import MAX_TOKENS_ANY_SIZE, PIXELS_PER_TOKEN

RECIPE_FORMAT = 1
"""Raised when a field changes its meaning; a reader refuses formats that it does not know."""

RECIPE_LIMIT_BYTES = 1 << 20
"""Longer recipes are neither written nor read."""

MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
MIN_MU, MAX_MU = -5.0, 10.0
MAX_NOISE_ROW = 1 << 20
MAX_LORA_WEIGHT = 100.0
MAX_THREADS = 1024
_LONGEST_SIDE = MAX_TOKENS_ANY_SIZE * PIXELS_PER_TOKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class UsedLora:
    """A LoRA that was added to the denoiser's weights.

    Attributes:
        file: its name, without the folder.
        sha256: of its content, see `weights.lora.Lora`.
        weight: what its changes were multiplied by.
    """

    file: str
    sha256: str
    weight: float = setting(minimum=-MAX_LORA_WEIGHT, maximum=MAX_LORA_WEIGHT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What makes one picture again, bit for bit on the same machine.

    Attributes:
        petzval: version of this package that made the picture.
        model: name of the variant, or of the checkpoint's folder.
        checkpoint: identity (a hash) of the weights.
        mu: the schedule's shift, whether computed or given.
        noise_row: which row of the batch's noise; above 0 only in microsoft mode.
        loras: added to the checkpoint's weights, in this order.
        dtype: of the networks' weights.
        device: "cpu", or the kind and name of the accelerator.
        threads: that drew on a CPU: their number decides in which order is summed. None on
            accelerators, and in recipes older than the field.
        weights: how the denoiser's blocks were kept; all but exact change the picture.
        mark: the words in its corner, see `inference.mark`; blank for none.
    """

    format: int = RECIPE_FORMAT
    petzval: str
    model: str
    checkpoint: str
    prompt: str
    negative_prompt: str
    seed: int = setting(minimum=0, maximum=MAX_SEED)
    steps: int = setting(minimum=1, maximum=MAX_STEPS)
    guidance: float = setting(minimum=0, maximum=MAX_GUIDANCE)
    height: int = setting(minimum=PIXELS_PER_TOKEN, maximum=_LONGEST_SIDE)
    width: int = setting(minimum=PIXELS_PER_TOKEN, maximum=_LONGEST_SIDE)
    mu: float = setting(minimum=MIN_MU, maximum=MAX_MU)
    solver: str
    parity: ParityName
    template_date: str
    truncate: Truncate
    markers: Markers
    max_tokens: int
    noise_row: int = setting(0, minimum=0, maximum=MAX_NOISE_ROW)
    allow_any_size: bool = False
    loras: tuple[UsedLora, ...] = ()
    dtype: str
    device: str
    torch: str
    threads: int | None = setting(None, minimum=1, maximum=MAX_THREADS)
    weights: Storage = "exact"
    mark: str = ""

    @property
    def device_kind(self) -> str:
        """The device without its product name: "cpu", "cuda", "mps"."""
        return self.device.partition(" ")[0]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values; a mark only where there is one."""
        mapping = to_mapping(self)
        if not self.mark:
            del mapping["mark"]
        return mapping

    def to_json(self, *, ascii_only: bool = False) -> str:
        """One line of JSON.

        Raises:
            RequestError: longer than a file may carry, because of a prompt of extreme length.
        """
        text = json.dumps(self.to_mapping(), ensure_ascii=ascii_only, separators=(",", ":"))
        if len(text.encode()) > RECIPE_LIMIT_BYTES:
            raise RequestError(
                f"the recipe takes more than {RECIPE_LIMIT_BYTES:,} bytes", "shorten the prompt"
            )
        return text


def recipe_from_json(text: str, *, where: str) -> Recipe:
    """Read a recipe that anybody may have written.

    Args:
        text: JSON as `Recipe.to_json` writes it.
        where: the file it came from, for messages.

    Raises:
        ConfigError: not JSON, or a field is unknown, missing, of the wrong kind or out of range.
        RequestError: too long, or of another format.
    """
    if len(text) > RECIPE_LIMIT_BYTES:
        raise RequestError(f"{where}: the recipe is longer than {RECIPE_LIMIT_BYTES:,} bytes")
    mapping: Any = parse_json(text, where=f"{where}: recipe")
    if isinstance(mapping, Mapping):
        written = cast("Mapping[str, Any]", mapping).get("format")
        if isinstance(written, int) and written != RECIPE_FORMAT:
            raise RequestError(
                f"{where}: the recipe has format {str(written)[:40]}, "
                f"this version reads {RECIPE_FORMAT}",
                "install a newer petzval" if written > RECIPE_FORMAT else "no petzval wrote it",
            )
    recipe = from_mapping(Recipe, mapping, where=f"{where}: recipe")
    if not recipe.device_kind:
        raise ConfigError(f"{where}: recipe: setting 'device' names no device")
    return recipe
