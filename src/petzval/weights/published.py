"""The published config files ⇄ our configurations.

The files hold more than decides the arithmetic. What is known and harmless is passed over, what
would change the arithmetic must have the one value that is implemented, and an unknown name is
refused: it might be a setting that this version would silently get wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from petzval.config import from_mapping, read_json, to_mapping
from petzval.errors import CheckpointError, ConfigError
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import AutoencoderConfig
from petzval.weights.foreign_formats import refuse_foreign_settings

ComponentConfig = MMDiTConfig | GptOssConfig | AutoencoderConfig

DENOISER, ENCODER, VAE = "transformer", "text_encoder", "vae"
"""Folders of the three networks."""

TOKENIZER, SCHEDULER = "tokenizer", "scheduler"

_CONFIG_LIMIT_BYTES = 1 << 20

_VAE_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "mid_block_add_attention": True,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_DENOISER_IGNORED = ("mlx_format", "quantization", "quantization_config")
"""Who wrote the file; and the formats, which are refused where they are any."""

_VAE_IGNORED = (*_DENOISER_IGNORED[1:], "batch_norm_momentum", "force_upcast", "sample_size")

_SCHEDULER_FIXED: Mapping[str, Any] = {
    "invert_sigmas": False,
    "num_train_timesteps": 1000,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}

MODEL_INDEX: Mapping[str, Any] = {
    "_class_name": "LensPipeline",
    "_diffusers_version": "0.37.1",
    SCHEDULER: ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    VAE: ["diffusers", "AutoencoderKLFlux2"],
    ENCODER: ["transformers", "LensGptOssEncoder"],
    TOKENIZER: ["transformers", "PreTrainedTokenizerFast"],
    DENOISER: ["diffusers", "LensTransformer2DModel"],
}
"""`model_index.json`, as published."""

SCHEDULER_CONFIG: Mapping[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.37.1",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "shift": 3.0,
    **_SCHEDULER_FIXED,
}
"""`scheduler/scheduler_config.json`, as published. The shifts in it are not used: mu is passed."""


def read_denoiser_config(folder: Path) -> MMDiTConfig:
    """`transformer/config.json` of a checkpoint folder.

    Raises:
        ConfigError: absent, damaged, or a setting is unknown or out of range.
    """
    return denoiser_config_in(folder / DENOISER)


def denoiser_config_in(component: Path) -> MMDiTConfig:
    """`config.json` of a denoiser's own folder.

    Raises:
        ConfigError: as `read_denoiser_config`.
    """
    return denoiser_config_from(*read_settings_file(component / "config.json"))


def read_vae_config(folder: Path) -> AutoencoderConfig:
    """`vae/config.json` of a checkpoint folder.

    Raises:
        ConfigError: as `read_denoiser_config`, or another kind of autoencoder.
    """
    return vae_config_in(folder / VAE)


def vae_config_in(component: Path) -> AutoencoderConfig:
    """`config.json` of an autoencoder's own folder.

    Raises:
        ConfigError: as `read_vae_config`.
    """
    return vae_config_from(*read_settings_file(component / "config.json"))


def denoiser_config_from(values: Mapping[str, Any], where: str) -> MMDiTConfig:
    """A denoiser's published settings, wherever they were written.

    Raises:
        ConfigError: a setting is unknown or out of range.
        CheckpointError: the weights are in a format that is not read.
    """
    refuse_foreign_settings(values, where)
    own = {k: v for k, v in _without_private(values).items() if k not in _DENOISER_IGNORED}
    return from_mapping(MMDiTConfig, own, where=where)


def vae_config_from(values: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """An autoencoder's published settings, wherever they were written.

    Raises:
        ConfigError: a setting is unknown or out of range, or of another kind of autoencoder.
        CheckpointError: the weights are in a format that is not read.
    """
    refuse_foreign_settings(values, where)
    _require(values, _VAE_FIXED, where)
    skipped = (*_VAE_FIXED, *_VAE_IGNORED)
    own = {k: v for k, v in _without_private(values).items() if k not in skipped}
    return from_mapping(AutoencoderConfig, own, where=where)


def read_encoder_config(folder: Path) -> GptOssConfig:
    """`text_encoder/config.json` of a checkpoint folder.

    Raises:
        ConfigError: as `encoder_config_in`.
    """
    return encoder_config_in(folder / ENCODER)


def encoder_config_in(component: Path) -> GptOssConfig:
    """`config.json` of a text encoder's own folder.

    Names beyond our own are passed over: transformers writes every default of its time there.

    Raises:
        ConfigError: absent, damaged, of another model, or a setting is out of range.
    """
    return encoder_config_from(*read_settings_file(component / "config.json"))


def encoder_config_from(values: Mapping[str, Any], where: str) -> GptOssConfig:
    """A text encoder's published settings, wherever they were written.

    Raises:
        ConfigError: of another model, or a setting is out of range.
    """
    if values.get("model_type", "gpt_oss") != "gpt_oss":
        raise ConfigError(
            f"{where}: model_type is {values['model_type']!r}, expected 'gpt_oss'",
            "Lens reads its prompts with GPT-OSS",
        )
    try:
        return GptOssConfig.from_json(_without_mlx(values))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.hint) from error


def _without_mlx(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """MLX writes the widths of its codes twice, once under the name that others use for theirs."""
    if not isinstance(values.get("quantization"), dict):
        return values
    said: Any = values.get("quantization_config")
    if isinstance(said, dict) and "quant_method" in said:
        return values
    return {name: value for name, value in values.items() if name != "quantization_config"}


def check_model_index(folder: Path) -> None:
    """`model_index.json` may be absent; where it is there, it must say that this is Lens.

    Raises:
        CheckpointError: it says something else.
        ConfigError: it is no JSON object.
    """
    path = folder / "model_index.json"
    if not path.exists():
        return
    values, where = read_settings_file(path)
    name = values.get("_class_name")
    if name != MODEL_INDEX["_class_name"]:
        raise CheckpointError(
            f"{where}: this is a checkpoint of {name!r}, expected {MODEL_INDEX['_class_name']!r}"
        )


def check_scheduler(folder: Path) -> None:
    """`scheduler_config.json` may be absent; where it is there, it must be the published kind.

    Raises:
        ConfigError: it is another, or no JSON object.
    """
    path = folder / SCHEDULER / "scheduler_config.json"
    if path.exists():
        values, where = read_settings_file(path)
        _require(values, _SCHEDULER_FIXED, where)


def check_tokenizer(folder: Path) -> None:
    """The tokenizer's file must be there; what is in it is read with the prompts.

    Raises:
        CheckpointError: it is missing.
    """
    if not (folder / TOKENIZER / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder / TOKENIZER}: tokenizer.json is missing")


def read_settings_file(path: Path) -> tuple[dict[str, Any], str]:
    """The settings in a JSON file, and where they stand, for messages.

    Raises:
        ConfigError: absent, damaged, or no object.
    """
    values = read_json(path, limit_bytes=_CONFIG_LIMIT_BYTES)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected an object with settings")
    return cast("dict[str, Any]", values), str(path)


def component_folder(config: ComponentConfig) -> str:
    """Which folder of a checkpoint a component lies in."""
    if isinstance(config, MMDiTConfig):
        return DENOISER
    return ENCODER if isinstance(config, GptOssConfig) else VAE


def file_stem(config: ComponentConfig) -> str:
    """How the component's safetensors files are called."""
    return "model" if isinstance(config, GptOssConfig) else "diffusion_pytorch_model"


