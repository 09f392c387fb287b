"""A denoiser whose blocks' matrices stay in the codes of their file: the network, and its numbers.

Modulation, input and output layers are decoded when they are read, like everything that is not
quantised: modulation is evaluated once for a schedule and may be folded away, the others are small.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from petzval.models.coded import CodedLinear, part_name
from petzval.models.mmdit import MMDiT
from petzval.models.quantised import block_linears, has_bias
from petzval.weights.source import DerivedSource, Source, StoredCodes, derived, stored_codes


def coded_layers(
    denoiser: MMDiT, source: Source, without: Collection[str] = ()
) -> dict[str, tuple[StoredCodes, ...]]:
    """The blocks' matrices that their file keeps in codes, by the name of the layer.

    Args:
        denoiser: of the published form.
        source: under published names.
        without: layers that are left out: a LoRA is added to their decoded weights.
    """
    names = (name for name, _ in block_linears(denoiser) if name not in without)
    found = {name: stored_codes(source, f"{name}.weight") for name in names}
    return {name: codes for name, codes in found.items() if codes}


def keep_codes(denoiser: MMDiT, source: Source, without: Collection[str] = ()) -> Source:
    """Replace layers of a denoiser on the meta device, and give the source of its numbers.

    See `coded_layers`. A source without codes is given back as it is, and so is the denoiser.
    """
    kept = coded_layers(denoiser, source, without)
    if not kept:
        return source
    for name, old in block_linears(denoiser):
        if name in kept:
            pieces = [codes.form for codes in kept[name]]
            with torch.device("meta"):
                coded = CodedLinear(
                    old.in_features, old.out_features, bias=has_bias(old), pieces=pieces
                )
            denoiser.set_submodule(name, coded)
    gone = {f"{name}.weight" for name in kept}
    tensors = [derived(source, key) for key in source if key not in gone]
    for name, pieces in kept.items():
        for index, codes in enumerate(pieces):
            tensors += [
                replace(part, key=f"{name}.{part_name(part.key, index)}") for part in codes.tensors
            ]
    return DerivedSource(source, tensors)
