"""A text encoder by itself, for processes that encode and draw nothing; within limits, too."""

from __future__ import annotations

import torch

from petzval.conditioning.encoder import PromptEncoder
from petzval.conditioning.template import PREFIX_LENGTH
from petzval.conditioning.tokenizer import DEFAULT_MAX_TOKENS
from petzval.errors import PlacementError
from petzval.inference.dry_networks import Work
from petzval.inference.footprint import Footprints
from petzval.inference.placement import ENCODER, NetworkPlacement, Strategy, spell_bytes
from petzval.inference.planner import with_kept_layers
from petzval.inference.planning import Planning
from petzval.inference.residency import (
    build_encoder,
    encoder_layers,
    parameter_dtype,
    settle_heap,
)
from petzval.inference.speeds import measured_speeds
from petzval.inference.stage import Stage
from petzval.kernels import backends
from petzval.weights.residence import WeightReader

_CACHE_BYTES = 1 << 26
"""Features that are kept under limits."""


def load_prompt_encoder(planning: Planning, beside: int = 0, *, last: bool = True) -> PromptEncoder:
    """A checkpoint's prompt encoder: whole where the limits have room for it, else streamed, with
    as many layers kept as there is room for.

    Args:
        planning: of a process that draws nothing.
        beside: bytes of other encoders on the same device.
        last: False leaves to encoders that come after it the room for layers that it could keep.

    Raises:
        PlacementError: not even one layer after the other has room.
        CheckpointError: a tensor cannot be read any more.
    """
    checkpoint, tokenizer = planning.checkpoint, planning.tokenizer
    if not planning.budget:
        settle_heap(planning.budget, str(planning.device), 0)
        encoder = checkpoint.load_encoder(planning.dtype, planning.device)
        return PromptEncoder(encoder, tokenizer, checkpoint_id=checkpoint.identity)
    strategy, ram = _strategy(planning, beside, last=last)
    settle_heap(planning.budget, str(planning.device), ram)
    encoder = build_encoder(checkpoint, strategy, planning.dtype)
    reader = WeightReader(
        checkpoint.encoder_source, parameter_dtype(planning.dtype), planning.device
    )
    layers = encoder_layers(encoder) if strategy.residence == "streamed" else ()
    stage = Stage(encoder, reader, streamed=layers, kept=strategy.kept_of(len(layers)))
    stage.bring()
    return PromptEncoder(
        encoder,
        tokenizer,
        checkpoint_id=checkpoint.identity,
        cache_size=_CACHE_BYTES,
        max_batch=1,
        use_prefix_cache=not layers,
    )


def held_bytes(encoder: PromptEncoder, device: torch.device) -> int:
    """Bytes of an encoder's numbers on a device, and of the features that it may keep there.

    A table of embeddings that is looked up in the file is not on it.
    """
    network = encoder.encoder
    tensors = (*network.parameters(), *network.buffers())
    there = (each.nbytes for each in tensors if each.device.type == device.type)
    return encoder.cache.max_bytes + sum(there)


def _strategy(planning: Planning, beside: int, *, last: bool) -> tuple[Strategy, int]:
    """The faster one that keeps the limits with the longest prompt; this process's peak then."""
    work = Work(grid=(1, 1), calls=1, branches=1, text_tokens=DEFAULT_MAX_TOKENS - PREFIX_LENGTH)
    speeds = planning.speeds or measured_speeds(planning.device, planning.dtype)
    footprints = Footprints(planning.checkpoint, planning.dtype, work, speeds)
    on_cpu, limits = planning.device.type == "cpu", planning.budget
    base = backends.resident_bytes()

    def needs(placed: NetworkPlacement) -> tuple[int, int]:
        """(memory of the device, RAM of the process)"""
        own = placed.peak_bytes + placed.kept_bytes + _CACHE_BYTES
        return (base + own, base + own) if on_cpu else (beside + own, base + placed.host_bytes)

    device, layers = str(planning.device), planning.checkpoint.encoder_config.num_hidden_layers
    streamed = with_kept_layers(Strategy(residence="streamed", device=device), layers)
    streamed = streamed if last else streamed[-1:]
    fastest_first = [Strategy(residence="resident", device=device), *streamed]
    for strategy in fastest_first:
        memory, ram = needs(footprints.of(ENCODER, strategy))
        if _within(memory, limits.memory) and _within(ram, limits.ram):
            return strategy, ram
    memory, ram = needs(footprints.of(ENCODER, fastest_first[-1]))
    raise PlacementError(
        f"the text encoder alone needs {spell_bytes(memory)} of memory and {spell_bytes(ram)} of "
        "RAM, its layers read one by one",
        "allow more with --memory or --ram, or let each replica encode for itself: --encoders 0",
    )


def _within(need: int, limit: int | None) -> bool:
    return limit is None or need <= limit
