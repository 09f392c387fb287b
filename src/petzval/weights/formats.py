"""The words for parts and formats; nothing here needs torch, so a command can check them first."""

from __future__ import annotations

from typing import Literal

Kind = Literal["denoiser", "encoder", "vae"]
"""The three networks."""

KINDS: tuple[Kind, ...] = ("denoiser", "encoder", "vae")

Target = Literal["folder", "comfyui", "comfyui-fp8", "gguf-q8_0"]
"""Formats that are written; `convert` says what each is."""

TARGETS: tuple[Target, ...] = ("folder", "comfyui", "comfyui-fp8", "gguf-q8_0")


def as_kind(word: str) -> Kind | None:
    """The part of that name; None if there is none."""
    return next((kind for kind in KINDS if kind == word), None)


def as_target(word: str) -> Target | None:
    """The format of that name; None if there is none."""
    return next((target for target in TARGETS if target == word), None)
