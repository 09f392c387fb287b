"""Architectures as values: the published Lens, and mini, which ships inside."""

from __future__ import annotations

from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import AutoencoderConfig

LENS_MMDIT = MMDiTConfig(
    num_layers=48,
    num_attention_heads=24,
    in_channels=128,
    out_channels=32,
    enc_hidden_dim=2880,
    selected_layer_index=(5, 11, 17, 23),
)
"""4,104,225,152 parameters; the same for Lens-Base, Lens and Lens-Turbo."""

LENS_TOY_MMDIT = MMDiTConfig(
    num_layers=32,
    num_attention_heads=16,
    in_channels=128,
    out_channels=32,
    enc_hidden_dim=2880,
    selected_layer_index=(5, 11, 17, 23),
)
"""Width 1024: some 1.2 B parameters, as the paper's model for ablations has."""

LENS_GPT_OSS = GptOssConfig(
    hidden_size=2880,
    num_hidden_layers=24,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    intermediate_size=2880,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201088,
    packed_experts=True,
)
"""GPT-OSS-20B with its experts in MXFP4, as published."""

LENS_VAE = AutoencoderConfig(block_out_channels=(128, 256, 512, 512))
"""The FLUX.2 autoencoder, 84,046,372 parameters."""

MINI_MMDIT = MMDiTConfig(
    num_layers=6,
    num_attention_heads=3,
    in_channels=64,
    out_channels=16,
    enc_hidden_dim=192,
    selected_layer_index=(0, 1, 2, 3),
)

MINI_GPT_OSS = GptOssConfig(
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=192,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=8192,
)
"""vocab_size is replaced by the pruned vocabulary's own."""

MINI_VAE = AutoencoderConfig(
    block_out_channels=(16, 32, 64, 96),
    latent_channels=16,
    layers_per_block=1,
    norm_num_groups=4,
)
