"""The text encoder: GPT-OSS as a source of hidden states.

The residual stream after chosen decoder layers is the feature; the final norm and the head are not
built, and layers behind the last chosen one are not run. The template's 97 prefix tokens never
change, so their keys and values can be computed once (`encode_prefix`) and reused by every prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from petzval.config import check_ranges, from_mapping, setting
from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.kernels.reference import rotate_half
from petzval.models.experts import PACKINGS, MixtureOfExperts
from petzval.models.yarn import YarnConfig, yarn_from_json, yarn_tables
from petzval.shapes import TextFeatures, TokenIds, TokenMask

LAYER_KINDS = ("sliding_attention", "full_attention")


@dataclass(frozen=True, kw_only=True, slots=True)
class GptOssConfig:
    """The fields of `text_encoder/config.json` that decide the arithmetic.

    Layer i is sliding for even i and full for odd i unless `layer_types` says otherwise. Experts
    are packed in MXFP4, as published, or in NVFP4, as ComfyUI's file has them. The upper
    limits are there because anybody may have written the file; they lie far above published sizes.

    Raises:
        ConfigError: a value out of range, or values that contradict each other.
    """

    hidden_size: int = setting(minimum=1, maximum=131_072)
    num_hidden_layers: int = setting(minimum=1, maximum=1024)
    num_attention_heads: int = setting(minimum=1, maximum=4096)
    num_key_value_heads: int = setting(minimum=1, maximum=4096)
    head_dim: int = setting(minimum=1, maximum=4096)
    intermediate_size: int = setting(minimum=1, maximum=1_048_576)
    num_local_experts: int = setting(minimum=1, maximum=4096)
    num_experts_per_tok: int = setting(minimum=1, maximum=4096)
    vocab_size: int = setting(minimum=1, maximum=16_777_216)
    sliding_window: int = setting(128, minimum=1, maximum=1 << 31)
    rms_norm_eps: float = setting(1e-5, minimum=0.0)
    swiglu_limit: float = setting(7.0, minimum=0.0)
    layer_types: tuple[str, ...] = ()
    yarn: YarnConfig = field(default_factory=YarnConfig)
    packed_experts: bool = False
    packing: str = "mxfp4"

    def __post_init__(self) -> None:
        check_ranges(self, where="text encoder")
        if not self.layer_types:
            types = tuple(LAYER_KINDS[i % 2] for i in range(self.num_hidden_layers))
            object.__setattr__(self, "layer_types", types)
        for kind in self.layer_types:
            if kind not in LAYER_KINDS:
                raise ConfigError(
                    f"text encoder: layer type {kind!r} is unknown", f"types: {LAYER_KINDS}"
                )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"text encoder: {len(self.layer_types)} layer_types for "
                f"{self.num_hidden_layers} layers"
            )
        if self.num_experts_per_tok > self.num_local_experts:
            raise ConfigError("text encoder: more experts per token than there are experts")
        if self.head_dim % 2:
            raise ConfigError("text encoder: head_dim must be even")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError("text encoder: query heads must be a multiple of key/value heads")
        if self.packing not in PACKINGS:
            raise ConfigError(
                f"text encoder: packing {self.packing!r} is unknown", f"packings: {PACKINGS}"
            )
        block = 32 if self.packing == "mxfp4" else 16
        if self.packed_experts and (self.hidden_size % block or self.intermediate_size % block):
            raise ConfigError(
                f"text encoder: {self.packing.upper()} needs widths that are multiples of {block}"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> GptOssConfig:
        """Read the published config; entries that do not decide the arithmetic are ignored.

        Raises:
            ConfigError: an entry is of the wrong kind or out of range, or asks for arithmetic that
                GPT-OSS does not have.
        """
        where = "text encoder"
        own = {field.name for field in fields(cls)} - {"yarn", "packed_experts", "packing"}
        given = {name: config[name] for name in own if config.get(name) is not None}
        parsed = from_mapping(cls, given, where=where)
        for name, value in (("hidden_act", "silu"), ("attention_bias", True)):
            if config.get(name, value) != value:
                raise ConfigError(f"{where}: setting {name!r} must be {value!r} in GPT-OSS")
        quantisation: Any = config.get("quantization_config") or {}
        method: Any = None
        if quantisation:
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else ""
            if method != "mxfp4":
                raise ConfigError(
                    f"{where}: quant_method {method!r} is unknown", "use bf16 or mxfp4 weights"
                )
        return replace(parsed, yarn=yarn_from_json(config), packed_experts=method == "mxfp4")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixCache:
    """Keys and values [1, kv_heads, prefix, head_dim] of every layer that is run."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Number of prefix tokens."""
        return self.keys[0].shape[2]


