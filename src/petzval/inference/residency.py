"""A placement followed: networks that are brought in when they are needed, and put out again.

The networks are built once, without numbers, in the form that their strategy asks for; numbers
come and go (`weights.residence`). What holds a network therefore never holds its memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from petzval.inference.dry_networks import Work
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    Placement,
    Storage,
    Strategy,
)
from petzval.inference.stage import Layers, Stage
from petzval.inference.terms import Budget, Terms
from petzval.kernels import backends
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.half import use_scaled_float16
from petzval.models.mmdit import MMDiT, Visit
from petzval.models.quantised import quantise
from petzval.models.vae import Autoencoder
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.kept_codes import coded_layers, keep_codes
from petzval.weights.lora import Lora, changed_layers
from petzval.weights.manifest import build_on_meta
from petzval.weights.residence import EmbeddingRows, WeightReader, vacate
from petzval.weights.source import Source, packing_of

Loras: TypeAlias = Sequence[tuple[Lora, float]]

_TABLE = "model.embed_tokens.weight"


def settle_heap(limits: Budget, device: str, ram_bytes: int) -> None:
    """Have freed memory kept on a CPU where limits leave room for its holes, else given back.

    A CPU that gives it back decodes 4-bit weights at a third of the speed.

    Args:
        limits: to be kept.
        device: that computes.
        ram_bytes: this process's peak.
    """
    roomy = limits.leaves_holes(device, ram_bytes)
    if device == "cpu" or not roomy:
        backends.keep_heap(roomy)


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of all parameters: float16 holds the denoiser's matrices alone, the rest is float32."""
    return torch.float32 if dtype == torch.float16 else dtype


def unloaded_encoder(checkpoint: Checkpoint) -> GptOssEncoder:
    """The text encoder without numbers."""
    selected = checkpoint.denoiser_config.selected_layer_index
    module = build_on_meta(checkpoint.encoder_config, selected)
    assert isinstance(module, GptOssEncoder)
    module.selected_layers = tuple(selected)
    return module.eval()


def build_encoder(checkpoint: Checkpoint, strategy: Strategy, dtype: torch.dtype) -> GptOssEncoder:
    """The text encoder without numbers; its table of embeddings is looked up in the file.

    A table that is packed there is decoded whole, and kept.
    """
    module = unloaded_encoder(checkpoint)
    table = checkpoint.encoder_source.infos[_TABLE]
    if packing_of(table):
        return module.eval()
    device = torch.device(strategy.device)
    rows = EmbeddingRows(table.shape, table.torch_dtype, parameter_dtype(dtype), device)
    module.model.embed_tokens = rows  # pyright: ignore[reportAttributeAccessIssue]
    return module.eval()


def build_denoiser(
    checkpoint: Checkpoint,
    strategy: Strategy,
    dtype: torch.dtype,
    changed: Collection[str] = (),
) -> tuple[MMDiT, Source]:
    """The denoiser without numbers, its matrices in the form that is kept; and where numbers are.

    Args:
        checkpoint: open.
        strategy: of the denoiser.
        dtype: of the arithmetic.
        changed: layers that LoRAs are merged into, which cannot stay in their file's codes.
    """
    source = checkpoint.denoiser_source
    module = build_on_meta(checkpoint.denoiser_config)
    assert isinstance(module, MMDiT)
    if strategy.storage != "exact":
        quantise(module, strategy.storage)
    elif dtype == torch.float16:
        use_scaled_float16(module)
    elif strategy.coded:
        source = keep_codes(module, source, without=changed)
    return module.eval(), source


def has_codes(checkpoint: Checkpoint, changed: Collection[str] = ()) -> bool:
    """Whether the denoiser's file keeps matrices of its blocks in codes; see `build_denoiser`."""
    module = build_on_meta(checkpoint.denoiser_config)
    assert isinstance(module, MMDiT)
    return bool(coded_layers(module, checkpoint.denoiser_source, changed))


