"""A checkpoint put together from files and folders of any format, each part from its own place."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from petzval.errors import CheckpointError
from petzval.models.experts import PACKINGS
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import AutoencoderConfig
from petzval.weights.checkpoint import Checkpoint, check_fit
from petzval.weights.component import OpenComponent, open_component
from petzval.weights.published import TOKENIZER


def assemble(
    denoiser: str | Path | OpenComponent,
    encoder: str | Path | OpenComponent,
    vae: str | Path | OpenComponent,
    tokenizer: str | Path | bytes | None = None,
    *,
    keep: Collection[str] = PACKINGS,
) -> Checkpoint:
    """Put a checkpoint together.

    Args:
        denoiser, encoder, vae: each as `open_component` takes it, or opened already.
        tokenizer: a folder, a `tokenizer.json`, its content, or a file of weights that carries
            it; None takes the one in the encoder's file, or beside it.
        keep: formats in which the encoder's experts stay packed; in others they are decoded.

    Raises:
        CheckpointError, ConfigError: as `open_component`; the parts do not fit each other, or
            there is no tokenizer.
    """
    drawing, reading, decoding = denoiser, encoder, vae
    if not isinstance(drawing, OpenComponent):
        drawing = open_component(drawing, "denoiser")
    if not isinstance(reading, OpenComponent):
        reading = open_component(reading, "encoder", keep=keep)
    if not isinstance(decoding, OpenComponent):
        decoding = open_component(decoding, "vae")
    assert isinstance(drawing.config, MMDiTConfig)
    assert isinstance(reading.config, GptOssConfig)
    assert isinstance(decoding.config, AutoencoderConfig)
    check_fit(str(drawing.path), drawing.config, reading.config, decoding.config)
    return Checkpoint(
        folder=drawing.path if drawing.path.is_dir() else drawing.path.parent,
        denoiser_config=drawing.config,
        encoder_config=reading.config,
        vae_config=decoding.config,
        denoiser_source=drawing.source,
        encoder_source=reading.source,
        vae_source=decoding.source,
        tokenizer=find_tokenizer(tokenizer, reading),
        assembled=True,
    )


def find_tokenizer(asked: str | Path | bytes | None, encoder: OpenComponent) -> Path | bytes:
    """The tokenizer that was named; else the one that came with the encoder.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(asked, bytes):
        return asked
    if asked is None:
        if encoder.tokenizer is not None:
            return encoder.tokenizer
        home = encoder.path if encoder.path.is_dir() else encoder.path.parent
        for place in (home, home / TOKENIZER, home.parent / TOKENIZER):
            if (place / "tokenizer.json").is_file():
                return place
        raise CheckpointError(
            f"{encoder.path}: holds no tokenizer, and none lies beside it",
            "name one: a folder with tokenizer.json, the file itself, or a file that carries it",
        )
    path = Path(asked)
    inside = path / TOKENIZER
    if (inside / "tokenizer.json").is_file():
        return inside
    if (path / "tokenizer.json").is_file() or (path.is_file() and path.suffix == ".json"):
        return path
    if path.is_file():
        carried = open_component(path).tokenizer
        if carried is not None:
            return carried
    raise CheckpointError(
        f"{path}: holds no tokenizer",
        "name a folder with tokenizer.json, the file itself, or an encoder's file that carries it",
    )
