"""Flow matching over a corpus's shards, as in section 3 of the Lens paper, at any scale.

    x_t = (1 - t) x0 + t noise,   target noise - x0,   mean squared error over a picture's tokens,
    logit(t) ~ Normal(mu(tokens), std)

One objective, two ways to make a batch: `bucket`, pictures of one size, and `packed`, pictures of
any size one behind the other in a row, with attention inside each. What a picture is trained with
(noise, noise level, whether it keeps its text) is a function of seed, picture and epoch alone:
neither the number of processes nor the company in a batch changes it.

What the paper leaves open, and what is chosen here:
  1. Text dropout: a tenth of the samples lose *all* their text tokens, which is exactly the blank
     unconditional branch of inference.
  2. std = 1. Stratified noise levels are an option: one draw in each of as many equal slices of
     probability as the global step has samples; the same density, with less variance over a step.
  3. Pictures are cropped to their bucket when shards are made, in the middle, and never mirrored:
     captions speak of left and right, and of words. The autoencoder gives the posterior's mean.
  4. A row is planned with text lengths that are estimated from the index (`shard_pictures`); one
     that comes out longer than the budget is padded to the next multiple of `ROW_STEP` instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import from_mapping, to_mapping
from petzval.data.permutation import Permutation
from petzval.data.randomness import sample_generator, sample_uniforms
from petzval.data.sample_stream import GlobalStep, Sample, SamplerState
from petzval.data.sampler import SampleSteps, build_sampler
from petzval.flow.path import interpolate, velocity
from petzval.flow.schedule import training_sigmas
from petzval.models.flops import training_flops
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT
from petzval.models.packed import PackedLayout, pack_layout
from petzval.models.vae import Autoencoder
from petzval.pretrain.caption_encoder import CaptionEncoder
from petzval.pretrain.corpus_batch import CorpusBatch, CorpusConfig, CorpusPictures
from petzval.pretrain.latent_cache import LatentCache
from petzval.pretrain.latent_tokens import encode_pictures
from petzval.training.objective import Loss
from petzval.training.ranks import Ranks
from petzval.training.tallies import Tally, tally_by_decile, tally_by_label

ROW_STEP = 256
STRATA = -2
"""Stands for the bucket in the key of the order in which a step's slices are dealt out."""


