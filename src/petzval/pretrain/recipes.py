"""Every recipe by name.

    mini_*                 make the checkpoint that ships inside
    lens_base_*, toy_1b    the paper's runs, over the shards of a corpus
    smoke_*                prove the road in seconds

A recipe is a function returning a frozen value (`petzval.pretrain.recipe`); nothing in it is read
from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from petzval.errors import ConfigError
from petzval.pretrain.lens_recipes import (
    lens_base_stage1,
    lens_base_stage2,
    lens_base_stage2_fast,
    toy_1b,
)
from petzval.pretrain.mini_recipes import (
    mini_denoiser,
    mini_denoiser_gpu,
    mini_export,
    mini_language_model,
    mini_latents,
    mini_latents_gpu,
    mini_tokenizer,
    mini_unpack,
    mini_vae,
)
from petzval.pretrain.recipe import Recipe
from petzval.pretrain.smoke_recipes import (
    smoke_corpus,
    smoke_corpus_packed,
    smoke_denoiser,
    smoke_export,
    smoke_language_model,
    smoke_latents,
    smoke_vae,
)

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        mini_tokenizer,
        mini_vae,
        mini_language_model,
        mini_latents,
        mini_latents_gpu,
        mini_denoiser,
        mini_denoiser_gpu,
        mini_export,
        mini_unpack,
        lens_base_stage1,
        lens_base_stage2,
        lens_base_stage2_fast,
        toy_1b,
        smoke_vae,
        smoke_language_model,
        smoke_latents,
        smoke_denoiser,
        smoke_export,
        smoke_corpus,
        smoke_corpus_packed,
    )
}


def recipe_by_name(name: str) -> Recipe:
    """The recipe's value.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}", f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
