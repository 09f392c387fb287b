"""LoRAs under the names that diffusers' users know, read and applied by our own code.

A LoRA stays beside the weights (`LiveLoras`), so that another weight costs nothing; fused, it is
added to them and costs nothing while a picture is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from petzval.diffusers.loading import find_lora
from petzval.diffusers.networks import LensTransformer2DModel
from petzval.errors import CheckpointError, RequestError
from petzval.inference.loras import LoraChoice, choose_loras
from petzval.models.mmdit import MMDiTConfig
from petzval.weights.lora import Lora, changed_weight, read_lora
from petzval.weights.lora_live import LiveLoras

_DENOISER = "transformer"


class LoraMethods:
    """What a pipeline can do with LoRAs; its class calls `_begin_loras` first."""

    transformer: LensTransformer2DModel

    def _begin_loras(self) -> None:
        self._adapters: dict[str, Lora] = {}
        self._weights: dict[str, float] = {}
        self._lora_enabled = True
        self._live_loras: LiveLoras | None = None
        self._followed: tuple[Any, ...] = ()
        self._fused: tuple[str, ...] = ()
        self._unfused: dict[str, Tensor] = {}

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Any],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **others: Any,
    ) -> None:
        """Read a LoRA of any family; it alone is active then, at weight 1.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder as PEFT writes it,
                a repository (owner/name), or tensors by key.
            adapter_name: for the other methods; without one default_0, default_1 …
            weight_name: the file in the folder or repository.
            subfolder: in which it lies there.
            revision: branch or commit of the repository.
            local_files_only: take it from the cache, ask no server.

        Raises:
            RequestError: it does not exist, the name is taken, or an argument is not known.
            CheckpointError, ConfigError: as `weights.lora.read_lora`.
            DownloadError: the repository cannot be fetched from.
        """
        for name, value in others.items():
            if value not in (None, False) and (name, value) != ("use_safetensors", True):
                raise RequestError(f"load_lora_weights has no argument {name!r:.40}")
        self._refuse_fused("unfuse_lora() first")
        free = (f"default_{number}" for number in count())
        name = adapter_name or next(each for each in free if each not in self._adapters)
        if name in self._adapters:
            raise RequestError(f"a LoRA is named {name!r:.60} already", "give another adapter_name")
        config = self.transformer.network.config
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, Mapping):
            lora = _from_tensors(given, config)
        else:
            file = find_lora(
                given,
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                offline=local_files_only,
            )
            [choice] = choose_loras(file)
            lora = read_lora(choice.path, config)
        self._adapters[name] = lora
        self._weights = {name: 1.0}
        self._follow_loras(self._lora_device())

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float | None] | None = None,
    ) -> None:
        """Make these LoRAs, and no others, active.

        Args:
            adapter_names: one or several.
            adapter_weights: one for all, or one for each; None is 1.

        Raises:
            RequestError: a name is unknown, or a weight missing or out of range.
        """
        self._refuse_fused("unfuse_lora() first")
        names = self._known(adapter_names)
        weights: Any = adapter_weights
        if not isinstance(weights, list | tuple):
            weights = [weights] * len(names)
        if len(weights) != len(names):
            raise RequestError(f"{len(weights)} weights for {len(names)} LoRAs")
        self._weights = {
            name: LoraChoice(path=Path(name), weight=1.0 if weight is None else weight).weight
            for name, weight in zip(names, weights, strict=True)
        }
        self._follow_loras(self._lora_device())

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these LoRAs.

        Raises:
            RequestError: a name is unknown, or they are fused.
        """
        self._refuse_fused("unfuse_lora() first")
        for name in self._known(adapter_names):
            del self._adapters[name]
            self._weights.pop(name, None)
        self._follow_loras(self._lora_device())

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs; the weights are as they were loaded, also where some were fused."""
        self.unfuse_lora()
        self._adapters.clear()
        self._weights = {}
        self._follow_loras(self._lora_device())

    def disable_lora(self) -> None:
        """Draw without the LoRAs that are active, until `enable_lora`."""
        self._lora_enabled = False
        self._follow_loras(self._lora_device())

    def enable_lora(self) -> None:
        """Draw with them again."""
        self._lora_enabled = True
        self._follow_loras(self._lora_device())

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs that pictures are drawn with."""
        return list(self._weights)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all LoRAs, by network: there is one that takes them."""
        return {_DENOISER: list(self._adapters)} if self._adapters else {}

    def fuse_lora(
        self,
        components: Sequence[str] = (_DENOISER,),
        lora_scale: float = 1.0,
        *,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Add LoRAs to the weights; what these were is kept, so that `unfuse_lora` is exact.

        Args:
            components: the transformer.
            lora_scale: times the weight of each.
            adapter_names: of those to add, at weight 1 where they are not active; without names
                all that are active.

        Raises:
            RequestError: a network or name is unknown, or some are fused already.
            CheckpointError: a weight would stop being finite; nothing is changed then.
        """
        if tuple(components) != (_DENOISER,):
            raise RequestError(f"LoRAs are fused into the {_DENOISER} alone")
        self._refuse_fused("unfuse_lora() first")
        names = self._known(list(self._weights) if adapter_names is None else adapter_names)
        used = [(self._adapters[name], lora_scale * self._weights.get(name, 1.0)) for name in names]
        network, fused = self.transformer.network, dict[str, Tensor]()
        for layer in sorted({layer for lora, _ in used for layer in lora.changes}):
            old = network.get_submodule(layer).get_parameter("weight")
            fused[layer] = changed_weight(layer, old, used, old.dtype)
        for layer, weight in fused.items():
            owner = network.get_submodule(layer)
            self._unfused[layer] = owner.get_parameter("weight").detach()
            owner.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        self._fused = tuple(names)
        self._follow_loras(self._lora_device())

    def unfuse_lora(self, components: Sequence[str] = (_DENOISER,)) -> None:
        """Put the weights back; the LoRAs stand beside them again."""
        del components
        for layer, old in self._unfused.items():
            owner = self.transformer.network.get_submodule(layer)
            weight = old.to(owner.get_parameter("weight"))
            owner.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        self._unfused.clear()
        self._fused = ()
        self._follow_loras(self._lora_device())

    @property
    def num_fused_loras(self) -> int:
        """How many are in the weights."""
        return len(self._fused)

    def _follow_loras(self, device: torch.device) -> None:
        """See that the denoiser's layers add what is active, where the work is done."""
        active = self._weights if self._lora_enabled and not self._fused else {}
        network, dtype = self.transformer.network, self.transformer.dtype
        wanted = (*active.items(), device, dtype, id(network))
        if wanted == self._followed:
            return
        if self._live_loras is not None:
            self._live_loras.detach()
        self._live_loras = None
        if active:
            loras = [self._adapters[name] for name in active]
            self._live_loras = LiveLoras(loras, list(active.values()))
            self._live_loras.attach(network, device, dtype)
        self._followed = wanted

    def _lora_device(self) -> torch.device:
        return self.transformer.device

    def _known(self, names: str | Sequence[str]) -> list[str]:
        asked = [names] if isinstance(names, str) else list(names)
        for name in asked:
            if name not in self._adapters:
                known = ", ".join(self._adapters) or "none"
                raise RequestError(f"no LoRA is named {name!r:.60}", f"loaded: {known}")
        return asked

    def _refuse_fused(self, hint: str) -> None:
        if self._fused:
            raise RequestError(f"LoRAs are fused: {', '.join(self._fused)}", hint)


def _from_tensors(tensors: Mapping[str, Any], config: MMDiTConfig) -> Lora:
    """Tensors by key, through the same reader as a file of them."""
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise RequestError(f"key {key!r:.80} of the LoRA is no tensor")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        save_file(
            {key: each.detach().cpu().contiguous().clone() for key, each in tensors.items()}, file
        )
        try:
            return read_lora(file, config)
        except CheckpointError as error:
            told = error.message.replace(str(file), "the LoRA's tensors")
            raise CheckpointError(told, error.hint) from None
