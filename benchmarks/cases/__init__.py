"""The cases, in the order of the report."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.cases import (
    command_line,
    corpus,
    corpus_captions,
    corpus_shards,
    denoiser,
    encoder,
    full_width,
    memory,
    packed,
    server,
    techniques,
)

CASES: tuple[Case, ...] = (
    *denoiser.CASES,
    *packed.CASES,
    *techniques.CASES,
    *encoder.CASES,
    *command_line.CASES,
    *corpus.CASES,
    *corpus_captions.CASES,
    *corpus_shards.CASES,
    *full_width.CASES,
    *server.CASES,
    *memory.CASES,
)