def build_autoencoder(checkpoint: Checkpoint) -> Autoencoder:
    """The autoencoder without numbers."""
    module = build_on_meta(checkpoint.vae_config)
    assert isinstance(module, Autoencoder)
    return module.eval()


def encoder_layers(encoder: GptOssEncoder) -> Layers:
    """The layers of a text encoder, in order."""
    return [(f"model.layers.{i}.", layer) for i, layer in enumerate(encoder.model.layers)]


def denoiser_blocks(denoiser: MMDiT) -> Layers:
    """The blocks of a denoiser, in order."""
    return [(f"transformer_blocks.{i}.", b) for i, b in enumerate(denoiser.transformer_blocks)]


def modulation_layers(denoiser: MMDiT) -> Layers:
    """The modulations of all blocks, in the order in which a schedule evaluates them."""
    return [
        (f"{place}{name}.", block.get_submodule(name))
        for name in ("img_mod", "txt_mod")
        for place, block in denoiser_blocks(denoiser)
    ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Networks:
    """The three networks of a pipeline, with numbers or without."""

    encoder: GptOssEncoder
    denoiser: MMDiT
    autoencoder: Autoencoder


class Residency:
    """Who of a pipeline's networks is in memory.

    Args:
        networks: all three.
        device, dtype: of the denoiser.
        stages: of the networks that come and go; none where all are there for good.
        placement: what is followed, if anything is.
        terms: on which it was chosen; None where it was chosen without any.
    """

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        dtype: torch.dtype,
        *,
        stages: Mapping[str, Stage] | None = None,
        placement: Placement | None = None,
        terms: Terms | None = None,
    ) -> None:
        self.networks = networks
        self.device = device
        self.dtype = dtype
        self.placement = placement
        self.terms = terms
        self._stages = dict(stages or {})

    @classmethod
    def of(cls, encoder: GptOssEncoder, denoiser: MMDiT, autoencoder: Autoencoder) -> Residency:
        """Networks that are there for good, wherever they are."""
        networks = Networks(encoder=encoder, denoiser=denoiser, autoencoder=autoencoder)
        weight = denoiser.img_in.weight
        return cls(networks, weight.device, weight.dtype)

    @classmethod
    def follow(
        cls,
        checkpoint: Checkpoint,
        placement: Placement,
        loras: Loras = (),
        terms: Terms | None = None,
        away: Collection[str] = (),
    ) -> Residency:
        """Networks of a checkpoint as a placement has them; what is resident is loaded now.

        Args:
            checkpoint: open.
            placement: of it.
            loras: merged into the denoiser.
            terms: on which the placement was chosen.
            away: networks that are left without numbers: nobody here asks for them.

        Raises:
            CheckpointError: a tensor cannot be read any more.
        """
        dtype: torch.dtype = getattr(torch, placement.dtype)
        if terms is not None:
            settle_heap(terms.limits, placement.device, placement.ram_bytes)
        denoiser, drawing = build_denoiser(
            checkpoint, placement.of(DENOISER).strategy, dtype, changed_layers(loras)
        )
        networks = Networks(
            encoder=build_encoder(checkpoint, placement.of(ENCODER).strategy, dtype),
            denoiser=denoiser,
            autoencoder=build_autoencoder(checkpoint),
        )
        sources = {
            ENCODER: checkpoint.encoder_source,
            DENOISER: drawing,
            AUTOENCODER: checkpoint.vae_source,
        }
        stages = _stages(networks, sources, placement, loras)
        device = torch.device(placement.device)
        residency = cls(networks, device, dtype, stages=stages, placement=placement, terms=terms)
        try:
            for name, stage in stages.items():
                if residency.keeps(name) and name not in away:
                    stage.bring()
        except BaseException:
            residency.release()  # now, and not when python collects what refers to itself
            raise
        return residency

    @property
    def number(self) -> torch.dtype:
        """What the denoiser computes in outside its matrices."""
        return self.dtype if self.placement is None else parameter_dtype(self.dtype)

    @property
    def denoiser(self) -> MMDiT:
        """The denoiser, its numbers in place."""
        self.bring(DENOISER)
        return self.networks.denoiser

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, its numbers in place."""
        self.bring(AUTOENCODER)
        return self.networks.autoencoder

    @property
    def storage(self) -> Storage:
        """How the denoiser's blocks are kept."""
        if self.placement is None:
            return "exact"
        return self.placement.of(DENOISER).strategy.storage

    @property
    def strip_rows(self) -> int:
        """Rows of a strip of the decoder; 0 decodes the picture at once."""
        return 0 if self.placement is None else self.placement.of(AUTOENCODER).strategy.strip_rows

    def keeps(self, name: str) -> bool:
        """Whether a network, once loaded, stays."""
        return self.placement is None or self.placement.of(name).strategy.residence == "resident"

    def streams(self, name: str) -> bool:
        """Whether a network's layers are read while they run."""
        return self.placement is not None and (
            self.placement.of(name).strategy.residence == "streamed"
        )

    @property
    def stays(self) -> bool:
        """Whether all networks, once brought, stay in place until they are put out by hand."""
        return self.placement is None or self.placement.stays

    def concurrent(self, work: Work | None = None) -> bool:
        """Whether networks may run beside each other, in several threads, their calls recorded.

        They have to stay in place: one that comes and goes pushes out what another thread uses. And
        under limits there has to be room for all of it at once, which no plan of one stage after
        the other reckons with.

        Args:
            work: of the pictures; None asks whether there are any.
        """
        if not self.stays or self.terms is None or not self.terms.limits:
            return self.stays
        most = self.terms.concurrent
        return most is not None and (work is None or most.covers(work))

    @property
    def visit(self) -> Visit | None:
        """See `Stage.visit`, of the denoiser's blocks."""
        return self._stages[DENOISER].visit if self._stages else None

    def bring(self, name: str) -> None:
        """Have a network's numbers in place, and put out those that may not stay beside them.

        One that stays puts the others out as well: no plan counts on what comes and goes being
        there while somebody else computes.
        """
        if not self._stages:
            return
        self._clear(name)
        self._stages[name].bring()

    def put_out(self) -> None:
        """Put out what can be brought again; nothing where all networks are there for good."""
        for stage in self._stages.values():
            stage.release()
        if self._stages:
            backends.give_back(self.device)

    def release(self) -> None:
        """Put everything out, what is there for good as well."""
        for stage in self._stages.values():
            stage.release()
        for network in (self.networks.encoder, self.networks.denoiser, self.networks.autoencoder):
            vacate(network)
        backends.give_back(self.device)

    def _clear(self, coming: str) -> None:
        leaving = [
            stage
            for name, stage in self._stages.items()
            if name != coming and stage.there and not self.keeps(name)
        ]
        for stage in leaving:
            stage.leave()
        if leaving:
            backends.give_back(self.device)


def _stages(
    networks: Networks, sources: Mapping[str, Source], placement: Placement, loras: Loras
) -> dict[str, Stage]:
    number = parameter_dtype(getattr(torch, placement.dtype))
    encoding, drawing = placement.of(ENCODER).strategy, placement.of(DENOISER).strategy

    def reader(name: str, loras: Loras = ()) -> WeightReader:
        return WeightReader(sources[name], number, placement.of(name).strategy.device, loras=loras)

    layers = encoder_layers(networks.encoder) if encoding.residence == "streamed" else ()
    blocks = denoiser_blocks(networks.denoiser) if drawing.residence == "streamed" else ()
    return {
        ENCODER: Stage(
            networks.encoder,
            reader(ENCODER),
            streamed=layers,
            kept=encoding.kept_of(len(layers)),
        ),
        DENOISER: Stage(
            networks.denoiser,
            reader(DENOISER, loras),
            streamed=blocks,
            kept=drawing.kept_of(len(blocks)),
            folded=modulation_layers(networks.denoiser) if drawing.folded else (),
            cyclic=True,
        ),
        AUTOENCODER: Stage(networks.autoencoder, reader(AUTOENCODER)),
    }
