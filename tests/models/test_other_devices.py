"""What Apple's and Intel's cards lack is never asked of them, looked at operation by operation.

No such card is needed: the networks' own code runs here as it would there, and everything that it
asks of torch is seen. MPS has no float64, no `frexp`, and is taken to have no complex numbers; many
of Intel's cards have no float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from petzval.inference.placement import STORAGES
from petzval.inference.projection import fit
from petzval.kernels import fast
from petzval.models.experts import MixtureOfExperts
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.half import ScaledLinear
from petzval.models.mmdit import MMDiT
from petzval.models.quantised import QuantisedLinear
from petzval.models.strips import decode_in_strips
from petzval.models.vae import Autoencoder

NO_KERNEL = ("frexp",)
"""Operations that MPS has no kernel for, by torch's own table of operations."""


class _Watch(TorchDispatchMode):
    """Refuses what the devices that are stood for have no kernel or no number format for."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in NO_KERNEL, name
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                assert tensor.dtype != torch.float64, f"{name} in float64"
                assert not tensor.is_complex(), f"{name} of complex numbers"
        return out


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this were MPS."""
    monkeypatch.setattr(fast, "has_complex", lambda device: False)
    with torch.no_grad(), _Watch():
        yield


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("watched")
def test_the_denoiser(denoiser: MMDiT) -> None:
    config = denoiser.config
    features = [_draw(1, 5, config.enc_hidden_dim) for _ in config.selected_layer_index]
    tokens = _draw(1, 12, config.in_channels)
    velocity = denoiser.velocity(tokens, features, torch.tensor([0.7]), (3, 4))
    assert velocity.shape == tokens.shape


@pytest.mark.usefixtures("watched")
def test_the_decoder_whole_and_in_strips(autoencoder: Autoencoder) -> None:
    latents = _draw(1, autoencoder.config.latent_channels, 4, 4)
    assert autoencoder.decode(latents).shape == (1, 3, 32, 32)
    assert decode_in_strips(autoencoder, latents, rows=8).shape == (1, 3, 32, 32)


@pytest.mark.usefixtures("watched")
def test_the_text_encoder(encoder: GptOssEncoder) -> None:
    assert encoder(torch.arange(6)[None], prefix=encoder.encode_prefix(torch.arange(4)[None]))


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("packing", ["mxfp4", "nvfp4"])
def test_packed_experts(packing: str) -> None:
    mixture = MixtureOfExperts(
        width=64, intermediate=64, num_experts=2, num_chosen=1, limit=7.0, packing=packing
    )
    assert mixture.bfloat16()(_draw(1, 3, 64).bfloat16()).shape == (1, 3, 64)


@pytest.mark.usefixtures("watched")
def test_scaled_float16() -> None:
    layer, weight = ScaledLinear(64, 8, bias=False), _draw(8, 64)
    for name, tensor in layer.prepared(lambda key, dtype, place: weight).items():
        layer.register_buffer(name, tensor)
    assert torch.isfinite(layer(_draw(1, 3, 64))).all()
    query, key, value = _draw(3, 1, 6, 2, 16).unbind(0)
    assert torch.isfinite(fast.scaled_attention(query, key, value)).all()


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("storage", STORAGES[1:])
def test_quantised_layers(storage: Any) -> None:
    layer = QuantisedLinear(64, 8, bias=False, format=storage)
    for name, tensor in layer.prepared(lambda key, dtype, place: _draw(8, 64)).items():
        layer.register_buffer(name, tensor)
    assert layer(_draw(1, 3, 64)).shape == (1, 3, 8)


def test_previews_are_fitted_in_float64_on_the_cpu_alone(
    autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("cpu", "double"):
        real = getattr(Tensor, name)

        def noted(x: Tensor, name: str = name, real: Any = real) -> Tensor:
            order.append(name)
            return real(x)

        monkeypatch.setattr(Tensor, name, noted)
    fit(autoencoder)
    assert order == ["cpu", "double"] * 2


def test_the_watch_sees_what_it_is_to_refuse() -> None:
    x = torch.ones(3)
    with _Watch():
        with pytest.raises(AssertionError, match="frexp"):
            torch.frexp(x)
        with pytest.raises(AssertionError, match="float64"):
            x.double()
        with pytest.raises(AssertionError, match="complex"):
            torch.complex(x, x)
    assert not fast.has_complex(torch.device("mps"))
