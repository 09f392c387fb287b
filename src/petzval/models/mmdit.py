"""The denoiser: a dual-stream multimodal diffusion transformer (Lens' `LensTransformer2DModel`).

Keys are as published. Reading order: configuration, modulation, block, network. Departures from
the original's way of computing, all exact: text is never padded where it can be avoided, no mask
where nothing is padded, modulations of a whole schedule at once, dead text work of the last block
skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from petzval.config import check_ranges, setting
from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.models.attention import JointAttention
from petzval.models.layers import RMSNorm, SwiGLU, TimestepEmbedder, adaptive_layer_norm
from petzval.models.packed import PackedLayout
from petzval.models.rope import RopeTables, mmdit_rope
from petzval.shapes import LatentTokens, Sigma, Sigmas, TextFeatures, TextTokens, TokenMask

BLOCK_NORM_EPS = 1e-6
TEXT_NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class MMDiTConfig:
    """`transformer/config.json`, field by field; `inner_dim` there is unused by Lens itself.

    The upper limits lie far above every published size: anybody may have written the file, and a
    network is built from it before its weights are looked at.

    Attributes:
        in_channels: channels of a latent token (4 x latent channels).
        enc_hidden_dim: width of the text encoder's hidden states.
        axes_dims_rope: rotary dimensions per axis (frame, height, width); sum = head width.
        selected_layer_index: text-encoder layers whose outputs are used, zero-based.

    Raises:
        ConfigError: a value out of range, or values that contradict each other.
    """

    num_layers: int = setting(minimum=1, maximum=1024)
    num_attention_heads: int = setting(minimum=1, maximum=1024)
    in_channels: int = setting(minimum=1, maximum=65_536)
    out_channels: int = setting(minimum=1, maximum=65_536)
    enc_hidden_dim: int = setting(minimum=1, maximum=131_072)
    selected_layer_index: tuple[int, ...] = setting(minimum=0, maximum=1023)
    attention_head_dim: int = setting(64, minimum=2, maximum=4096)
    patch_size: int = setting(2, minimum=1, maximum=64)
    axes_dims_rope: tuple[int, ...] = setting((8, 28, 28), minimum=2, maximum=4096)
    gate_mlp: bool = True
    rms_norm: bool = True
    multi_layer_encoder_feature: bool = True
    inner_dim: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, where="denoiser")
        for name in ("gate_mlp", "rms_norm", "multi_layer_encoder_feature"):
            if not getattr(self, name):
                raise ConfigError(
                    f"denoiser setting {name}=false belongs to no published checkpoint",
                    "use a checkpoint whose transformer/config.json has it true",
                )
        if not self.selected_layer_index:
            raise ConfigError("selected_layer_index must name at least one layer")
        if len(self.selected_layer_index) > 1024:
            raise ConfigError(
                f"selected_layer_index names {len(self.selected_layer_index):,} layers, "
                "at most 1,024 can be read"
            )
        if any(dim % 2 for dim in self.axes_dims_rope):
            raise ConfigError(f"axes_dims_rope {self.axes_dims_rope} must be even numbers")
        if len(self.axes_dims_rope) != 3 or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ConfigError(
                f"axes_dims_rope {self.axes_dims_rope} must be three numbers that sum to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        if self.in_channels != self.out_channels * self.patch_size**2:
            raise ConfigError(
                f"in_channels {self.in_channels} must equal out_channels {self.out_channels} "
                f"x patch_size {self.patch_size} squared"
            )

    @property
    def hidden_size(self) -> int:
        """Width of both streams."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class StepModulation:
    """All that the timestep decides, for one step.

    `image` and `text` hold one [batch or 1, 6 width] tensor a block (shift, scale, gate for
    attention, then the same for the feed-forward); `final` is [batch or 1, 2 width], scale first.
    """

    image: tuple[Tensor, ...]
    text: tuple[Tensor, ...]
    final: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pass:
    """What one call of the network is given; see `MMDiT.forward`."""

    tokens: LatentTokens
    text: TextTokens | None
    modulation: StepModulation
    rope: RopeTables
    text_mask: TokenMask | None = None
    packing: PackedLayout | None = None


Streams: TypeAlias = tuple[Tensor, Tensor | None]
"""Image and text between two blocks."""

Visit: TypeAlias = Callable[[int], AbstractContextManager[object]]
"""A block's number → a context in which its weights are there."""


