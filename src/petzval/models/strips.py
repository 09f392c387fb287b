"""Decoding in strips: the whole picture's statistics, and never more than a strip in between.

A decoder's memory goes into what lies between two layers: the normalised copy, the activated copy,
the library's own copy. Here every layer takes strips of rows from a whole tensor and writes strips
into a whole tensor. What makes other tiled decoders show seams is exact here:

- a convolution sees its strip and one row beyond on either side, zeros at the picture's edge only;
- a group norm takes mean and variance of the whole tensor, in float32;
- the attention of the middle block sees all positions, a strip of queries at a time.

So the picture is that of `Autoencoder.decode` up to rounding, with no overlap to blend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.kernels import backends, dispatch
from petzval.models.vae import Autoencoder, MidBlock, PixelAttention, ResnetBlock, UpBlock, Upsample
from petzval.shapes import Images, Latents

DEFAULT_ROWS = 64
"""Rows of a strip, in pixels of the layer that is computed."""


def decode_in_strips(
    autoencoder: Autoencoder, latents: Latents, *, rows: int = DEFAULT_ROWS
) -> Images:
    """As `Autoencoder.decode`, in strips of `rows` rows of each layer's own resolution.

    Raises:
        ValueError: `rows` is below 2.
    """
    if rows < 2:
        raise ValueError(f"a strip has at least 2 rows, got {rows}")
    decoder = autoencoder.decoder
    x = decoder.conv_in(autoencoder.post_quant_conv(latents))
    x = _middle(decoder.mid_block, x, rows)
    for block in decoder.up_blocks:
        assert isinstance(block, UpBlock)
        for resnet in block.resnets:
            assert isinstance(resnet, ResnetBlock)
            x = _resnet(resnet, x, rows)
            if x.device.type == "cpu":  # strips of many sizes leave holes in the heap
                backends.trim_heap()
        if hasattr(block, "upsamplers"):
            upsample = block.upsamplers[0]
            assert isinstance(upsample, Upsample)
            x = _upsampled(upsample.conv, x, rows)
    return _convolved(decoder.conv_out, x, _Entrance.of(decoder.conv_norm_out, x), rows)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Entrance:
    """Group norm and SiLU before a convolution: x gain + offset, per picture and channel."""

    gain: Tensor
    offset: Tensor

    @classmethod
    def of(cls, norm: nn.GroupNorm, x: Tensor) -> _Entrance:
        """From the statistics of the whole of x [B, C, H, W], a group at a time in float32."""
        groups: Tensor = x.unflatten(1, (norm.num_groups, -1))
        moments = [
            torch.var_mean(groups[:, index].float(), dim=(1, 2, 3), correction=0)
            for index in range(norm.num_groups)
        ]
        variance = torch.stack([pair[0] for pair in moments], dim=1)
        mean = torch.stack([pair[1] for pair in moments], dim=1)
        width = x.shape[1] // norm.num_groups
        deviation = (variance + norm.eps).rsqrt().repeat_interleave(width, dim=1)
        gain = deviation * norm.weight.float()
        offset = norm.bias.float() - mean.repeat_interleave(width, dim=1) * gain
        return cls(gain=gain[:, :, None, None], offset=offset[:, :, None, None])

    def __call__(self, strip: Tensor) -> Tensor:
        return F.silu(torch.addcmul(self.offset, strip.float(), self.gain)).to(strip.dtype)


def _strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """(first, past the last) row of each strip."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def _with_halo(x: Tensor, start: int, stop: int, entrance: _Entrance | None) -> Tensor:
    """Rows start - 1 … stop of x behind its entrance; beyond the picture they are zero."""
    height = x.shape[-2]
    strip = x[:, :, max(start - 1, 0) : min(stop + 1, height)]
    strip = strip if entrance is None else entrance(strip)
    return F.pad(strip, (0, 0, int(start == 0), int(stop == height)))


def _convolved(
    convolution: nn.Conv2d,
    x: Tensor,
    entrance: _Entrance,
    rows: int,
    add: Callable[[int, int], Tensor] | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """A 3 x 3 convolution of activated x, plus what `add` gives for rows (start, stop).

    Args:
        into: where it is written; may be x itself.
    """
    height, width = x.shape[-2:]
    if into is None:
        into = x.new_empty(x.shape[0], convolution.out_channels, height, width)
    above: Tensor | None = None
    for start, stop in _strips(height, rows):
        strip = _with_halo(x, start, stop, entrance)
        if into is x:  # the row above was overwritten: it is the last strip's
            if above is not None:
                strip[:, :, :1] = above
            above = strip[:, :, -2:-1].clone()
        result = F.conv2d(strip, convolution.weight, convolution.bias, padding=(0, 1))
        into[:, :, start:stop] = result if add is None else add(start, stop) + result
    return into


def _resnet(block: ResnetBlock, x: Tensor, rows: int) -> Tensor:
    hidden = _convolved(block.conv1, x, _Entrance.of(block.norm1, x), rows)
    entrance = _Entrance.of(block.norm2, hidden)
    if hasattr(block, "conv_shortcut"):
        shortcut = block.conv_shortcut

        def projected(start: int, stop: int) -> Tensor:
            return shortcut(x[:, :, start:stop])

        return _convolved(block.conv2, hidden, entrance, rows, projected, into=hidden)
    # x is read at the rows that are written, and nowhere else: the sum takes its place.
    return _convolved(block.conv2, hidden, entrance, rows, lambda a, b: x[:, :, a:b], into=x)


def _middle(block: MidBlock, x: Tensor, rows: int) -> Tensor:
    first, second = block.resnets
    attention = block.attentions[0]
    assert isinstance(first, ResnetBlock)
    assert isinstance(second, ResnetBlock)
    assert isinstance(attention, PixelAttention)
    return _resnet(second, _attended(attention, _resnet(first, x, rows), rows), rows)


def _attended(block: PixelAttention, x: Tensor, rows: int) -> Tensor:
    """Every query sees all positions; a strip of queries at a time."""
    hidden = block.group_norm(x).flatten(2).transpose(1, 2)
    key, value = block.to_k(hidden)[:, :, None], block.to_v(hidden)[:, :, None]
    width = x.shape[-1]
    for start, stop in _strips(x.shape[-2], rows):
        query = block.to_q(hidden[:, start * width : stop * width])[:, :, None]
        out = block.to_out[0](dispatch.attention(query, key, value)[:, :, 0])
        x[:, :, start:stop] += out.transpose(1, 2).unflatten(2, (stop - start, width))
    return x


def _upsampled(convolution: nn.Conv2d, x: Tensor, rows: int) -> Tensor:
    """Nearest-neighbour doubling and a convolution; a strip of the result needs half its rows."""
    assert convolution.bias is not None
    height, width = x.shape[-2:]
    out = x.new_empty(x.shape[0], convolution.out_channels, 2 * height, 2 * width)
    for start, stop in _strips(height, max(rows // 2, 1)):
        # One more row of x on either side; its doubled rows are computed and cut off again.
        first, last = max(start - 1, 0), min(stop + 1, height)
        strip = dispatch.upsample_convolution(
            x[:, :, first:last], convolution.weight, convolution.bias
        )
        top = 2 * (start - first)
        out[:, :, 2 * start : 2 * stop] = strip[:, :, top : top + 2 * (stop - start)]
    return out