class WeightedNorm(nn.Module):
    """RMSNorm with the weight applied in float32; key `weight`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return dispatch.rms_norm_float32_weight(x, self.weight, self.eps)


class SinkAttention(nn.Module):
    """Grouped-query attention with a learned sink per head and rotary positions."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner = config.num_attention_heads * config.head_dim
        kv_inner = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner)
        self.k_proj = nn.Linear(config.hidden_size, kv_inner)
        self.v_proj = nn.Linear(config.hidden_size, kv_inner)
        self.o_proj = nn.Linear(inner, config.hidden_size)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        allowed: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the output and this call's keys and values (without the past ones)."""
        query = rotate_half(self._heads(self.q_proj(x)), *tables)
        key = rotate_half(self._heads(self.k_proj(x)), *tables)
        value = self._heads(self.v_proj(x))
        all_keys, all_values = key, value
        if past is not None:
            batch = x.shape[0]
            all_keys = torch.cat((past[0].expand(batch, -1, -1, -1), key), dim=2)
            all_values = torch.cat((past[1].expand(batch, -1, -1, -1), value), dim=2)
        out = dispatch.sink_attention(query, all_keys, all_values, self.sinks, allowed)
        return self.o_proj(out.transpose(1, 2).flatten(2)), key, value


class DecoderLayer(nn.Module):
    """Attention and mixture of experts, each behind a norm, each added to the stream."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.self_attn = SinkAttention(config)
        self.mlp = MixtureOfExperts(
            width=config.hidden_size,
            intermediate=config.intermediate_size,
            num_experts=config.num_local_experts,
            num_chosen=config.num_experts_per_tok,
            limit=config.swiglu_limit,
            packing=config.packing if config.packed_experts else None,
        )
        self.input_layernorm = WeightedNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = WeightedNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        allowed: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The stream one layer further, and this call's keys and values."""
        attended, key, value = self.self_attn(self.input_layernorm(x), tables, allowed, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class GptOssBody(nn.Module):
    """The published `model.` level: embedding and layers (no final norm, no head)."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])


def allowed_keys(
    num_queries: int, num_past: int, window: int | None, mask: Tensor | None, device: torch.device
) -> Tensor:
    """[B or 1, queries, past + queries], True where query i may look at key j.

    j <= i; key j real; and for sliding layers j > i - window (window keys including itself).
    """
    queries = torch.arange(num_past, num_past + num_queries, device=device)[:, None]
    keys = torch.arange(num_past + num_queries, device=device)[None, :]
    allowed = keys <= queries
    if window is not None:
        allowed = allowed & (keys > queries - window)
    allowed = allowed[None]
    if mask is not None:
        real = torch.cat((mask.new_ones(mask.shape[0], num_past), mask), dim=1)
        allowed = allowed & real[:, None, :]
    return allowed


class GptOssEncoder(nn.Module):
    """Token ids → hidden states after the selected layers.

    Args:
        config: sizes; `packed_experts` and `packing` choose how experts are stored.
        selected_layers: zero-based; layers after the largest are neither built nor run unless
            `build_all` (training the language model, or checking whole checkpoints).

    Raises:
        ConfigError: a selected layer does not exist, or none is selected.
    """

    def __init__(
        self, config: GptOssConfig, selected_layers: Sequence[int], *, build_all: bool = True
    ) -> None:
        super().__init__()
        if not selected_layers or not all(
            0 <= layer < config.num_hidden_layers for layer in selected_layers
        ):
            raise ConfigError(
                f"selected_layer_index {tuple(selected_layers)} must name layers "
                f"0 to {config.num_hidden_layers - 1}"
            )
        self.config = config
        self.selected_layers = tuple(selected_layers)
        self.model = GptOssBody(config)
        if not build_all:
            del self.model.layers[max(selected_layers) + 1 :]

    def encode_prefix(self, input_ids: TokenIds) -> PrefixCache:
        """Keys and values of a prefix [1, P] that stands before every prompt."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        self._run(input_ids, None, None, keys, values)
        return PrefixCache(keys=tuple(keys), values=tuple(values))

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        prefix: PrefixCache | None = None,
    ) -> list[TextFeatures]:
        """Features [B, T, width] of each selected layer, for the tokens given (not the prefix's).

        Args:
            input_ids: [B, T]; with `prefix`, the tokens that follow it.
            attention_mask: [B, T], True where real (right padding); None when nothing is padded.
                Rows of padded tokens are meaningless.
        """
        return self._run(input_ids, attention_mask, prefix, None, None)

    def _run(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        prefix: PrefixCache | None,
        keys: list[Tensor] | None,
        values: list[Tensor] | None,
    ) -> list[Tensor]:
        x = self.model.embed_tokens(input_ids)
        num_past = 0 if prefix is None else prefix.length
        tables = yarn_tables(self.config.yarn, self.config.head_dim, num_past, x.shape[1])
        tables = (tables[0].to(x.device), tables[1].to(x.device))
        mask = None if mask is None else mask.bool()
        windows = {"sliding_attention": self.config.sliding_window, "full_attention": None}
        masks = {
            kind: allowed_keys(x.shape[1], num_past, window, mask, x.device)
            for kind, window in windows.items()
        }
        states: dict[int, Tensor] = {}
        for index in range(max(self.selected_layers) + 1):
            past = None if prefix is None else (prefix.keys[index], prefix.values[index])
            x, key, value = self.model.layers[index](
                x, tables, masks[self.config.layer_types[index]], past
            )
            if keys is not None and values is not None:
                keys.append(key)
                values.append(value)
            if index in self.selected_layers:
                states[index] = x
        return [states[index] for index in self.selected_layers]
