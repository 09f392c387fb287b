"""A located checkpoint, opened: its folder as it is, or its parts put together."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from petzval.conditioning.vocabulary import load_ranks, tokenizer_json
from petzval.errors import CheckpointError
from petzval.inference.variants import Located
from petzval.models.experts import PACKINGS
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.sizes import LENS_GPT_OSS
from petzval.weights.assembly import assemble, find_tokenizer
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import OpenComponent, open_component
from petzval.weights.formats import Kind
from petzval.weights.unfetched import unfetched_component


def open_checkpoint(located: Located, *, keep: Collection[str] = PACKINGS) -> Checkpoint:
    """Open what `locate` found.

    Parts from elsewhere take the place of the folder's. A tokenizer that is not named comes with
    the encoder; where an encoder with GPT-OSS' own vocabulary brings none, the packaged one is
    that vocabulary's.

    Args:
        located: a folder, parts, or both; or what stands for a folder that is not here, of which
            nothing can be loaded.
        keep: formats in which experts from elsewhere stay packed; in others they are decoded.

    Raises:
        CheckpointError, ConfigError: as `Checkpoint.open` and `assemble`.
    """
    parts, base = located.parts, located.base
    if not parts and located.unfetched is None:
        return Checkpoint.open(located.folder)
    encoder = _part(located, "encoder", parts.encoder)
    reading = (
        encoder
        if isinstance(encoder, OpenComponent)
        else open_component(encoder, "encoder", keep=keep)
    )
    denoiser, vae = _part(located, "denoiser", parts.denoiser), _part(located, "vae", parts.vae)
    tokenizer = parts.tokenizer or (base / "tokenizer" if base and encoder == base else None)
    return assemble(denoiser, reading, vae, _tokenizer(tokenizer, reading, encoder))


def _part(located: Located, kind: Kind, named: Path | None) -> Path | OpenComponent:
    """Where a network comes from: what was named, the base, or what stands for it."""
    if named is not None:
        return named
    if located.base is not None:
        return located.base
    assert located.unfetched is not None
    return unfetched_component(located.unfetched, kind)


def _tokenizer(
    named: Path | None, reading: OpenComponent, encoder: Path | OpenComponent
) -> Path | bytes:
    if named is not None or encoder is not reading:
        try:
            return find_tokenizer(named, reading)
        except CheckpointError:
            assert isinstance(reading.config, GptOssConfig)
            if named is not None or reading.config.vocab_size != LENS_GPT_OSS.vocab_size:
                raise
    return _packaged_tokenizer()


@cache
def _packaged_tokenizer() -> bytes:
    """Seconds to make, for it has 446,000 merges."""
    return tokenizer_json(load_ranks()).encode()
