"""What each network needs under a strategy, from headers, configs and a dry run: no weight is read.

Bytes of weights are counted on the networks as `residency` builds them (`forms`), working memory by
running their very code on the meta device (`models.dry_run`), seconds by dividing through `Speeds`:
products by the rate of a large one, all other operations by the bytes that they read and write,
decoding by its values, bringing weights by the bytes that are read, converted and sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from petzval.conditioning.template import PREFIX_LENGTH
from petzval.inference.dry_networks import (
    DRY_LAYERS,
    META,
    Work,
    dry_decoding,
    dry_denoiser,
    dry_encoder,
)
from petzval.inference.forms import Amounts, Form, Reckoned, make_form
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    NetworkPlacement,
    Strategy,
)
from petzval.inference.residency import parameter_dtype
from petzval.inference.speeds import Speeds
from petzval.kernels import backends
from petzval.models.dry_run import NOTHING, Footprint, dry_run
from petzval.models.flops import forward_flops
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT
from petzval.models.strips import decode_in_strips
from petzval.models.vae import Autoencoder
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.tensors import REMAP_BYTES

_PAGES_OF_A_ROW = 1 << 16
"""What the system maps around a row of a table that is looked up in the file."""


class Footprints:
    """The needs of one checkpoint's networks for one kind of picture.

    Args:
        checkpoint: open; only headers and configs are looked at.
        dtype: of the networks.
        work: what a picture asks.
        speeds: of the machine.
        beside: numbers that LoRAs keep beside the denoiser's weights.
        changed: layers of it that LoRAs are merged into.
        encodes: False: words are encoded elsewhere, and of the text encoder come features alone.
        reckoned: for this checkpoint before.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        work: Work,
        speeds: Speeds,
        *,
        beside: int = 0,
        changed: Collection[str] = (),
        encodes: bool = True,
        reckoned: Reckoned | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._number = parameter_dtype(dtype)
        self._work = work
        self._speeds = speeds
        self._beside = beside
        self._changed = frozenset(changed)
        self._encodes = encodes
        self._reckoned = reckoned or Reckoned()

    def of(self, network: str, strategy: Strategy) -> NetworkPlacement:
        """What a network needs under a strategy."""
        if network == ENCODER and not self._encodes:
            return self._elsewhere(strategy)
        return {ENCODER: self._encoder, DENOISER: self._denoiser, AUTOENCODER: self._autoencoder}[
            network
        ](strategy)

    # ── text encoder ─────────────────────────────────────────────────────────────────────────────

    def _encoder(self, strategy: Strategy) -> NetworkPlacement:
        form = self._form(ENCODER, strategy)
        encoder = form.network
        assert isinstance(encoder, GptOssEncoder)
        streamed = strategy.residence == "streamed"
        # Streamed layers are read once: prefix and prompt in one pass.
        tokens = self._work.text_tokens + (PREFIX_LENGTH if streamed else 0)
        texts, together = self._texts(strategy)

        def dry(tokens: int, together: int) -> Footprint:
            key = (ENCODER, tokens, together)
            return self._run(
                key, strategy, lambda: dry_encoder(encoder, tokens, self._number, texts=together)
            )

        run = dry(tokens, together)
        decoding = self._run((ENCODER, "decoding"), strategy, lambda: dry_decoding(encoder))
        config = encoder.config
        layers = config.num_hidden_layers / DRY_LAYERS
        experts = config.num_local_experts / config.num_experts_per_tok
        passes = math.ceil(texts / together)
        # Of every text an operation; of every pass the decoding, of all experts and not of a few.
        work = run.less(decoding).times(layers * texts / together)
        decoded = form.decoded / self._decoding_speed(strategy)
        compute = self._seconds(work, strategy) + passes * decoded
        prefixed = 0.0
        if not streamed:  # the prefix is run once, and then remembered
            prefix = dry(PREFIX_LENGTH, 1)
            prefixed = self._seconds(prefix.less(decoding).times(layers), strategy) + decoded
            run = run.then(prefix)
        made = work.made_bytes + decoding.times(layers * experts * passes).made_bytes
        kept = self._feature_bytes
        return self._placed(
            ENCODER, strategy, form, run, kept, compute, made, passes=1, once=prefixed
        )

    @property
    def _feature_bytes(self) -> int:
        """Of all features that are kept at a time."""
        width = self._checkpoint.encoder_config.hidden_size
        layers = len(self._checkpoint.denoiser_config.selected_layer_index)
        return (
            layers
            * width
            * self._number.itemsize
            * self._work.text_tokens
            * (self._work.kept_texts)
        )

    def _elsewhere(self, strategy: Strategy) -> NetworkPlacement:
        """A text encoder of another process: what it gives is here, and nothing else of it."""
        return NetworkPlacement(
            network=ENCODER,
            strategy=strategy,
            stored=(),
            weight_bytes=0,
            staying_bytes=0,
            working_bytes=0,
            kept_bytes=self._feature_bytes,
            host_bytes=0,
            moved_bytes=0,
            seconds=0.0,
            further_seconds=0.0,
            other_seconds=0.0,
            clearing_seconds=0.0,
        )

    def _texts(self, strategy: Strategy) -> tuple[int, int]:
        """Texts of a batch of pictures, and how many at most run through the encoder together.

        One that stays reads the words of a lone picture when it comes; any other all at once.
        """
        work = self._work
        at_once = strategy.residence != "resident" or work.batch > 1
        return work.batch * work.texts, work.text_batch if at_once else 1

    # ── denoiser ─────────────────────────────────────────────────────────────────────────────────

    def _denoiser(self, strategy: Strategy) -> NetworkPlacement:
        work = self._work
        form = self._form(DENOISER, strategy)
        streamed = strategy.residence == "streamed"
        shape = (work.grid, work.batch, work.branches, work.text_tokens)

        def dry(strategy: Strategy) -> Footprint:
            denoiser = self._form(DENOISER, strategy).network
            assert isinstance(denoiser, MMDiT)
            return self._run(
                (DENOISER, *shape, strategy.storage, strategy.coded, streamed),
                strategy,
                lambda: dry_denoiser(denoiser, work, self._number, side_by_side=streamed),
            )

        run = dry(strategy)
        exact = dry(replace(strategy, storage="exact", coded=False))
        config = self._checkpoint.denoiser_config
        lengths = [work.grid[0] * work.grid[1]] * work.batch, [work.text_tokens] * work.batch
        passes = work.calls * work.branches
        flops = forward_flops(config, *lengths) * passes
        every = flops / exact.flops  # of all blocks and calls, in place of what was run
        moved = exact.moved_bytes if strategy.coded else run.moved_bytes  # decoding counts as such
        whole = Footprint(peak_bytes=0, flops=flops, moved_bytes=int(every * moved))
        compute = self._seconds(whole, strategy)
        compute += form.decoded * passes / self._decoding_speed(strategy)
        compute += form.modulation / self._copied(strategy)
        values = (12 * config.num_layers + 2) * config.hidden_size
        kept = (work.calls * values + self._beside) * self._number.itemsize
        if form.folding is not None:
            run = run.then(replace(NOTHING, peak_bytes=form.folding.layer))
        brought = work.calls if streamed else 1  # both branches while a block is there
        made = int(every * run.made_bytes)
        return self._placed(DENOISER, strategy, form, run, kept, compute, made, passes=brought)

    # ── autoencoder ──────────────────────────────────────────────────────────────────────────────

    def _autoencoder(self, strategy: Strategy) -> NetworkPlacement:
        form = self._form(AUTOENCODER, strategy)
        module = form.network
        assert isinstance(module, Autoencoder)
        height, width = self._work.grid
        channels = self._checkpoint.vae_config.latent_channels
        shape = (self._work.batch, channels, 2 * height, 2 * width)

        def decode() -> Tensor:
            latents = torch.empty(shape, dtype=self._number, device=META)
            if strategy.strip_rows:
                return decode_in_strips(module, latents, rows=strategy.strip_rows)
            return module.decode(latents)

        run = self._run((AUTOENCODER, shape, strategy.strip_rows), strategy, decode)
        compute = self._seconds(run, strategy)
        return self._placed(AUTOENCODER, strategy, form, run, 0, compute, run.made_bytes, passes=1)

    # ── all three ────────────────────────────────────────────────────────────────────────────────

    def _form(self, network: str, strategy: Strategy) -> Form:
        kept = strategy.residence != "staged"
        residence = strategy.residence if kept else "resident"
        plain = replace(strategy, strip_rows=0, kept_layers=0, residence=residence)
        key = (network, plain, self._dtype, self._changed)
        return self._reckoned.forms.of(
            key, lambda: make_form(self._checkpoint, network, plain, self._dtype, self._changed)
        )

    def _run(self, key: object, strategy: Strategy, work: Callable[[], object]) -> Footprint:
        """A dry run; the key says what of the work it depends on."""
        on_cpu = strategy.device == "cpu"
        return self._reckoned.runs.of(
            (key, strategy.device, self._dtype, self._changed),
            lambda: dry_run(work, scratch=on_cpu),
        )

    def _copied(self, strategy: Strategy) -> float:
        return self._speeds.cpu_copied if strategy.device == "cpu" else self._speeds.copied

    def _decoding_speed(self, strategy: Strategy) -> float:
        return self._speeds.cpu_decoded if strategy.device == "cpu" else self._speeds.decoded

    def _seconds(self, run: Footprint, strategy: Strategy) -> float:
        """Of products, and of all else."""
        speed = self._speeds.cpu_flops if strategy.device == "cpu" else self._speeds.flops
        return run.flops / speed + run.moved_bytes / self._copied(strategy)

    def _bringing(self, amounts: Amounts, *, on_cpu: bool) -> tuple[float, float]:
        """Seconds of having weights once: of reading the files, and of what is done with it."""
        speeds = self._speeds
        sent = 0.0 if on_cpu else amounts.moved / speeds.sent
        handled = amounts.converted / speeds.cpu_copied + amounts.unpacked / speeds.cpu_decoded
        return amounts.moved / speeds.read, handled + sent

    def _placed(
        self,
        network: str,
        strategy: Strategy,
        form: Form,
        run: Footprint,
        kept: int,
        compute: float,
        made: int,
        *,
        passes: int,
        once: float = 0.0,
    ) -> NetworkPlacement:
        """Put together: peaks of loading and of computing, seconds of both.

        Args:
            made: bytes of new tensors in computing a picture.
            passes: in which streamed layers are brought.
            once: seconds of what only the first picture needs computed.
        """
        weights, folding = form.weights, form.folding
        stays, comes = weights.parted(strategy.kept_of(len(weights.layers)))
        device = torch.device(strategy.device)
        on_cpu = device.type == "cpu"
        streamed = strategy.residence == "streamed"
        ahead = not on_cpu and "streams" not in backends.lacks(device)
        layers = stays.size + weights.layer * (2 if ahead else 1)
        # While weights are converted, the stored ones are mapped beside them.
        loading = weights.mapped + weights.unpacking if on_cpu else 0
        rows = (PREFIX_LENGTH + self._work.text_tokens) * _PAGES_OF_A_ROW
        there = weights.base + min(weights.table, rows) + layers
        read, handled = self._bringing(comes, on_cpu=on_cpu)
        once += sum(self._bringing(stays, on_cpu=on_cpu))
        once += 0.0 if folding is None else sum(self._bringing(folding.brought, on_cpu=on_cpu))
        if streamed:
            # Elsewhere a thread brings the next layer; here the system reads it, and that is all.
            beside, between = (read + handled, 0.0) if ahead else (read, handled)
            further = max(compute, passes * beside) + passes * between
            seconds = further + once
            moved = comes.moved * passes
            made += comes.made * passes
        else:
            resident = strategy.residence == "resident"
            seconds = read + handled + once + compute
            moved = 0 if resident else comes.moved
            further = compute + (0.0 if resident else read + handled)
            made += 0 if resident else comes.made
        other = further
        if network == ENCODER:
            moved, further = 0, 0.0  # the features of a request's prompts are kept
        return NetworkPlacement(
            network=network,
            strategy=strategy,
            stored=form.stored,
            weight_bytes=there,
            staying_bytes=there if strategy.residence == "resident" else stays.size,
            working_bytes=max(run.peak_bytes, loading),
            kept_bytes=kept,
            host_bytes=0
            if on_cpu
            else min(REMAP_BYTES, weights.brought.moved) + 2 * weights.layer + weights.unpacking,
            moved_bytes=moved,
            seconds=seconds,
            further_seconds=further,
            other_seconds=other,
            clearing_seconds=made / self._speeds.cleared if on_cpu else 0.0,
        )
