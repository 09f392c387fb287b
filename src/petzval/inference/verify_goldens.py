"""`petzval verify --goldens`: a folder of recorded numbers against a checkpoint, case by case.

Nothing here is bound to one folder: sizes, seeds, layers, windows, step counts, prompts and case
names come from the folder's own files. Whatever such a file holds is compared with something or
reported; nothing passes by being passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import torch

from petzval.errors import PetzvalError
from petzval.inference.goldens.architecture import check_index, check_manifests
from petzval.inference.goldens.autoencoder import check_autoencoder
from petzval.inference.goldens.case import CaseResult, absent, fault, unchecked
from petzval.inference.goldens.denoiser import (
    check_calls,
    check_norms,
    check_states,
    check_timestep,
)
from petzval.inference.goldens.encoder import check_encoder, check_mxfp4, check_prompt_features
from petzval.inference.goldens.flow import (
    check_guidance,
    check_noise,
    check_presets,
    check_rope,
    check_rope_apply,
    check_scheduler,
)
from petzval.inference.goldens.folder import GoldenFolder, Subject
from petzval.inference.goldens.pictures import check_pictures
from petzval.inference.goldens.text import check_rewriting, check_tokenizer

__all__ = ["CaseResult", "compare", "iterate_goldens", "run_goldens"]

Check: TypeAlias = Callable[[GoldenFolder, Subject], Iterator[CaseResult]]

_CHECKS: tuple[tuple[str, Check], ...] = (
    ("index.json", check_index),
    ("manifests", check_manifests),
    ("resolution_buckets.json", check_presets),
    ("tokenizer_cases.json", check_tokenizer),
    ("reasoner_clean_cases.json", check_rewriting),
    ("noise.safetensors", check_noise),
    ("scheduler.safetensors", check_scheduler),
    ("cfg.safetensors", check_guidance),
    ("rope.safetensors", check_rope),
    ("rope_apply.safetensors", check_rope_apply),
    ("timestep.safetensors", check_timestep),
    ("norms.safetensors", check_norms),
    ("dit_blocks.safetensors", check_states),
    ("dit.safetensors", check_calls),
    ("text_encoder.safetensors", check_encoder),
    ("mxfp4.safetensors", check_mxfp4),
    ("prompt_features.safetensors", check_prompt_features),
    ("vae.safetensors", check_autoencoder),
    ("pipeline.safetensors", check_pictures),
)
_FAULTS = (PetzvalError, ValueError, TypeError, LookupError, RuntimeError, ArithmeticError)


def run_goldens(goldens_folder: str | Path, checkpoint_folder: str | Path) -> list[CaseResult]:
    """Compare every recorded number of a golden folder with what this checkpoint gives.

    Runs in float32 on the CPU, whatever the files are stored in.

    Args:
        goldens_folder: holds index.json and the files that it names.
        checkpoint_folder: the checkpoint that the numbers were recorded from.

    Returns:
        One result a case. A file that the index names must be there; one that it does not name may
        be absent, and is reported so.

    Raises:
        DataError: `goldens_folder` is no golden folder.
        CheckpointError: the checkpoint cannot be loaded.
    """
    return list(iterate_goldens(goldens_folder, checkpoint_folder))


def iterate_goldens(
    goldens_folder: str | Path, checkpoint_folder: str | Path
) -> Iterator[CaseResult]:
    """The same, each result as soon as it is known."""
    golden = GoldenFolder(goldens_folder)
    yield from compare(golden, Subject.load(checkpoint_folder))


def compare(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """The same with the folder open and the networks loaded."""
    for name, check in _CHECKS:
        if golden.has(name):
            yield from _guarded(name, check, golden, subject)
        elif name in golden.files:
            yield fault(name, "index.json names this file, but it is missing")
        else:
            yield absent(name)
    known = {name for name, _ in _CHECKS}
    for name in golden.files:
        if name not in known:
            yield unchecked(name, "no check for this file")


def _guarded(
    name: str, check: Check, golden: GoldenFolder, subject: Subject
) -> Iterator[CaseResult]:
    """A check that cannot be carried out is a failed case, not the end of all others."""
    results = check(golden, subject)
    while True:
        try:
            with torch.no_grad():
                result = next(results)
        except StopIteration:
            return
        except _FAULTS as error:
            yield fault(name, f"{type(error).__name__}: {str(error)[:300]}")
            return
        yield result
