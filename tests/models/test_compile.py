"""What torch.compile makes of the networks is what they are; run by `make test-compile`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from petzval.models.latents import unpatchify
from petzval.models.mmdit import MMDiTBlock
from petzval.models.rope import mmdit_rope
from petzval.weights.checkpoint import Checkpoint

pytestmark = [
    pytest.mark.compile,
    # The compiler's own imports warn of what its next release will change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Rotary positions are products of complex numbers, which it leaves to torch.
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex"),
]


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_compiled_block_of_the_denoiser_equals_the_eager_one(golden_checkpoint: Path) -> None:
    denoiser = Checkpoint.open(golden_checkpoint).load_denoiser(torch.float32)
    block = denoiser.transformer_blocks[0]
    assert isinstance(block, MMDiTBlock)
    width, grid, num_text_tokens = denoiser.config.hidden_size, (3, 4), 7
    modulation = denoiser.modulation(torch.tensor([0.7]))
    inputs = (
        _draw(1, 12, width, seed=0),
        _draw(1, num_text_tokens, width, seed=1),
        modulation.image[0],
        modulation.text[0],
        mmdit_rope(grid, num_text_tokens, denoiser.config.axes_dims_rope),
        None,
    )
    eager = block(*inputs)
    compiled = torch.compile(block, fullgraph=True)(*inputs)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_a_compiled_decoder_equals_the_eager_one(golden_checkpoint: Path) -> None:
    autoencoder = Checkpoint.open(golden_checkpoint).load_vae(torch.float32)
    latents = unpatchify(_draw(1, 6, 4 * autoencoder.config.latent_channels, seed=2), (2, 3))
    eager = autoencoder.decode(latents)
    compiled = torch.compile(autoencoder.decode, fullgraph=True)(latents)
    assert (compiled - eager).abs().max() <= 1e-4 * eager.abs().max()
