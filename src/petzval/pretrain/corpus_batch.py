"""What flow matching over a corpus is set to, what it reads, and what one of its batches holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from petzval.config import check_ranges, setting
from petzval.data.sample_stream import Sample, SamplerState
from petzval.data.sample_table import SampleTable
from petzval.data.sampler import SamplerConfig
from petzval.models.packed import PackedLayout
from petzval.resolution import Resolution


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Settings of flow matching over shards.

    Attributes:
        sampler: seed, mode (bucket or packed), and the batches of a global step.
        bases: families of sizes that the shards must be of; () takes any.
        square: every picture is scaled and cropped to this edge; None keeps the buckets.
        text_dropout: share of the samples that lose all their text.
        sigma_std: standard deviation of logit(t).
        stratified: whether the noise levels of a global step are stratified.
        max_tokens: text tokens of a sample, suffix included.
        text_multiple: bucket mode: a batch's text is padded to a multiple of it.
    """

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    bases: tuple[int, ...] = ()
    square: int | None = setting(None, minimum=64, maximum=4096)
    text_dropout: float = setting(0.1, minimum=0, maximum=1)
    sigma_std: float = setting(1.0, minimum=0, maximum=10)
    stratified: bool = False
    max_tokens: int = setting(415, minimum=23, maximum=4000)
    text_multiple: int = setting(8, minimum=1, maximum=1024)

    def __post_init__(self) -> None:
        check_ranges(self, where="corpus")


@runtime_checkable
class CorpusPictures(Protocol):
    """Pictures and captions by the sampler's ids (`shard_pictures.ShardPictures`)."""

    @property
    def table(self) -> SampleTable:
        """What the sampler knows of them."""
        ...

    @property
    def sizes(self) -> tuple[Resolution, ...]:
        """Of each bucket."""
        ...

    def sample(self, number: int) -> tuple[NDArray[np.uint8], str]:
        """RGB [height, width, 3] at its bucket's size, and the caption."""
        ...

    def caption(self, number: int) -> str:
        """The caption alone."""
        ...

    def name(self, number: int) -> str:
        """Hash of the picture, 64 hexadecimal digits."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusBatch:
    """What one virtual rank learns from in one step; entries of a tuple are samples.

    Attributes:
        uses: which samples.
        pixels: [H, W, 3] bytes; None where the latents are known.
        latents: [S, C] clean tokens, float32; None until `prepare`.
        noise: [S, C].
        sigmas: [B] in (0, 1).
        grids: rows and columns of tokens.
        ids, mask: [B, T] text, padded; T may be 0; a sample without text is all false.
        after: the sampler's state when the step that this batch belongs to is done.
        features: per layer [B, T, width], or [1, text tokens, width] in a row; from `prepare`.
        layout: packed mode: where each sample lies in the row; from `prepare`.
    """

    uses: tuple[Sample, ...]
    pixels: tuple[Tensor | None, ...]
    latents: tuple[Tensor | None, ...]
    noise: tuple[Tensor, ...]
    sigmas: Tensor
    grids: tuple[tuple[int, int], ...]
    ids: Tensor
    mask: Tensor
    after: SamplerState
    features: tuple[Tensor, ...] | None = None
    layout: PackedLayout | None = None