class CorpusObjective:
    """Velocity matching with a frozen autoencoder and a frozen text encoder beside it.

    Args:
        model: learns.
        encoder, tokenizer, autoencoder: frozen.
        pictures: of the corpus.
        config: see there.
        ranks: whose share of each global step is taken; one process takes all of it.
        cache: latents that are kept; None encodes pictures whenever they are met.

    Raises:
        ConfigError: the processes cannot share the virtual ranks alike.
        DataError: a picture that no budget holds.
    """

    def __init__(
        self,
        model: MMDiT,
        encoder: GptOssEncoder,
        tokenizer: PromptTokenizer,
        autoencoder: Autoencoder,
        pictures: CorpusPictures,
        config: CorpusConfig,
        *,
        ranks: Ranks | None = None,
        cache: LatentCache | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.autoencoder = autoencoder
        self.pictures = pictures
        self.config = config
        self._captions = CaptionEncoder(encoder, tokenizer)
        self._ranks = ranks or Ranks()
        self._cache = cache
        self._sampler = build_sampler(pictures.table, config.sampler)
        self._after = self._sampler.start()
        self._steps = SampleSteps(self._sampler)
        self._num_batches = len(self._share(self._steps.at(0)[0]))

    # ── batches ──────────────────────────────────────────────────────────────────────────────────

    @property
    def batches_per_step(self) -> int:
        """Virtual ranks that this process stands for."""
        return self._num_batches

    def batch(self, number: int) -> CorpusBatch:
        """Batch `number % batches_per_step` of step `number // batches_per_step`."""
        step_number, part = divmod(number, self._num_batches)
        step, after = self._steps.at(step_number)
        uses = self._share(step)[part]
        texts = [self._text(use) for use in uses]
        latents = [self._kept(use) for use in uses]
        pixels: list[Tensor | None] = []
        rows: list[tuple[int, ...]] = []
        for use, kept, has_text in zip(uses, latents, texts, strict=True):
            if kept is None:
                array, caption = self.pictures.sample(use.id)
                pixels.append(torch.from_numpy(array))
            else:
                pixels.append(None)
                caption = self.pictures.caption(use.id) if has_text else ""
            rows.append(self._captions.ids(caption, self.config.max_tokens) if has_text else ())
        multiple = self.config.text_multiple if self.config.sampler.mode == "bucket" else 1
        ids, mask = self._captions.pad(rows, multiple=multiple)
        return CorpusBatch(
            uses=uses,
            pixels=tuple(pixels),
            latents=tuple(latents),
            noise=tuple(self._noise(use) for use in uses),
            sigmas=self._sigmas(step, part, uses),
            grids=tuple(self.pictures.sizes[use.bucket].grid for use in uses),
            ids=ids,
            mask=mask,
            after=after,
        )

    def _share(self, step: GlobalStep) -> tuple[tuple[Sample, ...], ...]:
        return step.of_rank(self._ranks.rank, self._ranks.size)

    def _text(self, use: Sample) -> bool:
        """Whether a sample keeps its text in this epoch."""
        [draw] = sample_uniforms(self._seed, [use.id], [use.epoch], "text dropout")
        return bool(draw >= self.config.text_dropout)

    def _kept(self, use: Sample) -> Tensor | None:
        if self._cache is None:
            return None
        return self._cache.read(self.pictures.name(use.id), use.image_tokens)

    def _noise(self, use: Sample) -> Tensor:
        generator = sample_generator(self._seed, use.id, use.epoch, "noise")
        shape = (use.image_tokens, self.model.config.in_channels)
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))

    def _sigmas(self, step: GlobalStep, part: int, uses: Sequence[Sample]) -> Tensor:
        draws = sample_uniforms(
            self._seed, [use.id for use in uses], [use.epoch for use in uses], "noise level"
        )
        if self.config.stratified:
            number = part * self._ranks.size + self._ranks.rank
            first = sum(len(batch) for batch in step.batches[:number])
            count = len(step.samples)
            order = Permutation(count, self._seed, step.number, STRATA)
            draws = (order.take(np.arange(first, first + len(uses))) + draws) / count
        lengths = [use.image_tokens for use in uses]
        return training_sigmas(torch.from_numpy(draws), lengths, std=self.config.sigma_std)

    @property
    def _seed(self) -> int:
        return self.config.sampler.seed

    # ── the frozen networks ──────────────────────────────────────────────────────────────────────

    def features(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Frozen features [B, T, width] of each selected layer, behind the cached prefix."""
        return self._captions.features(ids, mask)

    @torch.no_grad()
    def prepare(self, batch: CorpusBatch) -> CorpusBatch:
        """The batch on the model's device, with latents and text features: work of a step before.

        The host waits for nothing here but for latents that are to be kept.
        """
        device = self.model.proj_out.weight.device
        with torch.autocast(device.type, enabled=False):
            latents = self._encoded(batch, device)
        features: list[Tensor] = []
        if batch.ids.shape[1] > 0:
            features = self.features(batch.ids, batch.mask)
        layout = None
        if self.config.sampler.mode == "packed":
            real = batch.mask.flatten().nonzero().flatten().to(device, non_blocking=True)
            features = [each.flatten(0, 1).index_select(0, real)[None] for each in features]
            layout = self._layout(batch, device)
        return dataclasses.replace(
            batch,
            pixels=(None,) * len(batch.uses),
            latents=tuple(latents),
            noise=tuple(each.to(device, non_blocking=True) for each in batch.noise),
            features=tuple(features),
            layout=layout,
        )

    def _encoded(self, batch: CorpusBatch, device: torch.device) -> list[Tensor | None]:
        """Clean tokens of each sample; pictures of one size are encoded together."""
        tokens = [None if kept is None else kept.to(device) for kept in batch.latents]
        groups: dict[tuple[int, int], list[int]] = {}
        for place, grid in enumerate(batch.grids):
            if tokens[place] is None:
                groups.setdefault(grid, []).append(place)
        for places in groups.values():
            pixels = [batch.pixels[place] for place in places]
            images = torch.stack([each for each in pixels if each is not None]).to(
                device, non_blocking=True
            )
            images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
            for place, found in zip(places, encode_pictures(self.autoencoder, images), strict=True):
                tokens[place] = found
                if self._cache is not None:
                    self._cache.write(self.pictures.name(batch.uses[place].id), found)
        return tokens

    def _layout(self, batch: CorpusBatch, device: torch.device) -> PackedLayout:
        lengths: list[int] = batch.mask.sum(1).tolist()
        used = sum(use.image_tokens for use in batch.uses) + sum(lengths)
        budget = self.config.sampler.packed.token_budget
        row = budget if used <= budget else -(-used // ROW_STEP) * ROW_STEP
        axes = self.model.config.axes_dims_rope
        return pack_layout(batch.grids, lengths, axes, pad_to=row, device=device)

    # ── the loss ─────────────────────────────────────────────────────────────────────────────────

    def loss(self, batch: CorpusBatch) -> Loss:
        """Mean over the samples of each one's mean squared error of the velocity.

        Logged beside it: the loss by bucket and by tenth of t, and the share of padding.
        """
        if batch.features is None:
            batch = self.prepare(batch)
        device = self.model.proj_out.weight.device
        sigmas = batch.sigmas.to(device)
        clean = [each for each in batch.latents if each is not None]
        if batch.layout is None:
            errors = self._of_bucket(batch, clean, sigmas)
            used, row = int(batch.mask.sum()), batch.mask.numel()
        else:
            errors = self._of_row(batch, clean, sigmas, batch.layout)
            used, row = 0, batch.layout.num_padding
        self._after = batch.after
        lengths = [use.image_tokens for use in batch.uses]
        text: list[int] = batch.mask.sum(1).tolist()
        padding = row - used
        shown = sum(lengths) + sum(text) + padding
        logged = errors.detach()
        return Loss(
            value=errors.mean(),
            num_items=len(lengths),
            num_tokens=sum(lengths),
            items=errors,
            item_tokens=torch.tensor(lengths, device=device),
            flops=float(training_flops(self.model.config, lengths, text)),
            means={
                **tally_by_decile(logged, sigmas),
                **tally_by_label(logged, [f"{rows}x{columns}" for rows, columns in batch.grids]),
                "padding": Tally(total=logged.new_tensor(padding), count=logged.new_tensor(shown)),
            },
        )

    def _of_bucket(self, batch: CorpusBatch, clean: Sequence[Tensor], sigmas: Tensor) -> Tensor:
        """Errors [B] of samples of one size."""
        data, noise = torch.stack(list(clean)), torch.stack(batch.noise)
        # No mask where nothing is padded: the fused kernels are faster without.
        padded = bool(batch.features) and not bool(batch.mask.all())
        mask = batch.mask.to(data.device) if padded else None
        noisy = interpolate(data, noise, sigmas)
        predicted = self.model.velocity(noisy, batch.features or (), sigmas, batch.grids[0], mask)
        return (predicted.float() - velocity(data, noise)).square().mean(dim=(1, 2))

    def _of_row(
        self, batch: CorpusBatch, clean: Sequence[Tensor], sigmas: Tensor, layout: PackedLayout
    ) -> Tensor:
        """Errors [B] of samples in one row."""
        data, noise = layout.join(clean), layout.join(batch.noise)
        of_tokens = sigmas.index_select(0, layout.image_rows)
        noisy = interpolate(data[0], noise[0], of_tokens)[None]
        predicted = self.model.packed_velocity(noisy, batch.features or (), sigmas, layout)
        difference = predicted.float() - velocity(data, noise)
        return layout.sample_means(difference.square().mean(dim=-1))

    # ── the sampler's state ──────────────────────────────────────────────────────────────────────

    def state_dict(self) -> Mapping[str, Any]:
        """The sampler's state behind the last step whose loss was taken: below 1 kB."""
        return to_mapping(self._after)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind that step.

        Raises:
            TrainingError: it belongs to another corpus or to other settings.
        """
        self._after = from_mapping(SamplerState, state, where="sampler state")
        self._steps = SampleSteps(self._sampler, self._after)
