"""A located checkpoint, opened: its folder as it is, or its parts put together."""

from __future__ import annotations

from collections.abc import Collection

from petzval.conditioning.vocabulary import load_ranks, tokenizer_json
from petzval.errors import CheckpointError
from petzval.inference.variants import Located
from petzval.models.experts import PACKINGS
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.sizes import LENS_GPT_OSS
from petzval.weights.assembly import assemble, find_tokenizer
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import open_component


def open_checkpoint(located: Located, *, keep: Collection[str] = PACKINGS) -> Checkpoint:
    """Open what `locate` found.

    Parts from elsewhere take the place of the folder's. A tokenizer that is not named comes with
    the encoder; where an encoder with GPT-OSS' own vocabulary brings none, the packaged one is
    that vocabulary's.

    Args:
        located: a folder, parts, or both.
        keep: formats in which experts from elsewhere stay packed; in others they are decoded.

    Raises:
        CheckpointError, ConfigError: as `Checkpoint.open` and `assemble`.
    """
    parts, base = located.parts, located.base
    if not parts:
        return Checkpoint.open(located.folder)
    denoiser, encoder, vae = parts.denoiser or base, parts.encoder or base, parts.vae or base
    assert denoiser is not None
    assert encoder is not None
    assert vae is not None
    reading = open_component(encoder, "encoder", keep=keep)
    tokenizer = parts.tokenizer or (base / "tokenizer" if base and encoder == base else None)
    try:
        found = find_tokenizer(tokenizer, reading)
    except CheckpointError:
        assert isinstance(reading.config, GptOssConfig)
        if tokenizer is not None or reading.config.vocab_size != LENS_GPT_OSS.vocab_size:
            raise
        found = tokenizer_json(load_ranks()).encode()
    return assemble(denoiser, reading, vae, found)
