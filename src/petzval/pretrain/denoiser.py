"""Flow matching, as in section 3 of the Lens paper.

    x_t = (1 - t) x0 + t noise,   target noise - x0,   mean squared error,
    logit(t) ~ Normal(mu(tokens), 1), stratified within the batch.

Departures, numbered:
  1. Text dropout (a tenth of the samples, a number the paper does not give) removes *all* text
     tokens of a sample, which is exactly the blank unconditional branch of inference.
  2. Every batch is one bucket (one size of picture), as one rank of the paper's is.
  3. The frozen text encoder runs beside training, on prompts behind a cached prefix: at this size
     that costs a few per cent and keeps captions unlimited. Latents come from a cache.
  4. On request the squared error is taken in a metric M that weighs what the decoder makes visible
     (`petzval.pretrain.metric`): e^T M e in place of e^T e. Any positive M has the same minimiser,
     the conditional mean; a small network then spends itself on what is seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.flow.path import interpolate, velocity
from petzval.flow.schedule import sample_training_sigmas
from petzval.models.flops import training_flops
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT
from petzval.pretrain.caption_encoder import CaptionEncoder
from petzval.pretrain.metric import blend
from petzval.pretrain.pool import Pool
from petzval.pretrain.windows import SortedWindows
from petzval.training.objective import Loss
from petzval.training.tallies import tally_by_decile, tally_by_label


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserConfig:
    """Settings of the flow-matching objective.

    Attributes:
        bases: families of presets whose shards are used.
        base_shares: how often a window is of each family.
        batch_tokens: image tokens a step; the batch size follows from the bucket, so that steps
            of all areas cost alike.
        text_dropout: share of the samples that lose all their text.
        sigma_std: standard deviation of logit(t).
        text_multiple: the padded length of a batch's text is rounded up to one of it.
        visible_share: share of the decoder's metric in the loss's; 0 is the plain mean square.
    """

    bases: tuple[int, ...] = (128,)
    base_shares: tuple[float, ...] = (1.0,)
    batch_tokens: int = 4096
    steps_per_window: int = 4
    text_dropout: float = 0.1
    sigma_std: float = 1.0
    text_multiple: int = 8
    visible_share: float = 0.0
    max_tokens: int = 192
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserSample:
    """Clean latent tokens [S, C] and the ids of prompt and suffix; none if the text is dropped."""

    latents: Tensor
    text_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserBatch:
    """Samples of one bucket.

    Attributes:
        latents: [B, S, C] normalised clean tokens.
        noise: [B, S, C].
        sigmas: [B] in (0, 1).
        grid: rows and columns of tokens.
        ids: [B, T] prompt and suffix tokens, padded; T may be 0.
        mask: [B, T], True where real; a row without text is all false.
        features: [B, T, width] of each selected layer, where `prepare` has made them.
    """

    latents: Tensor
    noise: Tensor
    sigmas: Tensor
    grid: tuple[int, int]
    ids: Tensor
    mask: Tensor
    features: tuple[Tensor, ...] | None = None


class DenoiserObjective:
    """Velocity matching on cached latents with a frozen text encoder.

    Args:
        model: learns.
        encoder: frozen.
        tokenizer: of the encoder.
        pool: latents and captions.
        metric: [C, C], what the decoder makes visible; needed where `visible_share` is not 0.
    """

    def __init__(
        self,
        model: MMDiT,
        encoder: GptOssEncoder,
        tokenizer: PromptTokenizer,
        pool: Pool,
        config: DenoiserConfig,
        metric: Tensor | None = None,
    ) -> None:
        if config.visible_share > 0 and metric is None:
            raise ValueError("visible_share needs the decoder's metric")
        self.model = model
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.pool = pool
        self.config = config
        self._metric = None if metric is None else blend(metric, config.visible_share)
        self._captions = CaptionEncoder(encoder, tokenizer)
        self._windows: dict[tuple[int, int], SortedWindows[DenoiserSample]] = {}

    @property
    def batches_per_window(self) -> int:
        """Batches whose samples are drawn and sorted together."""
        return self.config.steps_per_window

    def bucket(self, step: int) -> tuple[int, int]:
        """Grid of the batch of this step: the same for a whole window."""
        config = self.config
        window = step // config.steps_per_window
        rng = np.random.default_rng((config.seed, window, 1))
        base = int(rng.choice(config.bases, p=np.array(config.base_shares)))
        return self.pool.draw_bucket(step, base, rng)

    def batch(self, step: int) -> DenoiserBatch:
        """Latents, captions, noise and noise levels of one step."""
        config = self.config
        grid = self.bucket(step)
        samples = self._window_of(grid).batch(step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        latents = torch.stack([sample.latents for sample in samples]).float()
        sigmas = sample_training_sigmas(
            len(samples), latents.shape[1], generator, std=config.sigma_std
        )
        ids, mask = self._captions.pad(
            [sample.text_ids for sample in samples], multiple=config.text_multiple
        )
        noise = torch.randn(latents.shape, generator=generator)
        return DenoiserBatch(
            latents=latents, noise=noise, sigmas=sigmas, grid=grid, ids=ids, mask=mask
        )

    def _window_of(self, grid: tuple[int, int]) -> SortedWindows[DenoiserSample]:
        if grid not in self._windows:
            num_tokens = grid[0] * grid[1]
            batch_size = max(1, self.config.batch_tokens // num_tokens)
            self._windows[grid] = SortedWindows(
                lambda number: self._samples(grid, number, batch_size),
                lambda sample: len(sample.text_ids),
                batch_size=batch_size,
                steps_per_window=self.config.steps_per_window,
                seed=self.config.seed,
            )
        return self._windows[grid]

    def _samples(
        self, grid: tuple[int, int], window: int, batch_size: int
    ) -> Sequence[DenoiserSample]:
        config = self.config
        rng = np.random.default_rng((config.seed, window, 2))
        count = batch_size * config.steps_per_window
        drawn = self.pool.draw(window * config.steps_per_window, grid, count, rng)
        samples: list[DenoiserSample] = []
        for latents, caption in drawn:
            dropped = rng.random() < config.text_dropout
            ids: tuple[int, ...] = ()
            if not dropped:
                ids = self._captions.ids(caption, config.max_tokens)
            samples.append(DenoiserSample(latents=latents, text_ids=ids))
        return samples

    def features(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Frozen features [B, T, width] of each selected layer, behind the cached prefix."""
        return self._captions.features(ids, mask)

    def prepare(self, batch: DenoiserBatch) -> DenoiserBatch:
        """The batch on the model's device, with its text features: work of the step before."""
        device = self.model.proj_out.weight.device
        features = self.features(batch.ids, batch.mask) if batch.ids.shape[1] > 0 else []
        return dataclasses.replace(
            batch,
            latents=batch.latents.to(device, non_blocking=True),
            noise=batch.noise.to(device, non_blocking=True),
            features=tuple(features),
        )

    def loss(self, batch: DenoiserBatch) -> Loss:
        """Mean squared error of the velocity, in the metric asked for.

        Logged beside it, all as plain squares: `loss_plain`, by bucket and by tenth of t.
        """
        device = self.model.proj_out.weight.device
        clean, noise = batch.latents.to(device), batch.noise.to(device)
        sigmas = batch.sigmas.to(device)
        noisy = interpolate(clean, noise, sigmas)
        features: Sequence[Tensor] = []
        mask = None
        if batch.ids.shape[1] > 0:
            if batch.features is None:
                batch = self.prepare(batch)
            features = batch.features or ()
            # No mask where nothing is padded: the fused kernels are faster without.
            mask = None if bool(batch.mask.all()) else batch.mask.to(device)
        predicted = self.model.velocity(noisy, features, sigmas, batch.grid, mask)
        difference = predicted.float() - velocity(clean, noise)
        plain = difference.square().mean(dim=(1, 2))
        error = plain
        if self._metric is not None:
            with torch.autocast(device.type, enabled=False):
                weighted = difference @ self._metric.to(device)
            error = (weighted * difference).mean(dim=(1, 2))
        bucket = f"{batch.grid[0]}x{batch.grid[1]}"
        return Loss(
            value=error.mean(),
            parts={"loss_plain": plain.detach().mean()},
            num_items=clean.shape[0],
            num_tokens=clean.shape[0] * clean.shape[1],
            flops=self._flops(batch),
            means={
                **tally_by_decile(plain, sigmas),
                **tally_by_label(plain, [bucket] * clean.shape[0]),
            },
        )

    def _flops(self, batch: DenoiserBatch) -> float:
        """Useful operations of a step on this batch: padding does no work."""
        size, num_tokens = batch.latents.shape[:2]
        lengths = batch.mask.sum(1).tolist()
        return float(training_flops(self.model.config, [num_tokens] * size, lengths))
