"""What torch.compile makes of the networks is what they are; run by `make test-compile`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from petzval.kernels import dispatch, fast, fused
from petzval.kernels.quantise import encode_float8
from petzval.models.compiled import compile_blocks, compiled
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


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts graphs, and runs them as they are."""
    torch._dynamo.reset()
    counting = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    return counting


@torch.no_grad()
def test_texts_of_any_length_share_the_graphs_of_a_size(
    golden_checkpoint: Path, counter: CompileCounter
) -> None:
    """Else every prompt of a new length would wait for the compiler."""
    checkpoint = Checkpoint.open(golden_checkpoint)
    plain, denoiser = (checkpoint.load_denoiser(torch.float32) for _ in range(2))
    compile_blocks(denoiser.transformer_blocks)
    config = denoiser.config
    [step] = denoiser.modulations(torch.tensor([0.7]))
    graphs: list[int] = []
    for grid, length in (((3, 4), 7), ((3, 4), 9), ((3, 4), 22), ((3, 4), 0), ((2, 5), 9)):
        tokens = _draw(1, grid[0] * grid[1], config.in_channels, seed=length)
        text = _draw(1, length, config.hidden_size, seed=1) if length else None
        rope = mmdit_rope(grid, length, config.axes_dims_rope)
        got = denoiser(tokens, text, step, rope)
        assert torch.equal(got, plain(tokens, text, step, rope))
        graphs.append(counter.frame_count)
    assert graphs == [2, 2, 2, 3, 5]  # all but the last block, the last one; without text one


@torch.no_grad()
def test_what_a_device_can_do_is_asked_outside_of_the_graph(
    counter: CompileCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes from a trial with random numbers, which a graph cannot hold."""
    asked: list[torch.device] = []

    def tried(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        asked.append(device)
        torch.randn(2, generator=torch.Generator().manual_seed(0))
        return True, f"tried here in {dtype}"

    monkeypatch.setattr(fused, "float8_ready", tried)
    monkeypatch.setattr(dispatch, "ANSWERS_OF_A_DEVICE", (tried,))
    x, (codes, scale) = _draw(1, 7, 64, seed=0).bfloat16(), encode_float8(_draw(48, 64, seed=1))

    def product(x: Tensor) -> Tensor:
        return dispatch.float8_linear(x, codes, scale, None)

    got = compiled(product)(x)
    assert torch.equal(got, fast.float8_linear(x, codes, scale, None))
    assert counter.frame_count == 1
    assert asked
