"""Joint attention of the image stream and the text stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petzval.kernels import dispatch
from petzval.kernels.sequences import FusedStream
from petzval.models.layers import RMSNorm
from petzval.models.packed import PackedLayout
from petzval.models.rope import RopeTables

QK_NORM_EPS = 1e-6


class JointAttention(nn.Module):
    """One softmax over [image tokens ; text tokens], with separate weights for the two streams.

    The fused projections give q, k, v as three runs of rows, heads inside each. Query and key are
    normalised per head, rotated, and the image always stands first.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        head_width = width // num_heads
        self.img_qkv = nn.Linear(width, 3 * width)
        self.txt_qkv = nn.Linear(width, 3 * width)
        self.norm_q = RMSNorm(head_width, QK_NORM_EPS)
        self.norm_k = RMSNorm(head_width, QK_NORM_EPS)
        self.norm_added_q = RMSNorm(head_width, QK_NORM_EPS)
        self.norm_added_k = RMSNorm(head_width, QK_NORM_EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)
        self.scaled_float16 = False
        """Attend in float16 with scaled values, where all else is float32 (`models.half`)."""

    def _image_stream(self, fused: Tensor) -> FusedStream:
        return FusedStream(fused, self.norm_q.weight, self.norm_k.weight)

    def _text_stream(self, fused: Tensor) -> FusedStream:
        return FusedStream(fused, self.norm_added_q.weight, self.norm_added_k.weight)

    def normed_heads(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """What each norm gives for the fused projections of both streams, by the norm's name.

        For a look inside: `forward` does it in one kernel with what comes before and after.
        """
        query, key, _ = self._image_stream(image).heads()
        added_query, added_key, _ = self._text_stream(text).heads()
        return {
            "norm_q": self.norm_q(query),
            "norm_k": self.norm_k(key),
            "norm_added_q": self.norm_added_q(added_query),
            "norm_added_k": self.norm_added_k(added_key),
        }

    def forward(
        self,
        image: Tensor,
        text: Tensor | None,
        rope: RopeTables,
        text_mask: Tensor | None,
        packing: PackedLayout | None = None,
        *,
        text_output: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; returns the projected image part and, where asked, the projected text part.

        Args:
            image: [B, S, width]; text: [B, T, width] or None for no text tokens at all.
            text_mask: [B, T], True where real; None when nothing is padded.
            packing: samples of any size in one row, B = 1; each attends within itself.
            text_output: False in the last block, whose text is never read: its queries are skipped.
        """
        num_image = image.shape[1]
        key_mask = None
        if text is not None and text_mask is not None:
            always = text_mask.new_ones(image.shape[0], num_image)
            key_mask = torch.cat((always, text_mask), dim=1)
        query, key, value = dispatch.joint_qkv(
            self._image_stream(self.img_qkv(image)),
            None if text is None else self._text_stream(self.txt_qkv(text)),
            QK_NORM_EPS,
            rope.cos,
            rope.sin,
            text_queries=text_output,
        )
        if packing is None:
            attend = dispatch.scaled_attention if self.scaled_float16 else dispatch.attention
            out = attend(query, key, value, key_mask).flatten(2)
        else:
            out = packing.attend(query[0], key[0], value[0]).flatten(1)[None]
        image_out = self.to_out[0](out[:, :num_image])
        text_out = self.to_add_out(out[:, num_image:]) if text is not None and text_output else None
        return image_out, text_out
