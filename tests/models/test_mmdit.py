"""The denoiser against the original's recorded outputs, and its exact savings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.models.attention import JointAttention
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.rope import mmdit_rope
from petzval.models.sizes import LENS_MMDIT
from tests.support import golden_cases, golden_tensors

CALL_LIMIT = 2e-5
BLOCK_LIMIT = 5e-5


def inputs(case: str) -> tuple[Tensor, list[Tensor], Tensor, tuple[int, int], Tensor, Tensor]:
    stored = golden_tensors("dit.safetensors")
    features = [stored[f"{case}.text_features.{i}"] for i in range(4)]
    height, width = stored[f"{case}.hw"].tolist()
    mask = stored[f"{case}.text_mask"].bool()
    tokens, sigma = stored[f"{case}.hidden_states"], stored[f"{case}.timestep"]
    return tokens, features, sigma, (height, width), mask, stored[f"{case}.output"]


@pytest.mark.parametrize("case", golden_cases("dit.safetensors"))
@pytest.mark.parametrize("arithmetic", ["fast", "reference"])
def test_one_call(denoiser: MMDiT, case: str, arithmetic: str) -> None:
    tokens, features, sigma, grid, mask, expected = inputs(case)
    if arithmetic == "reference":
        with dispatch.reference():
            got = denoiser.velocity(tokens, features, sigma, grid, mask)
    else:
        got = denoiser.velocity(tokens, features, sigma, grid, mask)
    assert (got - expected).abs().max() <= CALL_LIMIT


@pytest.mark.parametrize("case", ["b2_lens", "b3_mixed", "b2_cfg", "b1_all_masked"])
def test_unpadded_text_needs_no_mask(denoiser: MMDiT, case: str) -> None:
    tokens, features, sigma, grid, mask, expected = inputs(case)
    for row in range(tokens.shape[0]):
        length = int(mask[row].sum())
        alone = [f[row : row + 1, :length] for f in features]
        got = denoiser.velocity(tokens[row : row + 1], alone, sigma[row : row + 1], grid)
        assert (got - expected[row : row + 1]).abs().max() <= CALL_LIMIT


def test_every_state_inside_two_pictures(denoiser: MMDiT) -> None:
    stored = golden_tensors("dit_blocks.safetensors")
    tokens, features, sigma, grid, mask, _ = inputs("b2_lens")
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            parts = {f"{name}.img": out[0], f"{name}.txt": out[1]} if name[:5] == "block" else None
            seen.update(parts or {name: out})

        return module.register_forward_hook(hook)

    block = denoiser.transformer_blocks[0]
    handles = [keep(f"block{i}", b) for i, b in enumerate(denoiser.transformer_blocks)]
    handles += [
        keep(f"b0.attn.{name}", block.get_submodule(f"attn.{name}"))
        for name in ("img_qkv", "txt_qkv")
    ]
    denoiser.skip_dead_text = False
    try:
        denoiser.velocity(tokens, features, sigma, grid, mask)
    finally:
        denoiser.skip_dead_text = True
        for handle in handles:
            handle.remove()
    attention = block.get_submodule("attn")
    assert isinstance(attention, JointAttention)
    heads = attention.normed_heads(seen["b0.attn.img_qkv"], seen["b0.attn.txt_qkv"])
    seen |= {f"b0.attn.{name}": normed for name, normed in heads.items()}
    modulation = denoiser.modulation(sigma)
    seen["b0.img_mod"], seen["b0.txt_mod"] = modulation.image[0], modulation.text[0]
    seen["time_text_embed"] = denoiser.time_text_embed(sigma)
    seen["txt_in"], seen["img_in"] = denoiser.embed_text(features), denoiser.img_in(tokens)
    assert len(seen) == 6 + 6 + 5
    for name, got in seen.items():
        assert (got - stored[name]).abs().max() <= BLOCK_LIMIT, name


def test_folding_is_exact_and_the_weights_can_go(denoiser: MMDiT) -> None:
    tokens, features, _, grid, _, _ = inputs("b1_square")
    levels = torch.tensor([1.0, 0.9, 0.6, 0.2])
    copy = MMDiT(denoiser.config).requires_grad_(False)
    copy.load_state_dict(denoiser.state_dict())
    folded = copy.modulations(levels)
    width = denoiser.config.hidden_size
    weights_in_blocks = 2 * denoiser.config.num_layers * (6 * width * width + 6 * width)
    assert copy.drop_modulation() == 4 * weights_in_blocks
    text = copy.embed_text(features)
    rope = mmdit_rope(grid, text.shape[1])
    for level, modulation in zip(levels, folded, strict=True):
        got = copy(tokens, text, modulation, rope)
        expected = denoiser.velocity(tokens, features, level[None], grid)
        assert (got - expected).abs().max() <= CALL_LIMIT
    with pytest.raises(ValueError, match="dropped"):
        copy.modulations(levels)


def test_training_starts_from_a_quiet_network() -> None:
    model = MMDiT(dataclasses.replace(LENS_MMDIT, num_layers=1, num_attention_heads=1))
    model.initialise()
    features = [torch.randn(2, 3, 2880) for _ in range(4)]
    out = model.velocity(torch.randn(2, 6, 128), features, torch.tensor([0.1, 0.9]), (2, 3))
    assert out.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_mlp": False}, "gate_mlp=false"),
        ({"num_layers": 0}, "at least 1"),
        ({"axes_dims_rope": (8, 28)}, "sum to"),
        ({"in_channels": 64}, "patch_size"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    values = dataclasses.asdict(LENS_MMDIT) | change
    with pytest.raises(ConfigError, match=message):
        MMDiTConfig(**values)


def test_wrong_number_of_feature_layers(denoiser: MMDiT) -> None:
    with pytest.raises(ValueError, match="expected 4 feature layers, got 3"):
        denoiser.embed_text([torch.zeros(1, 2, 64)] * 3)
