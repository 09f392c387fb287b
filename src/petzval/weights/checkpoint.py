"""A checkpoint folder: checked whole before a number is read, then loaded part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from petzval.errors import CheckpointError, ConfigError
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT
from petzval.models.vae import Autoencoder, AutoencoderConfig
from petzval.weights.component import match_packing
from petzval.weights.kept_codes import keep_codes
from petzval.weights.lora import Lora, changed_layers, changed_weight
from petzval.weights.manifest import build_on_meta, expected_tensors, find_problems, refuse
from petzval.weights.opening import open_part
from petzval.weights.published import (
    DENOISER,
    ENCODER,
    TOKENIZER,
    VAE,
    ComponentConfig,
    check_model_index,
    check_scheduler,
    check_tokenizer,
    encoder_config_in,
    published_json,
    read_denoiser_config,
    read_encoder_config,
    read_vae_config,
)
from petzval.weights.source import Source
from petzval.weights.views import without_padding


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint, open but not read: a published folder, or parts from anywhere.

    Attributes:
        folder: where it lies; for parts from several places, the denoiser's.
        denoiser_config, encoder_config, vae_config: checked, and they fit each other.
        denoiser_source, encoder_source, vae_source: the tensors, checked against the configs.
        tokenizer: folder or file of `tokenizer.json`, or its content where it lies in another file.
        assembled: whether the parts come from several places.
    """

    folder: Path
    denoiser_config: MMDiTConfig
    encoder_config: GptOssConfig
    vae_config: AutoencoderConfig
    denoiser_source: Source
    encoder_source: Source
    vae_source: Source
    tokenizer: Path | bytes
    assembled: bool = False

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Open a folder and check every config, key, shape and dtype in it.

        Raises:
            CheckpointError: naming file and key: anything missing, extra, misshapen, of a wrong
                dtype, truncated, or not safetensors.
            ConfigError: naming file and setting.
        """
        folder = Path(folder)
        if not folder.is_dir():
            kind = "a file, not a folder" if folder.exists() else "absent"
            raise CheckpointError(
                f"{folder}: expected a checkpoint folder, but it is {kind}",
                f"it should hold {DENOISER}/, {ENCODER}/, {VAE}/ and {TOKENIZER}/",
            )
        for name in (DENOISER, ENCODER, VAE, TOKENIZER):
            if not (folder / name).is_dir():
                raise CheckpointError(
                    f"{folder}: the folder {name}/ is missing",
                    f"a checkpoint holds {DENOISER}/, {ENCODER}/, {VAE}/ and {TOKENIZER}/",
                )
        check_tokenizer(folder)
        check_model_index(folder)
        check_scheduler(folder)
        denoiser_config, vae_config = read_denoiser_config(folder), read_vae_config(folder)
        denoiser_source = open_part(folder / DENOISER, "denoiser")
        encoder_source = open_part(folder / ENCODER, "encoder")
        encoder_config = match_packing(read_encoder_config(folder), encoder_source)
        vae_source = open_part(folder / VAE, "vae")
        place = str(folder / DENOISER / "config.json")
        check_fit(place, denoiser_config, encoder_config, vae_config)
        denoiser_source, problems = _compared(denoiser_source, denoiser_config)
        encoder_source, others = _compared(encoder_source, encoder_config)
        vae_source, last = _compared(vae_source, vae_config)
        refuse(problems + others + last)
        return cls(
            folder=folder,
            denoiser_config=denoiser_config,
            encoder_config=encoder_config,
            vae_config=vae_config,
            denoiser_source=denoiser_source,
            encoder_source=encoder_source,
            vae_source=vae_source,
            tokenizer=folder / TOKENIZER,
        )

    def load_denoiser(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        loras: Sequence[tuple[Lora, float]] = (),
        coded: bool = False,
    ) -> MMDiT:
        """The denoiser in `dtype` (None: as stored) on `device`; its weights take no gradient.

        Args:
            dtype: None keeps what is stored.
            device: where the weights go.
            loras: added to this denoiser's weights, each times its number; in float32, from the
                weights as stored, so that nothing is rounded twice.
            coded: keep quantised matrices of the blocks as the file has them and decode them at
                each call, where no LoRA changes them. The results are the same, bit for bit.

        Raises:
            CheckpointError: a weight stops being finite.
        """
        module = build_on_meta(self.denoiser_config)
        assert isinstance(module, MMDiT)
        source = self.denoiser_source
        if coded:
            source = keep_codes(module, source, without=changed_layers(loras))
        materialise(module, source, dtype, device)
        add_loras(module, self.denoiser_source, loras)
        return module

    def load_encoder(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        all_layers: bool = False,
    ) -> GptOssEncoder:
        """The text encoder, giving the layers that the denoiser was trained on.

        MXFP4 experts stay packed; `dtype` is that of everything else and of the arithmetic.

        Args:
            dtype: None keeps what is stored.
            device: where the weights go.
            all_layers: also load the layers behind the last selected one.

        Raises:
            CheckpointError: a tensor cannot be read any more.
        """
        selected = self.denoiser_config.selected_layer_index
        return load_encoder(
            self.encoder_config, self.encoder_source, selected, dtype, device, all_layers=all_layers
        )

    def load_vae(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Autoencoder:
        """The autoencoder; its token statistics are kept in float32 whatever `dtype` is.

        Raises:
            CheckpointError: a tensor cannot be read any more.
        """
        module = build_on_meta(self.vae_config)
        assert isinstance(module, Autoencoder)
        materialise(module, self.vae_source, dtype, device)
        return module

    @property
    def tokenizer_folder(self) -> Path:
        """The folder in which `tokenizer.json` lies.

        Raises:
            CheckpointError: it lies inside another file.
        """
        if isinstance(self.tokenizer, bytes):
            raise CheckpointError(
                f"{self.folder}: the tokenizer lies inside the encoder's file",
                "make a folder of this checkpoint first: `petzval convert … --to folder`",
            )
        return self.tokenizer if self.tokenizer.is_dir() else self.tokenizer.parent

    @property
    def tokenizer_json(self) -> bytes:
        """The content of `tokenizer.json`."""
        if isinstance(self.tokenizer, bytes):
            return self.tokenizer
        inside = self.tokenizer / "tokenizer.json"
        return (inside if self.tokenizer.is_dir() else self.tokenizer).read_bytes()

    @property
    def places(self) -> tuple[str, ...]:
        """What to name where its numbers are doubted: its folder, or each part's file or folder."""
        if not self.assembled:
            return (str(self.folder),)
        sources = (self.denoiser_source, self.encoder_source, self.vae_source)
        return tuple(dict.fromkeys(_place(source) for source in sources))

    @property
    def encoder_place(self) -> str:
        """What to name where the text encoder's numbers alone are doubted."""
        return _place(self.encoder_source)

    @property
    def identity(self) -> str:
        """SHA-256 that names this checkpoint: configs, tokenizer, headers, samples of the numbers.

        Cheap (no more than a few hundred kilobytes are read), and it changes with training.
        """
        hasher = hashlib.sha256()
        if self.assembled:
            for config in (self.denoiser_config, self.encoder_config, self.vae_config):
                hasher.update(_config_bytes(config))
        else:
            for name in (DENOISER, ENCODER, VAE):
                hasher.update((self.folder / name / "config.json").read_bytes())
        hasher.update(self.tokenizer_json)
        for source in (self.denoiser_source, self.encoder_source, self.vae_source):
            hasher.update(source.digest().encode())
        return hasher.hexdigest()


