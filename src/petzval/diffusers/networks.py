"""The three networks as modules that diffusers can place, move, offload and save.

Each holds one of ours, unchanged, as `network`. What the pipeline calls besides `forward` asks the
offload hook first, so that the weights are where the work is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from petzval.conditioning.encoder import PromptEncoder, PromptFeatures
from petzval.conditioning.template import DEFAULT_DATE
from petzval.conditioning.tokenizer import DEFAULT_MAX_TOKENS, PromptTokenizer
from petzval.diffusers.arguments import checked_dtype, refuse_others
from petzval.errors import RequestError
from petzval.inference.decoding import decode_tokens
from petzval.inference.parity import PARITIES
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTConfig, StepModulation
from petzval.models.rope import RopeTables
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, LatentTokens, Sigmas, TextFeatures, TextTokens
from petzval.weights.checkpoint import materialise
from petzval.weights.manifest import build_on_meta, expected_tensors, find_problems, refuse
from petzval.weights.opening import open_part
from petzval.weights.published import (
    ComponentConfig,
    denoiser_config_in,
    published_json,
    vae_config_in,
)
from petzval.weights.source import FLOAT8, Source, packing_of, packings
from petzval.weights.views import without_padding
from petzval.weights.writing import Component, save_component

PathLike: TypeAlias = str | os.PathLike[str]


class LensTransformer2DModel(ModelMixin, ConfigMixin):
    """The denoiser.

    Args:
        network: ours.
    """

    config_name = "config.json"
    _no_split_modules = ["MMDiTBlock"]  # noqa: RUF012  diffusers declares it so

    def __init__(self, network: MMDiT) -> None:
        super().__init__()
        self.network = network
        self.register_to_config(**published_json(network.config))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike | None,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **others: Any,
    ) -> LensTransformer2DModel:
        """The denoiser of a folder: a checkpoint with `subfolder="transformer"`, or its own.

        Raises:
            CheckpointError, ConfigError: the files are missing, damaged or of another network.
            RequestError: any other argument, or float16, which overflows.
        """
        refuse_others(others)
        folder = Path(pretrained_model_name_or_path or "") / (subfolder or "")
        network = _load(denoiser_config_in(folder), folder, torch_dtype)
        assert isinstance(network, MMDiT)
        return cls(network)

    def save_pretrained(self, save_directory: PathLike, *args: Any, **others: Any) -> None:
        """Write config.json and safetensors, as published; what is there is replaced.

        Raises:
            CheckpointError: it cannot be written; the folder is then as it was.
            RequestError: any other argument.
        """
        _refuse(others, *args)
        save_component(Path(save_directory), Component.of(self.network), overwrite=True)

    @apply_forward_hook
    @torch.no_grad()
    def embed_text(self, features: Sequence[TextFeatures]) -> TextTokens:
        """The selected layers' features as a text stream; see `MMDiT.embed_text`."""
        return self.network.embed_text(features)

    @apply_forward_hook
    @torch.no_grad()
    def modulations(self, sigmas: Sigmas) -> list[StepModulation]:
        """What the noise levels do to every block, all steps at once."""
        return self.network.modulations(sigmas.to(self.network.img_in.weight.device))

    def forward(
        self,
        hidden_states: LatentTokens,
        encoder_hidden_states: TextTokens | None,
        modulation: StepModulation,
        rope: RopeTables,
    ) -> LatentTokens:
        """Velocity [B, S, C] of tokens [B, S, C] at one noise level; see `MMDiT.forward`."""
        return self.network(hidden_states, encoder_hidden_states, modulation, rope)


