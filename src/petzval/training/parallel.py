"""A model over many processes: FSDP2, compiled blocks, activation checkpointing.

Every block is sharded, compiled and checkpointed on its own; the root takes what is left. The root
is not the model but a shell around it whose forward is any function that calls the model: a stage
may use the model's methods as it likes, and the root's parameters are at hand for all of them.

Nothing here renames a parameter: compile and checkpointing replace a block's `forward`, FSDP2
shards parameters in place. So checkpoints, optimizer groups and averages know one set of names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from petzval.errors import ConfigError
from petzval.models.compiled import compile_forwards, replace_forward
from petzval.training.ranks import REPLICATE, SHARD, Ranks
from petzval.training.weighting import Weighting

ResultT = TypeVar("ResultT")
Compile = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How a model is spread and run. The defaults change nothing in a run of one process.

    Attributes:
        replicate: copies of the sharded model (HSDP); 1 shards over all ranks.
        weighting: what each rank's batch weighs in the gradient.
        parameters: type in which sharded parameters are gathered and used; the masters, the
            reduction of gradients and the updates are float32 in any case.
        reshard: whether a block's parameters are let go between its forward and its backward:
            less memory, one more gather.
        compile: "static" makes one graph for each shape (buckets, or one token budget), "dynamic"
            one for all.
        recompute: what is computed again in the backward, to save memory: nothing, every
            `recompute_every`-th block, or in those blocks all but matrix products and attention.
        timeout_minutes: a collective that takes longer ends the run.
    """

    replicate: int = 1
    weighting: Weighting = "rank"
    parameters: Literal["float32", "bfloat16"] = "float32"
    reshard: bool = True
    compile: Compile = "none"
    recompute: Literal["none", "blocks", "operations"] = "none"
    recompute_every: int = 1
    timeout_minutes: float = 10.0

    def __post_init__(self) -> None:
        if self.replicate < 1:
            raise ConfigError(f"replicate must be at least 1, got {self.replicate}")
        if self.recompute_every < 1:
            raise ConfigError(f"recompute_every must be at least 1, got {self.recompute_every}")
        if self.timeout_minutes <= 0:
            raise ConfigError(f"timeout_minutes must be positive, got {self.timeout_minutes}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Names of a model's modules that are treated on their own; `*` stands for any part of a name.

    Attributes:
        blocks: repeated blocks: sharded, compiled, recomputed.
        units: modules inside blocks that are also called from outside them: sharded apart.
        idle: parameters that no loss ever reaches. One process leaves them alone, as they have no
            gradient; FSDP2 gives them one of zeros, and without this they would decay.
    """

    blocks: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


class Shell(nn.Module):
    """The root of a sharded model. Its forward is whatever is asked for."""

    def __init__(self, model: nn.Module, idle: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.idle = tuple(idle)

    def drop_idle_gradients(self, also: Sequence[str] = ()) -> None:
        """After the backward: idle parameters have no gradient, as in one process.

        Args:
            also: patterns of those that are idle in this step.
        """
        patterns = (*self.idle, *also)
        for name, parameter in self.model.named_parameters():
            if any(_fits(name, pattern) for pattern in patterns):
                parameter.grad = None

    def forward(self, call: Callable[[], ResultT]) -> ResultT:
        """`call()`, with the root's parameters at hand; it must return tensors."""
        return call()


def parallelize(
    model: nn.Module, config: ParallelConfig, ranks: Ranks, layout: Layout | None = None
) -> Shell | None:
    """Prepare a model on its device, in float32, for training; in place.

    Args:
        model: the same values on every rank.
        layout: what is treated on its own; None shards the model as one piece.

    Returns:
        The root, for `RunState.root`; None in a run of one process, where nothing is sharded.

    Raises:
        ConfigError: blocks are to be compiled or recomputed and the layout names none.
    """
    layout = layout or Layout()
    blocks = _modules(model, layout.blocks)
    if not blocks and (config.compile != "none" or config.recompute != "none"):
        raise ConfigError(
            f"{type(model).__name__} has no blocks to compile or recompute",
            "leave compile and recompute at none for this stage",
        )
    for index, block in enumerate(blocks):
        if config.recompute != "none" and index % config.recompute_every == 0:
            replace_forward(block, _recomputed(block.forward, config.recompute))
        if config.compile != "none":
            compile_forwards([block], dynamic=config.compile == "dynamic")
    if ranks.mesh is None:
        return None
    mesh = ranks.mesh if config.replicate > 1 else ranks.mesh[SHARD]
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if config.parameters == "bfloat16" else None,
            reduce_dtype=torch.float32,
            # Autocast decides about inputs, as it does in a run of one process.
            cast_forward_inputs=False,
        ),
    }
    root = Shell(model, layout.idle)
    for module in [*_modules(model, layout.units), *blocks]:
        fully_shard(module, reshard_after_forward=config.reshard, **options)
    fully_shard(root, reshard_after_forward=False, **options)
    # A rank whose batch has no text gives no gradient to the text stream; the others do. What no
    # rank used in a step has a gradient of zeros, where one process has none and skips it; an
    # objective that knows of it says so (`Loss.idle`).
    cast("FSDPModule", root).set_reduce_scatter_unused_params(True)
    return root


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor whole, on every rank; any other as it is. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """Parameters and buffers, whole, on the CPU of the first rank; empty on the others.

    Gathered one by one, so that a GPU holds one whole tensor at a time. All ranks must call it.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = full_tensor(tensor.detach())
        if ranks.is_first:
            gathered[name] = whole.cpu().contiguous()
    return gathered


def shard_group(mesh: Any) -> Any:
    """The group of ranks that hold the parts of one copy of the model."""
    names = mesh.mesh_dim_names or ()
    return mesh.get_group(SHARD) if REPLICATE in names else mesh.get_group()


# Results that cost most to compute again: matrix products and attention. What lies between them
# (norms, gates, activations) is cheap.
_EXPENSIVE = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


def _keep_expensive(context: Any, operation: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    if operation in _EXPENSIVE:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(
    forward: Callable[..., Any], mode: Literal["blocks", "operations"]
) -> Callable[..., Any]:
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "operations":
        options["context_fn"] = functools.partial(
            create_selective_checkpoint_contexts, _keep_expensive
        )

    @functools.wraps(forward)
    def call(*args: Any, **settings: Any) -> Any:
        return checkpoint(forward, *args, **options, **settings)

    return call


def _modules(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Modules by name, in the model's order."""
    return [
        module
        for name, module in model.named_modules()
        if any(_fits(name, pattern) for pattern in patterns)
    ]


def _fits(name: str, pattern: str) -> bool:
    """Whether a dotted name has a pattern's form; `*` does not cross a dot."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