def open_encoder(component: str | Path) -> tuple[GptOssConfig, Source]:
    """A text encoder's own folder (config.json and weights), checked like a whole checkpoint.

    Raises:
        CheckpointError: no folder, or files that are missing, damaged or do not fit its config.
        ConfigError: config.json is damaged or asks for another architecture.
    """
    component = Path(component)
    if not component.is_dir():
        raise CheckpointError(f"{component}: expected a text encoder's folder")
    source = open_part(component, "encoder")
    config = match_packing(encoder_config_in(component), source)
    source, problems = _compared(source, config)
    refuse(problems)
    return config, source


def load_encoder(
    config: GptOssConfig,
    source: Source,
    selected_layers: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    all_layers: bool = False,
) -> GptOssEncoder:
    """A text encoder from its tensors; see `Checkpoint.load_encoder`.

    Raises:
        CheckpointError: a tensor cannot be read any more.
        ConfigError: a selected layer does not exist.
    """
    module = build_on_meta(config, () if all_layers else selected_layers)
    assert isinstance(module, GptOssEncoder)
    module.selected_layers = tuple(selected_layers)
    materialise(module, source, dtype, device)
    return module


def _compared(source: Source, config: ComponentConfig) -> tuple[Source, list[str]]:
    """A part as its architecture wants it, and every difference that is left."""
    wanted = expected_tensors(config)
    source = without_padding(source, wanted)
    return source, find_problems(source, wanted)


