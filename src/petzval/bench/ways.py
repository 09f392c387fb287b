"""The ways to make a picture: the original's, then one technique after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from petzval.bench import original
from petzval.bench.networks import PREFIX_LENGTH, Scene
from petzval.flow.sampler import sample
from petzval.flow.schedule import empirical_mu, sigmas
from petzval.flow.solver import Denoise
from petzval.inference.compile import lacking, lay_channels
from petzval.inference.denoise import branch, guided
from petzval.inference.graphs import MAX_TOKENS, GraphedDenoiser
from petzval.kernels import dispatch, fused
from petzval.models.compiled import compiled, compiled_block, replace_forward
from petzval.models.latents import unpatchify
from petzval.models.mmdit import MMDiT
from petzval.models.quantised import BLOCK_LINEARS, quantised

Arithmetic: TypeAlias = Literal["unfused", "portable", "best"]
"""unfused: the reference's, attention apart. portable: fused by torch alone. best: Triton, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a picture is made.

    Attributes:
        name: of the row; what is new in it.
        exact: the same picture up to rounding.
        padded: two branches in one padded batch with a mask, the last block's text computed.
        arithmetic: see `Arithmetic`.
        folded: modulations of all steps at once, text projected once.
        prefix_cache: the template's tokens are not computed again.
        compiled: blocks, and the decoder with channels last.
        graphs: calls of the denoiser recorded and replayed.
        float8: the blocks' products.
    """

    name: str
    exact: bool = True
    padded: bool = False
    arithmetic: Arithmetic = "best"
    folded: bool = True
    prefix_cache: bool = True
    compiled: bool = False
    graphs: bool = False
    float8: bool = False

    @property
    def decoder(self) -> tuple[Arithmetic, bool]:
        """What the way of decoding depends on: ways that agree in it decode alike."""
        return self.arithmetic, self.compiled


def ladder(scene: Scene, *, compile: bool) -> list[Way]:
    """The original's way and what comes after it, as far as this device knows it.

    Args:
        compile: measure compiled networks, too; they take minutes to get ready.
    """
    slow = Way(
        name="the original's way",
        padded=True,
        arithmetic="unfused",
        folded=False,
        prefix_cache=False,
    )
    ways = [slow]

    def add(name: str, change: Callable[[Way], Way]) -> None:
        ways.append(replace(change(ways[-1]), name=name))

    add(
        "+ no needless branch, mask or text",
        lambda way: replace(way, padded=False),
    )
    add("+ folded modulations, text once", lambda way: replace(way, folded=True))
    add("+ cached prefix", lambda way: replace(way, prefix_cache=True))
    add("+ fused arithmetic, one joint buffer", lambda way: replace(way, arithmetic="portable"))
    dtype: torch.dtype = getattr(torch, scene.setting.dtype)
    if fused.triton_ready(scene.device, dtype)[0]:
        add("+ Triton's kernels", lambda way: replace(way, arithmetic="best"))
    if compile and lacking(scene.device) is None:
        add("+ compiled blocks and decoder", lambda way: replace(way, compiled=True))
    tokens = scene.noise.shape[0] * scene.noise.shape[1]
    if scene.device.type == "cuda" and tokens <= MAX_TOKENS:
        add("+ CUDA graphs", lambda way: replace(way, graphs=True))
    if fused.float8_ready(scene.device, dtype)[0]:
        add("+ float8 products", lambda way: replace(way, float8=True, exact=False))
    return ways


def without(ways: Sequence[Way], failed: Way, before: Way) -> list[Way]:
    """Ways that come after one that failed, without what was new in it."""
    kept = ("name", "exact")
    names = [field.name for field in fields(Way) if field.name not in kept]
    new = {
        name: getattr(before, name)
        for name in names
        if getattr(failed, name) != getattr(before, name)
    }
    return [replace(way, **new) for way in ways]


class Studio:
    """Makes the pictures of a scene in any way; what a way needs is built once and kept."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._forwards: dict[nn.Module, Callable[..., object]] = {}
        self._graphed: dict[Way, GraphedDenoiser] = {}
        self._float8: dict[tuple[nn.Module, str], nn.Module] = {}
        number = scene.setting.steps
        height, width = scene.setting.grid
        schedule = sigmas(number, empirical_mu(height * width, number))
        self.sigmas = schedule[: scene.setting.calls + 1]

    @torch.no_grad()
    def encode(self, way: Way) -> list[Tensor]:
        """Words → features, one tensor for each layer that the denoiser reads."""
        scene = self.scene
        with self._arithmetic(way):
            if way.prefix_cache:
                states = scene.encoder(scene.ids[:, PREFIX_LENGTH:], prefix=scene.prefix)
            else:
                states = list(original.encode(scene.encoder, scene.ids, PREFIX_LENGTH))
        return scene.features(states)

    @torch.no_grad()
    def denoise(self, way: Way, features: list[Tensor]) -> Tensor:
        """Features → latent tokens."""
        scene, guidance = self.scene, self.scene.setting.guidance
        with self._arithmetic(way):
            if way.padded:
                return original.denoise(
                    scene.denoiser,
                    features,
                    scene.noise,
                    scene.setting.grid,
                    self.sigmas,
                    guidance,
                )
            conditional = self._branch(way, features)
            velocity = (
                conditional
                if guidance == 1.0
                else guided(conditional, self._branch(way, []), guidance)
            )
            tokens = list(sample(velocity, scene.noise, self.sigmas))[-1].tokens
        graphs = self._graphs(way)
        if graphs is not None and graphs.graphs.failure is not None:
            raise RuntimeError(graphs.graphs.failure)  # else the row would show something else
        return tokens

    @torch.no_grad()
    def decode(self, way: Way, tokens: Tensor) -> Tensor:
        """Latent tokens → pictures."""
        decoder = self.scene.autoencoder
        dtype = decoder.post_quant_conv.weight.dtype
        with self._arithmetic(way):
            return decoder.decode(unpatchify(tokens.to(dtype), self.scene.setting.grid))

    def _branch(self, way: Way, features: list[Tensor]) -> Denoise:
        denoiser, grid = self.scene.denoiser, self.scene.setting.grid
        if way.folded:
            text = denoiser.embed_text(features) if features else None
            modulations = denoiser.modulations(self.sigmas[:-1].to(self.scene.device))
            return branch(denoiser, text, grid, modulations, self._graphs(way))

        def velocity(x: Tensor, sigma: float, call: int) -> Tensor:
            del call
            return denoiser.velocity(x, features, x.new_full(x.shape[:1], sigma), grid)

        return velocity

    def _graphs(self, way: Way) -> GraphedDenoiser | None:
        if not way.graphs:
            return None
        if way not in self._graphed:
            self._graphed[way] = GraphedDenoiser(self.scene.denoiser, patience=0)
        return self._graphed[way]

    @contextmanager
    def _arithmetic(self, way: Way) -> Generator[None]:
        kinds: dict[Arithmetic, Callable[[], AbstractContextManager[None]]] = {
            "unfused": lambda: dispatch.reference(attention=False),
            "portable": dispatch.portable,
            "best": nullcontext,
        }
        with ExitStack() as stack:
            stack.enter_context(kinds[way.arithmetic]())
            if way.float8:
                stack.enter_context(self._in_float8())
            if way.compiled:
                stack.enter_context(self._compiled())
            yield

    @contextmanager
    def _compiled(self) -> Generator[None]:
        denoiser, autoencoder = self.scene.denoiser, self.scene.autoencoder
        parts = [*denoiser.transformer_blocks, autoencoder.decoder]
        lay_channels(autoencoder, torch.channels_last)
        for part in parts:
            if part not in self._forwards:
                is_block = part is not autoencoder.decoder
                forward = compiled_block(part) if is_block else compiled(part.forward)
                self._forwards[part] = forward
            replace_forward(part, self._forwards[part])
        try:
            yield
        finally:
            for part in parts:
                del part.forward
            lay_channels(autoencoder, torch.contiguous_format)

    @contextmanager
    def _in_float8(self) -> Generator[None]:
        places = list(_block_linears(self.scene.denoiser))
        for block, name, linear in places:
            if (block, name) not in self._float8:
                self._float8[block, name] = quantised(linear, "float8")
            block.set_submodule(name, self._float8[block, name])
        try:
            yield
        finally:
            for block, name, linear in places:
                block.set_submodule(name, linear)


def _block_linears(denoiser: MMDiT) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for block in denoiser.transformer_blocks:
        for name in BLOCK_LINEARS:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            yield block, name, linear
