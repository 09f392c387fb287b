"""The denoising loop: the original's way, then one exact saving after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.case import Case, Prepared
from petzval.bench import original
from petzval.flow.guidance import guide
from petzval.flow.noise import initial_noise
from petzval.flow.sampler import sample
from petzval.flow.schedule import empirical_mu, sigmas
from petzval.kernels import dispatch
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.rope import mmdit_rope
from petzval.models.sizes import MINI_MMDIT

GRID = (16, 16)
"""256 x 256 pixels."""

NUM_TEXT_TOKENS = 40
"""A prompt of 18 tokens and the template's 22-token suffix."""


class _Scene:
    """One picture's inputs, and the ways to denoise it."""

    def __init__(self, config: MMDiTConfig, num_steps: int, guidance: float) -> None:
        self.model = MMDiT(config).eval()
        original.randomise(self.model, seed=1)
        generator = torch.Generator("cpu").manual_seed(2)
        shape = (1, NUM_TEXT_TOKENS, config.enc_hidden_dim)
        self.features = [
            torch.randn(shape, generator=generator) for _ in config.selected_layer_index
        ]
        self.noise = initial_noise([0], GRID, config.in_channels)
        self.sigmas = sigmas(num_steps, empirical_mu(GRID[0] * GRID[1], num_steps))
        self.guidance = guidance
        self.axes = config.axes_dims_rope

    def original(self) -> Tensor:
        """Two padded branches, mask, slow arithmetic."""
        return self._original(slow=True)

    def original_with_fast_arithmetic(self) -> Tensor:
        """The same work with the fused kernels."""
        return self._original(slow=False)

    def _original(self, *, slow: bool) -> Tensor:
        inputs = (self.model, self.features, self.noise, GRID, self.sigmas, self.guidance)
        return original.denoise(*inputs, dispatch.reference) if slow else original.denoise(*inputs)

    def unpadded(self) -> Tensor:
        """No mask; the blank negative has no text at all; one branch where guidance is 1."""
        return self._sample(lambda x, s, _: self._guided(x, s))

    def _guided(self, x: Tensor, sigma: float) -> Tensor:
        level = torch.tensor([sigma])
        conditional = self.model.velocity(x, self.features, level, GRID)
        if self.guidance == 1.0:
            return conditional
        return guide(conditional, self.model.velocity(x, [], level, GRID), self.guidance)

    def folded(self) -> Tensor:
        """Modulations of all steps at once, text projected once, position tables once."""
        text = self.model.embed_text(self.features)
        steps = self.model.modulations(self.sigmas[:-1])
        rope = mmdit_rope(GRID, NUM_TEXT_TOKENS, self.axes)
        bare_rope = mmdit_rope(GRID, 0, self.axes)

        def velocity(x: Tensor, _: float, call: int) -> Tensor:
            conditional = self.model(x, text, steps[call], rope)
            if self.guidance == 1.0:
                return conditional
            blank = self.model(x, None, steps[call], bare_rope)
            return guide(conditional, blank, self.guidance)

        return self._sample(velocity)

    def _sample(self, velocity: object) -> Tensor:
        steps = list(sample(velocity, self.noise, self.sigmas))  # pyright: ignore[reportArgumentType]
        return steps[-1].tokens


def _prepare(num_steps: int, guidance: float) -> Prepared:
    scene = _Scene(MINI_MMDIT, num_steps, guidance)
    return Prepared(
        ways={
            "the original's way": scene.original,
            "+ fused arithmetic": scene.original_with_fast_arithmetic,
            "+ no padding, no mask, no needless branch": scene.unpadded,
            "+ folded modulations, text once": scene.folded,
        },
        dtype="float32",
        facts={
            "image tokens": GRID[0] * GRID[1],
            "text tokens": NUM_TEXT_TOKENS,
            "steps": num_steps,
            "guidance": guidance,
        },
    )


def _turbo() -> Prepared:
    return _prepare(num_steps=4, guidance=1.0)


def _guided() -> Prepared:
    return _prepare(num_steps=8, guidance=5.0)


def _fold() -> Prepared:
    """Two blocks at the published width: the weights no longer fit a cache."""
    config = MMDiTConfig(
        num_layers=2,
        num_attention_heads=24,
        in_channels=128,
        out_channels=32,
        enc_hidden_dim=64,
        selected_layer_index=(0,),
    )
    model = MMDiT(config).eval()
    original.randomise(model, seed=3)
    levels = sigmas(20, empirical_mu(4096, 20))[:-1]

    def one_by_one() -> Tensor:
        steps = [model.modulation(level[None]) for level in levels]
        return _stacked([step.image[-1] for step in steps])

    def at_once() -> Tensor:
        return _stacked([step.image[-1] for step in model.modulations(levels)])

    blocks = list(model.transformer_blocks)
    dropped = sum(
        parameter.nbytes
        for block in blocks
        for name, parameter in block.named_parameters()
        if name.split(".")[0] in ("img_mod", "txt_mod")
    )
    return Prepared(
        ways={"one step at a time": one_by_one, "all 20 steps at once": at_once},
        dtype="float32",
        facts={"steps": 20, "blocks": 2, "MiB of weights that can go": dropped / 2**20},
    )


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


CASES = (
    Case(
        name="guidance-one",
        title="four steps at guidance 1.0, 256 x 256, mini's size",
        why="Turbo runs at guidance 1, where the second branch changes nothing",
        prepare=_turbo,
        min_ratio=2.0,
        tolerance=2e-3,
    ),
    Case(
        name="blank-negative",
        title="eight steps at guidance 5.0 with a blank negative prompt",
        why="a blank prompt is no text: its branch runs without the text stream",
        prepare=_guided,
        rounds=5,
        min_ratio=1.0,
        tolerance=2e-2,
    ),
    Case(
        name="folding",
        title="all modulations of a 20-step schedule, two blocks of the published width",
        why="a third of the weights depends on the timestep only: read once, then dropped",
        prepare=_fold,
        min_ratio=1.0,
        tolerance=1e-4,
    ),
)