class LensAutoencoder(ModelMixin, ConfigMixin):
    """FLUX.2's autoencoder with the token statistics beside it, which stay in float32.

    Args:
        network: ours.

    Attributes:
        strip_rows: of the strips that a picture is decoded in; 0 is at once.
        one_by_one: whether the pictures of a batch are decoded one after the other.
    """

    config_name = "config.json"

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network
        self.strip_rows = 0
        self.one_by_one = False
        self.register_to_config(**published_json(network.config))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike | None,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **others: Any,
    ) -> LensAutoencoder:
        """The autoencoder of a folder: a checkpoint with `subfolder="vae"`, or its own.

        Raises:
            CheckpointError, ConfigError: the files are missing, damaged or of another network.
            RequestError: any other argument, or float16, which overflows.
        """
        refuse_others(others)
        folder = Path(pretrained_model_name_or_path or "") / (subfolder or "")
        network = _load(vae_config_in(folder), folder, torch_dtype)
        assert isinstance(network, Autoencoder)
        return cls(network)

    def save_pretrained(self, save_directory: PathLike, *args: Any, **others: Any) -> None:
        """Write config.json and safetensors, as published; what is there is replaced.

        Raises:
            CheckpointError: it cannot be written; the folder is then as it was.
            RequestError: any other argument.
        """
        _refuse(others, *args)
        save_component(Path(save_directory), Component.of(self.network), overwrite=True)

    @apply_forward_hook
    @torch.no_grad()
    def decode_tokens(self, tokens: LatentTokens, grid: tuple[int, int]) -> Images:
        """Denoised tokens [B, S, C] of a grid (height, width) → pictures, nominally in [-1, 1]."""
        tokens = tokens.to(self.network.bn.running_mean.device)
        batches = tokens.split(1 if self.one_by_one else len(tokens))
        parity, rows = PARITIES["default"], self.strip_rows
        decoded = [
            decode_tokens(self.network, each, grid, parity, strip_rows=rows) for each in batches
        ]
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded)

    def forward(self, images: Images) -> Images:
        """Encode and decode again."""
        return self.network.decode(self.network.encode(images))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LensAutoencoder:
        """Move everything, and cast all but the statistics: their rounding would be seen."""
        statistics = self.network.bn
        kept = {name: getattr(statistics, name) for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)
        for name, exact in kept.items():
            setattr(statistics, name, exact.to(getattr(statistics, name).device))
        return self


class LensGptOssEncoder(nn.Module):
    """The language model that reads prompts; its 4-bit experts stay packed.

    Args:
        network: ours.
    """

    def __init__(self, network: GptOssEncoder) -> None:
        super().__init__()
        self.network = network
        self._encoder: PromptEncoder | None = None
        self._key: tuple[object, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.network.model.embed_tokens.weight.dtype

    def forward(
        self,
        prompts: Sequence[str],
        tokenizer: PromptTokenizer,
        *,
        date: str = DEFAULT_DATE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> list[PromptFeatures]:
        """Features of each prompt; the template's prefix and recent prompts are kept.

        Raises:
            RequestError: a setting is out of range.
            CheckpointError: the tokenizer is of another checkpoint.
        """
        key = (id(tokenizer), self.device, self.dtype)
        if self._encoder is None or key != self._key:
            # What is kept lies on the device where it was computed.
            self._encoder = PromptEncoder(self.network, tokenizer, checkpoint_id="")
            self._key = key
        return self._encoder.encode(prompts, date=date, max_tokens=max_tokens)


def _refuse(others: Mapping[str, Any], *args: Any) -> None:
    """What diffusers takes besides, and would change what is read or written.

    Raises:
        RequestError: naming the first; `safe_serialization=True` goes without saying.
    """
    names = [name for name in others if others[name] is not True or name != "safe_serialization"]
    if names or args:
        raise RequestError(f"the argument {(names or list(args))[0]!r:.40} is not known here")


def _load(config: ComponentConfig, folder: Path, dtype: torch.dtype | None) -> Any:
    """One network from its own folder, checked first; None is the type that is stored.

    Raises:
        RequestError: the dtype cannot hold it.
    """
    number = None if dtype is None else checked_dtype(dtype)
    kind = "denoiser" if isinstance(config, MMDiTConfig) else "vae"
    wanted = expected_tensors(config)
    source = without_padding(open_part(folder, kind), wanted)
    refuse(find_problems(source, wanted))
    module = build_on_meta(config)
    materialise(module, source, _one_type(source) if number is None else number, "cpu")
    return module


def _one_type(source: Source) -> torch.dtype | None:
    """What the numbers of a network become where nobody says; None leaves them as they are.

    float16 is a way to store these networks and none to run them, and a quantised file has matrices
    of one type beside vectors of another.
    """
    infos = source.infos.values()
    plain = {info.dtype for info in infos if not packing_of(info)} - {"I64"}
    if not packings(source) and plain <= {"F32", "BF16"}:
        return None
    return torch.bfloat16 if plain - FLOAT8.keys() == {"BF16"} else torch.float32