def _modulation(width: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class MMDiTBlock(nn.Module):
    """Joint attention, then a feed-forward of each stream, all modulated and gated."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.img_mod = _modulation(width)
        self.txt_mod = _modulation(width)
        self.img_norm1 = RMSNorm(width, BLOCK_NORM_EPS)
        self.txt_norm1 = RMSNorm(width, BLOCK_NORM_EPS)
        self.attn = JointAttention(width, num_heads)
        self.img_norm2 = RMSNorm(width, BLOCK_NORM_EPS)
        self.txt_norm2 = RMSNorm(width, BLOCK_NORM_EPS)
        self.img_mlp = SwiGLU(width)
        self.txt_mlp = SwiGLU(width)

    def forward(
        self,
        image: Tensor,
        text: Tensor | None,
        image_modulation: Tensor,
        text_modulation: Tensor,
        rope: RopeTables,
        text_mask: Tensor | None,
        packing: PackedLayout | None = None,
        *,
        text_output: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams one block further; text is None where there is none or it is not needed."""
        rows = None if packing is None else packing.image_rows
        text_rows = None if packing is None else packing.text_rows
        shift1, scale1, gate1, shift2, scale2, gate2 = image_modulation.chunk(6, dim=-1)
        attended = _entrance(image, self.img_norm1, shift1, scale1, rows)
        text_gates = text_modulation.chunk(6, dim=-1)
        text_in = None
        if text is not None:
            text_in = _entrance(text, self.txt_norm1, text_gates[0], text_gates[1], text_rows)
        image_out, text_out = self.attn(
            attended, text_in, rope, text_mask, packing, text_output=text_output
        )

        image = dispatch.gated_residual(image, gate1, image_out, rows)
        hidden = self.img_mlp(_entrance(image, self.img_norm2, shift2, scale2, rows))
        image = dispatch.gated_residual(image, gate2, hidden, rows)
        if text is None or text_out is None:
            return image, None
        text = dispatch.gated_residual(text, text_gates[2], text_out, text_rows)
        entered = _entrance(text, self.txt_norm2, text_gates[3], text_gates[4], text_rows)
        hidden = self.txt_mlp(entered)
        return image, dispatch.gated_residual(text, text_gates[5], hidden, text_rows)


def _entrance(
    x: Tensor, norm: RMSNorm, shift: Tensor, scale: Tensor, rows: Tensor | None
) -> Tensor:
    return dispatch.rms_norm_modulate(x, norm.weight, norm.eps, shift, scale, rows)


class OutputNorm(nn.Module):
    """The projection behind the last norm; its rows are scale first, then shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, conditioning: Tensor) -> Tensor:
        return self.linear(torch.nn.functional.silu(conditioning))


class MMDiT(nn.Module):
    """Latent tokens, text features and noise level → velocity (noise - data)."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        num_features = len(config.selected_layer_index)
        self.img_in = nn.Linear(config.in_channels, width)
        self.txt_norm = nn.ModuleList(
            [RMSNorm(config.enc_hidden_dim, TEXT_NORM_EPS) for _ in range(num_features)]
        )
        self.txt_in = nn.Linear(config.enc_hidden_dim * num_features, width)
        self.time_text_embed = TimestepEmbedder(width)
        self.transformer_blocks = nn.ModuleList(
            [MMDiTBlock(width, config.num_attention_heads) for _ in range(config.num_layers)]
        )
        self.norm_out = OutputNorm(width)
        self.proj_out = nn.Linear(width, config.in_channels)
        self.skip_dead_text = True
        """The last block's text is never read; False computes it all the same, as Lens does."""

    def embed_text(self, features: Sequence[TextFeatures]) -> TextTokens:
        """Selected layers' features → text stream [B, T, width]; needed once per prompt.

        Raises:
            ValueError: not as many feature layers as the denoiser reads.
        """
        if len(features) != len(self.txt_norm):
            raise ValueError(f"expected {len(self.txt_norm)} feature layers, got {len(features)}")
        dtype = self.txt_in.weight.dtype
        normed = [norm(f.to(dtype)) for norm, f in zip(self.txt_norm, features, strict=True)]
        return self.txt_in(torch.cat(normed, dim=-1))

    def modulation(self, sigma: Sigma) -> StepModulation:
        """Modulation of one step for a batch: sigma [B] in [0, 1].

        Raises:
            ValueError: the modulation weights were dropped.
        """
        conditioning = self.time_text_embed(sigma)
        blocks = [block for block in self.transformer_blocks if isinstance(block, MMDiTBlock)]
        if any(len(block.img_mod) == 0 for block in blocks):
            raise ValueError("the modulation weights were dropped; load the denoiser again")
        return StepModulation(
            image=tuple(block.img_mod(conditioning) for block in blocks),
            text=tuple(block.txt_mod(conditioning) for block in blocks),
            final=self.norm_out(conditioning),
        )

    def modulations(self, sigmas: Sigmas) -> list[StepModulation]:
        """Folding: every step's modulation in one batch, a third of the weights read once.

        Args:
            sigmas: [N] noise levels at which the network will be called (no trailing zero).

        Raises:
            ValueError: as `modulation`.
        """
        folded = self.modulation(sigmas)
        return [
            StepModulation(
                image=tuple(m[i : i + 1] for m in folded.image),
                text=tuple(m[i : i + 1] for m in folded.text),
                final=folded.final[i : i + 1],
            )
            for i in range(sigmas.shape[0])
        ]

    def drop_modulation(self) -> int:
        """Free the per-block modulation weights after folding; returns the bytes freed."""
        freed = 0
        for block in self.transformer_blocks:
            for name in ("img_mod", "txt_mod"):
                freed += sum(p.nbytes for p in getattr(block, name).parameters())
                setattr(block, name, nn.Sequential())
        return freed

    def forward(
        self,
        tokens: LatentTokens,
        text: TextTokens | None,
        modulation: StepModulation,
        rope: RopeTables,
        text_mask: TokenMask | None = None,
        packing: PackedLayout | None = None,
    ) -> LatentTokens:
        """Velocity at one noise level, or of samples with a level each.

        Args:
            tokens: [B, S, C] noisy latent tokens, row-major.
            text: [B, T, width] from `embed_text`; None or T = 0 runs without a text stream.
            modulation: from `modulation` or `modulations`.
            rope: tables for this grid and T (`mmdit_rope`).
            text_mask: [B, T], True where real; leave None when nothing is padded.
            packing: samples of any size one behind the other in a batch of 1: tokens and text as
                the layout says, a row of modulation for each sample, `rope` the layout's.
        """
        asked = Pass(
            tokens=tokens,
            text=text,
            modulation=modulation,
            rope=rope,
            text_mask=text_mask,
            packing=packing,
        )
        streams = self._entered(asked)
        for index in range(len(self.transformer_blocks)):
            streams = self._further(index, asked, streams)
        return self._left(asked, streams)

    def side_by_side(self, passes: Sequence[Pass], visit: Visit) -> list[LatentTokens]:
        """Several passes, block by block: each block's weights are needed once for all of them.

        Every pass is computed as it is by itself, to the bit.

        Args:
            passes: what `forward` takes, of any sizes.
            visit: entered before a block's calls and left after them.
        """
        streams = [self._entered(each) for each in passes]
        for index in range(len(self.transformer_blocks)):
            with visit(index):
                for number, each in enumerate(passes):
                    streams[number] = self._further(index, each, streams[number])
        return [self._left(each, pair) for each, pair in zip(passes, streams, strict=True)]

    def _entered(self, asked: Pass) -> Streams:
        image = self.img_in(asked.tokens.to(self.img_in.weight.dtype))
        return image, None if asked.text is None or asked.text.shape[1] == 0 else asked.text

    def _further(self, index: int, asked: Pass, streams: Streams) -> Streams:
        """Both streams behind the block of that number."""
        last = len(self.transformer_blocks) - 1
        return self.transformer_blocks[index](
            *streams,
            asked.modulation.image[index],
            asked.modulation.text[index],
            asked.rope,
            asked.text_mask,
            asked.packing,
            text_output=index < last or not self.skip_dead_text,
        )

    def _left(self, asked: Pass, streams: Streams) -> LatentTokens:
        scale, shift = asked.modulation.final.chunk(2, dim=-1)
        rows = None if asked.packing is None else asked.packing.image_rows
        return self.proj_out(adaptive_layer_norm(streams[0], shift, scale, rows))

    def velocity(
        self,
        tokens: LatentTokens,
        features: Sequence[TextFeatures],
        sigma: Sigma,
        grid: tuple[int, int],
        text_mask: TokenMask | None = None,
    ) -> LatentTokens:
        """Everything at once, from features to velocity: training and tests.

        Raises:
            ValueError: as `embed_text` and `modulation`.
        """
        text = self.embed_text(features) if features else None
        num_text_tokens = 0 if text is None else text.shape[1]
        rope = mmdit_rope(grid, num_text_tokens, self.config.axes_dims_rope, device=tokens.device)
        return self(tokens, text, self.modulation(sigma), rope, text_mask)

    def packed_velocity(
        self,
        tokens: LatentTokens,
        features: Sequence[TextFeatures],
        sigma: Float[Tensor, " samples"],
        packing: PackedLayout,
    ) -> LatentTokens:
        """As `velocity`, for samples of different sizes in one row: equal to each by itself.

        Args:
            tokens: [1, tokens, C] as `packing.join` makes them.
            features: per layer [1, text tokens, width], one sample's behind the other's.
            sigma: noise level of each sample.
            packing: from `pack_layout`, with this network's `axes_dims_rope`.

        Raises:
            ValueError: a number of tokens or samples is not the layout's.
        """
        text = self.embed_text(features) if packing.num_text_tokens else None
        found = (tokens.shape[1], 0 if text is None else text.shape[1], sigma.shape[0])
        expected = (len(packing.image_rows), packing.num_text_tokens, len(packing.grids))
        if found != expected:
            raise ValueError(
                f"image tokens, text tokens and samples are {found}, but {expected} in the layout"
            )
        return self(tokens, text, self.modulation(sigma), packing.rope, packing=packing)

    def initialise(self) -> None:
        """Weights for training from scratch: truncated normals, gates and output at zero.

        Zero gates make every block the identity at the start (adaLN-Zero, DiT section 3.2).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
        for block in self.transformer_blocks:
            for name in ("img_mod", "txt_mod"):
                nn.init.zeros_(getattr(block, name)[1].weight)
        nn.init.zeros_(self.norm_out.linear.weight)
        nn.init.zeros_(self.proj_out.weight)
