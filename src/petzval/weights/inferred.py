"""What a file without a config.json is: sizes from its tensors' shapes, the rest as published.

Shapes tell nearly all. What they do not tell (which layers of the encoder a denoiser reads, how
many groups a norm has, how many experts a token goes to) is taken from what stands in the file or
beside it, or from the published Lens where the sizes are those of Lens; otherwise it is refused,
because a guess would draw noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from petzval.errors import CheckpointError, ConfigError
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.models.vae import AutoencoderConfig
from petzval.models.yarn import YarnConfig
from petzval.weights.source import Source

_HINT = (
    "write the file with `petzval convert`, which stores the settings inside, or put the published "
    "config.json beside it"
)


def infer_denoiser(source: Source) -> MMDiTConfig:
    """A denoiser's settings from its tensors.

    Raises:
        CheckpointError: a tensor that tells a size is missing or of another rank.
        ConfigError: the sizes are not those of Lens, so what shapes do not tell is unknown.
    """
    head = _length(source, "transformer_blocks.0.attn.norm_q.weight")
    features = _count(source, r"txt_norm\.(\d+)\.weight")
    width = _length(source, "txt_norm.0.weight")
    known = (LENS_MMDIT.enc_hidden_dim, len(LENS_MMDIT.selected_layer_index))
    if (width, features) != known or head != LENS_MMDIT.attention_head_dim:
        raise ConfigError(
            f"{source.files[0]}: the denoiser reads {features} features of width {width}; which "
            "layers of its encoder they are is not in the file",
            _HINT,
        )
    channels = _length(source, "proj_out.bias")
    return replace(
        LENS_MMDIT,
        num_layers=_count(source, r"transformer_blocks\.(\d+)\.img_norm1\.weight"),
        num_attention_heads=_length(source, "img_in.bias") // head,
        in_channels=channels,
        out_channels=channels // LENS_MMDIT.patch_size**2,
    )


def infer_vae(source: Source) -> AutoencoderConfig:
    """An autoencoder's settings from its tensors.

    Raises:
        CheckpointError: a tensor that tells a size is missing or of another rank.
        ConfigError: the widths are not FLUX.2's, so the groups of its norms are unknown.
    """
    widths = tuple(
        _length(source, f"encoder.down_blocks.{i}.resnets.0.conv1.bias") for i in range(4)
    )
    if widths != LENS_VAE.block_out_channels:
        raise ConfigError(
            f"{source.files[0]}: the autoencoder has widths {list(widths)}, and the groups of its "
            "norms are not in the file",
            _HINT,
        )
    return replace(
        LENS_VAE,
        latent_channels=_length(source, "post_quant_conv.bias"),
        layers_per_block=_count(source, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.conv1\.bias"),
    )


def infer_encoder(source: Source, settings: Mapping[str, Any] | None = None) -> GptOssConfig:
    """A text encoder's settings from its tensors.

    Args:
        source: the tensors, in published form.
        settings: of a GGUF file.

    Raises:
        CheckpointError: a tensor that tells a size is missing or of another rank.
        ConfigError: the sizes are not those of GPT-OSS and nothing says the rest.
    """
    first = "model.layers.0"
    heads = _length(source, f"{first}.self_attn.sinks")
    head = _length(source, f"{first}.self_attn.q_proj.bias") // max(heads, 1)
    if not head:
        raise CheckpointError(
            f"{source.files[0]}: key '{first}.self_attn.q_proj.bias' is too short"
        )
    sizes: dict[str, Any] = {
        "hidden_size": _length(source, f"{first}.input_layernorm.weight"),
        "num_hidden_layers": _count(source, r"model\.layers\.(\d+)\.input_layernorm\.weight"),
        "num_attention_heads": heads,
        "num_key_value_heads": _length(source, f"{first}.self_attn.k_proj.bias") // head,
        "head_dim": head,
        "intermediate_size": _last(source, f"{first}.mlp.experts.gate_up_proj_bias") // 2,
        "num_local_experts": _length(source, f"{first}.mlp.router.bias"),
        "vocab_size": _first(source, "model.embed_tokens.weight"),
        "layer_types": (),
    }
    stated = _from_gguf(settings) if settings else {}
    if not stated and sizes["hidden_size"] != LENS_GPT_OSS.hidden_size:
        raise ConfigError(
            f"{source.files[0]}: an encoder of width {sizes['hidden_size']} is not GPT-OSS-20B; "
            "its window and the experts of a token are not in the file",
            _HINT,
        )
    return replace(LENS_GPT_OSS, **{**sizes, **stated})


def _from_gguf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp writes of GPT-OSS beside the sizes."""
    names = {
        "attention.sliding_window": ("sliding_window", int),
        "attention.layer_norm_rms_epsilon": ("rms_norm_eps", float),
        "expert_used_count": ("num_experts_per_tok", int),
    }
    found: dict[str, Any] = {}
    for name, (ours, kind) in names.items():
        value = settings.get(f"gpt-oss.{name}")
        if isinstance(value, int | float):
            # float32 in the file: 1e-5 comes back as 9.99999974e-06
            found[ours] = kind(float(f"{value:.6g}"))
    if not found:
        return {}
    default = YarnConfig()
    yarn = replace(
        default,
        theta=_number(settings, "rope.freq_base", default.theta),
        factor=_number(settings, "rope.scaling.factor", default.factor),
        original_length=int(
            _number(settings, "rope.scaling.original_context_length", default.original_length)
        ),
    )
    return {**found, "yarn": yarn}


def _number(settings: Mapping[str, Any], name: str, default: int | float) -> float:
    value = settings.get(f"gpt-oss.{name}")
    return float(value) if isinstance(value, int | float) else default


def from_openai(values: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's own config.json under the published one's names; any other is left as it is."""
    if "experts_per_token" not in values:
        return dict(values)
    renamed = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
    yarn = {
        "rope_theta": "rope_theta",
        "rope_scaling_factor": "factor",
        "rope_ntk_alpha": "beta_slow",
        "rope_ntk_beta": "beta_fast",
        "initial_context_length": "original_max_position_embeddings",
    }
    found = {renamed.get(name, name): value for name, value in values.items() if name not in yarn}
    rope = {ours: values[name] for name, ours in yarn.items() if name in values}
    return {**found, "rope_parameters": {"rope_type": "yarn", **rope}}


def _shape(source: Source, key: str, rank: int) -> tuple[int, ...]:
    info = source.infos.get(key)
    if info is None:
        raise CheckpointError(f"{source.files[0]}: key {key!r} is missing")
    if len(info.shape) != rank or 0 in info.shape:
        raise CheckpointError(f"{info.file}: key {key!r} has shape {list(info.shape)}")
    return info.shape


def _length(source: Source, key: str) -> int:
    return _shape(source, key, 1)[0]


def _first(source: Source, key: str) -> int:
    return _shape(source, key, 2)[0]


def _last(source: Source, key: str) -> int:
    return _shape(source, key, 2)[1]


def _count(source: Source, form: str) -> int:
    """One more than the largest number in names of a form."""
    pattern = re.compile(form)
    numbers = [int(match[1]) for key in source if (match := pattern.fullmatch(key)) is not None]
    return max(numbers, default=-1) + 1


def config_beside(path: Path) -> Path | None:
    """The config.json in a file's own folder, if there is one."""
    beside = (path if path.is_dir() else path.parent) / "config.json"
    return beside if beside.is_file() else None
