"""When compiling pays, what is compiled, and where the compiler keeps its work.

Compiling costs a minute, and saves a share of every call. A few pictures are drawn sooner without;
a long queue, or a server, with. What was compiled is kept in a folder, so that the next start
reads it back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from petzval.config import to_mapping
from petzval.errors import RequestError
from petzval.inference.paths import user_path
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import GenerationPlan
from petzval.kernels import backends
from petzval.models.compiled import compile_blocks, compile_forwards
from petzval.models.flops import PEAK_BF16_FLOPS, forward_flops, peak_bf16_flops
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.vae import Autoencoder

Asked: TypeAlias = Literal["auto", "on", "off"]

COLD_SECONDS = {"cuda": 90.0, "cpu": 60.0}
"""What compiling costs where nothing is kept: of CUDA an assumption, on the safe side; of a CPU
what the benchmark `compiled-start` measured on two cores."""

WARM_SECONDS = {"cuda": 15.0, "cpu": 15.0}
"""What it costs where the folder has the graphs already; likewise."""

SAVED_SHARE = {"cuda": 0.15, "cpu": 0.02}
"""Share of the eager time that compiled blocks save: taken of CUDA, measured on a CPU."""

REACHED_SHARE = 0.4
"""Share of an accelerator's peak that eager blocks are taken to reach."""

CPU_FLOPS = 50e9
"""Operations a second that one core is taken to reach in float32."""

_CACHE = "PETZVAL_COMPILE_CACHE"
_TYPICAL_TEXT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileChoice:
    """Whether to compile, and why."""

    compile: bool
    reason: str


def choose_compiling(
    asked: Asked,
    device: torch.device,
    config: MMDiTConfig,
    plan: GenerationPlan,
    *,
    is_kept: bool = False,
) -> CompileChoice:
    """Decide for the pictures of a plan.

    Args:
        asked: "auto" compares what it would cost with what it would save.
        device: where the denoiser computes.
        config: the denoiser's.
        plan: pictures x steps x branches are the calls that a gain is multiplied by.
        is_kept: the compiler's folder has these graphs.
    """
    if asked != "auto":
        return CompileChoice(compile=asked == "on", reason="as asked")
    missing = lacking(device)
    if missing is not None:
        return CompileChoice(compile=False, reason=missing)
    cost = (WARM_SECONDS if is_kept else COLD_SECONDS)[device.type]
    saved = SAVED_SHARE[device.type] * eager_seconds(device, config, plan)
    how = "read back" if is_kept else "compile"
    return CompileChoice(
        compile=saved > cost,
        reason=f"about {saved:.1f} s would be saved, and {cost:.0f} s spent to {how}",
    )


def lacking(device: torch.device) -> str | None:
    """What the compiler would need on this machine and does not find; None where nothing."""
    if device.type not in COLD_SECONDS:
        return f"compiling was never tried on {device.type}"
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names if name):
        return "there is no C++ compiler"
    return backends.compiler_lacks(device) if device.type == "cuda" else None


def eager_seconds(device: torch.device, config: MMDiTConfig, plan: GenerationPlan) -> float:
    """A rough forecast of all the denoiser's calls for a plan, uncompiled."""
    height, width = plan.resolution.grid
    calls = plan.steps if plan.solver == "euler" else 2 * plan.steps - 1
    branches = 1 if plan.guidance == 1.0 else 2
    one = forward_flops(config, [height * width], [_TYPICAL_TEXT])
    return len(plan.images) * calls * branches * one / _flops_per_second(device)


def _flops_per_second(device: torch.device) -> float:
    if device.type == "cpu":
        return CPU_FLOPS * torch.get_num_threads()
    name = backends.product_name(device)
    known = any(part in name for part in PEAK_BF16_FLOPS)
    return REACHED_SHARE * (peak_bf16_flops(name) if known else PEAK_BF16_FLOPS["L4"])


def compile_networks(denoiser: MMDiT, autoencoder: Autoencoder) -> None:
    """Compile every block of the denoiser, and the decoder with channels last.

    The graphs are made when the first picture of a size is drawn. All blocks share three, for texts
    of any length: with a text stream behind them, the last one, which has none, and without text.
    Pictures stay the same up to rounding.
    """
    compile_blocks(denoiser.transformer_blocks)
    lay_channels(autoencoder)
    compile_forwards([autoencoder.decoder])


def lay_channels(
    autoencoder: Autoencoder, layout: torch.memory_format = torch.channels_last
) -> None:
    """Lay the decoder's convolutions out pixel by pixel, as the fast convolutions of GPUs want it.

    Worth it where the norms between them are compiled with them: torch's own norm lays its input
    out anew on CUDA.
    """
    for part in (autoencoder.post_quant_conv, autoencoder.decoder):
        part.to(memory_format=layout)  # pyright: ignore[reportCallIssue]


class CompileCache:
    """The folder that the compiler keeps its graphs in, and a note of what is there.

    Args:
        folder: left out, PETZVAL_COMPILE_CACHE, or petzval/compile below the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        usual = os.environ.get(_CACHE) or f"{home}/petzval/compile"
        base = user_path(usual) if folder is None else folder
        self.folder = base / f"torch-{torch.__version__}"

    def use(self) -> None:
        """Have torch and Triton keep their work here, unless the environment says where."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.folder / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(self.folder / "triton"))

    def has(self, key: str) -> bool:
        """Whether graphs were kept under a key."""
        return (self.folder / "kept" / key).is_file()

    def note(self, key: str) -> None:
        """Remember that the graphs of a key are kept; if that cannot be written, no matter."""
        place = self.folder / "kept" / key
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        except OSError:
            return


def compile_for(
    pipeline: Pipeline, plan: GenerationPlan, asked: bool | None, cache: CompileCache | None = None
) -> tuple[CompileChoice, Callable[[], object]]:
    """Compile a pipeline's networks for a plan, where that was asked for or pays.

    Returns:
        The choice, and what to call when the plan was drawn: it notes that the graphs are kept.

    Raises:
        RequestError: it was asked for, and this machine cannot compile.
    """
    if asked:
        _check_compiler(pipeline.device)
    cache = cache or CompileCache()
    config, device = pipeline.networks.denoiser.config, pipeline.device
    key = cache_key(device, pipeline.dtype, config, plan)
    how: Asked = "auto" if asked is None else "on" if asked else "off"
    choice = choose_compiling(how, device, config, plan, is_kept=cache.has(key))
    if not choice.compile:
        return choice, lambda: None
    compile_pipeline(pipeline, cache)
    return choice, lambda: cache.note(key)


def compile_pipeline(pipeline: Pipeline, cache: CompileCache | None = None) -> None:
    """Compile a pipeline's networks, for whatever it will draw.

    Raises:
        RequestError: this machine cannot compile.
    """
    _check_compiler(pipeline.device)
    (cache or CompileCache()).use()
    networks = pipeline.networks
    compile_networks(networks.denoiser, networks.autoencoder)
    pipeline.moving.graphs.clear()


def _check_compiler(device: torch.device) -> None:
    missing = lacking(device)
    if missing is not None:
        raise RequestError(f"cannot compile here: {missing}", "leave --compile out")


def cache_key(
    device: torch.device, dtype: torch.dtype, config: MMDiTConfig, plan: GenerationPlan
) -> str:
    """Names what decides the graphs: device, type, sizes of the network and of the picture."""
    parts = (backends.product_name(device) or device.type, dtype, plan.resolution.grid)
    text = repr((*parts, plan.guidance == 1.0, sorted(to_mapping(config).items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
