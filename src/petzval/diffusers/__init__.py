"""Lens as users of diffusers expect it: a `DiffusionPipeline` over this project's networks.

    from petzval.diffusers import LensPipeline

    pipe = LensPipeline.from_pretrained("lens-turbo", torch_dtype=torch.bfloat16).to("cuda")
    [fox] = pipe("a red fox", generator=torch.Generator().manual_seed(7)).images

networks    the three networks as modules that diffusers can place, move and save
text        prompts as tensors, and batches whose texts have different lengths
schedule    diffusers' schedulers, set to Lens's noise levels
loading     a published folder by path, name or repository
adapters    LoRAs: loaded, weighed, fused
memory      decoding with less memory
arguments   what scripts for diffusers pass besides
pipeline    the pipeline

Needs the extra `petzval[diffusers]`. Neither transformers nor code from a repository is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from petzval.errors import MissingExtraError

if TYPE_CHECKING:
    from petzval.diffusers.networks import LensAutoencoder as LensAutoencoder
    from petzval.diffusers.networks import LensGptOssEncoder as LensGptOssEncoder
    from petzval.diffusers.networks import LensTransformer2DModel as LensTransformer2DModel
    from petzval.diffusers.pipeline import LensPipeline as LensPipeline

_HOMES = {
    "LensPipeline": "petzval.diffusers.pipeline",
    "LensTransformer2DModel": "petzval.diffusers.networks",
    "LensGptOssEncoder": "petzval.diffusers.networks",
    "LensAutoencoder": "petzval.diffusers.networks",
}

__all__ = ["LensAutoencoder", "LensGptOssEncoder", "LensPipeline", "LensTransformer2DModel"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'petzval.diffusers' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        raise MissingExtraError("diffusers", "diffusers") from error