def published_json(config: ComponentConfig) -> dict[str, Any]:
    """A configuration as its published file holds it; reading it gives an equal configuration."""
    if isinstance(config, GptOssConfig):
        return _encoder_json(config)
    values = {k: v for k, v in to_mapping(config).items() if v is not None}
    name = MODEL_INDEX[component_folder(config)][1]
    header = {"_class_name": name, "_diffusers_version": MODEL_INDEX["_diffusers_version"]}
    if isinstance(config, MMDiTConfig):
        return {**header, **dict(sorted({**values, "inner_dim": config.hidden_size}.items()))}
    return {**header, **dict(sorted({**values, **_VAE_FIXED}.items()))}


def _encoder_json(config: GptOssConfig) -> dict[str, Any]:
    values = to_mapping(config)
    yarn = values.pop("yarn")
    packed = values.pop("packed_experts")
    if values.pop("packing") != "mxfp4" and packed:
        raise ValueError("the published layout has no NVFP4 experts; decode them first")
    values |= {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "hidden_act": "silu",
        "initial_context_length": yarn["original_length"],
        "model_type": "gpt_oss",
        "rope_parameters": {
            "beta_fast": yarn["beta_fast"],
            "beta_slow": yarn["beta_slow"],
            "factor": yarn["factor"],
            "original_max_position_embeddings": yarn["original_length"],
            "rope_theta": yarn["theta"],
            "rope_type": "yarn",
            "truncate": yarn["truncate"],
        },
        "tie_word_embeddings": False,
    }
    if packed:
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
        kept.append("lm_head")
        values["quantization_config"] = {"modules_to_not_convert": kept, "quant_method": "mxfp4"}
    return dict(sorted(values.items()))


def _without_private(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names that begin with an underscore say who wrote the file."""
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _require(values: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for name, expected in fixed.items():
        if values.get(name, expected) != expected:
            raise ConfigError(
                f"{where}: setting {name!r} is {values[name]!r}; Lens has {expected!r}",
                "no published checkpoint differs here; take the file that came with the weights",
            )
