"""The original program's way of running the denoiser, rebuilt from our own slow parts.

It always computes two branches in one padded batch with a mask, evaluates all modulations and the
text projection in every call, and computes the last block's text that nobody reads (Lens,
`LensPipeline.__call__`). Benchmarks measure what leaving that out is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from petzval.flow.guidance import guide
from petzval.flow.solver import euler_step
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT

Mode = Callable[[], AbstractContextManager[None]]


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Draw every weight so that no branch is dead: matrices by 1/sqrt(fan-in), vectors near one."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dtype.is_floating_point:
                draw = torch.randn(parameter.shape, generator=generator)
                fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 25
                scaled = draw * fan_in**-0.5
                parameter.copy_(scaled if parameter.dim() > 1 else 1 + scaled)


def denoise(
    model: MMDiT,
    features: Sequence[Tensor],
    noise: Tensor,
    grid: tuple[int, int],
    sigmas: Tensor,
    guidance: float,
    arithmetic: Mode = nullcontext,
) -> Tensor:
    """Noise → tokens, two padded branches a step, blank negative prompt.

    Args:
        features: per selected layer [pictures, T, width], the conditional prompts'.
        arithmetic: context that every network call runs in, such as `kernels.dispatch.reference`.
    """
    pictures, num_text_tokens = features[0].shape[:2]
    both = [torch.cat((f, torch.zeros_like(f))) for f in features]
    mask = torch.zeros(2 * pictures, num_text_tokens, dtype=torch.bool, device=noise.device)
    mask[:pictures] = True
    skipped, model.skip_dead_text = model.skip_dead_text, False
    x = noise
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        with arithmetic():
            level = sigma.to(noise.device).expand(2 * pictures)
            velocity = model.velocity(torch.cat((x, x)), both, level, grid, mask)
        conditional, unconditional = velocity.chunk(2)
        guided = guide(conditional, unconditional, guidance)
        x = euler_step(x, guided, float(sigma), float(sigma_next))
    model.skip_dead_text = skipped
    return x


def encode(encoder: GptOssEncoder, ids: Tensor, prefix_length: int) -> Tensor:
    """All tokens, the template's prefix among them, with a mask; then the prefix is cut off."""
    states = encoder(ids, torch.ones(ids.shape, dtype=torch.bool, device=ids.device))
    return torch.stack(states)[:, :, prefix_length:]