def _config_bytes(config: ComponentConfig) -> bytes:
    """The same for the same settings, wherever they were read."""
    if isinstance(config, GptOssConfig):  # how experts are stored is told by the tensors
        config = replace(config, packed_experts=False, packing="mxfp4")
    return json.dumps(published_json(config), sort_keys=True).encode()


def materialise(
    module: nn.Module,
    source: Source,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Give a network on the meta device its numbers, one tensor at a time.

    Parameters get `dtype`; buffers keep integers as they are and take floats as float32.

    Raises:
        CheckpointError: a tensor cannot be read any more.
    """
    for prefix, owner in module.named_modules():
        place = f"{prefix}." if prefix else ""
        for name, _ in list(owner.named_parameters(recurse=False)):
            tensor = source.read(place + name, dtype, device)
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        for name, _ in list(owner.named_buffers(recurse=False)):
            owner.register_buffer(name, source.read(place + name, torch.float32, device))
    source.close()
    module.eval()


def add_loras(module: nn.Module, source: Source, loras: Sequence[tuple[Lora, float]]) -> None:
    """Replace the weights of the layers that LoRAs change: stored + sum of number * change.

    Weights are new tensors, never written over: the old ones may be the file itself.

    Raises:
        CheckpointError: a weight stops being finite.
    """
    used = [(lora, number) for lora, number in loras if number != 0]
    for layer in sorted({layer for lora, _ in used for layer in lora.changes}):
        owner = module.get_submodule(layer)
        old: Tensor = owner.get_parameter("weight")
        stored = source.read(f"{layer}.weight", torch.float32, old.device)
        weight = changed_weight(layer, stored, used, old.dtype)
        owner.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    source.close()


def _is_another_gpt_oss(denoiser: MMDiTConfig, encoder: GptOssConfig) -> bool:
    """Whether a published denoiser is given an encoder that is as wide as its own, but another."""
    published = (LENS_MMDIT.enc_hidden_dim, LENS_MMDIT.selected_layer_index)
    if (denoiser.enc_hidden_dim, denoiser.selected_layer_index) != published:
        return False
    theirs = (encoder.num_hidden_layers, encoder.num_local_experts)
    return theirs != (LENS_GPT_OSS.num_hidden_layers, LENS_GPT_OSS.num_local_experts)


def check_fit(
    place: str, denoiser: MMDiTConfig, encoder: GptOssConfig, vae: AutoencoderConfig
) -> None:
    """The three configs must speak of the same widths.

    Args:
        place: where the denoiser's stand, for messages.

    Raises:
        ConfigError: they do not; the message names both numbers.
    """
    if denoiser.enc_hidden_dim != encoder.hidden_size:
        raise ConfigError(
            f"{place}: enc_hidden_dim is {denoiser.enc_hidden_dim}, but the text encoder's "
            f"hidden_size is {encoder.hidden_size}"
        )
    if _is_another_gpt_oss(denoiser, encoder):
        raise ConfigError(
            f"{place}: this denoiser reads GPT-OSS-20B, with its {LENS_GPT_OSS.num_hidden_layers} "
            f"layers; the text encoder has {encoder.num_hidden_layers} and would say nothing to it",
            "take gpt-oss-20b: `petzval pull gpt-oss-20b`",
        )
    if max(denoiser.selected_layer_index) >= encoder.num_hidden_layers:
        raise ConfigError(
            f"{place}: selected_layer_index {list(denoiser.selected_layer_index)} goes beyond the "
            f"text encoder's {encoder.num_hidden_layers} layers"
        )
    if denoiser.in_channels != 4 * vae.latent_channels:
        raise ConfigError(
            f"{place}: in_channels is {denoiser.in_channels}, expected 4 x the vae's "
            f"latent_channels ({vae.latent_channels})"
        )


def _place(source: Source) -> str:
    """A component's folder, or its file where that lies by itself."""
    file, home = source.files[0], source.files[0].parent
    alone = len(source.files) == 1 and not (home / "config.json").is_file()
    return str(file if alone else home)
