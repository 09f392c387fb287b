"""The text encoder: the template's 97 tokens come before every prompt and never change."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Prepared
from petzval.bench import original
from petzval.kernels import dispatch
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.sizes import MINI_GPT_OSS

PREFIX_LENGTH = 97
NUM_PROMPT_TOKENS = 40


def _prepare() -> Prepared:
    encoder = GptOssEncoder(MINI_GPT_OSS, (0, 1, 2, 3)).eval()
    original.randomise(encoder, seed=4)
    generator = torch.Generator("cpu").manual_seed(5)
    shape = (1, PREFIX_LENGTH + NUM_PROMPT_TOKENS)
    ids = torch.randint(0, MINI_GPT_OSS.vocab_size, shape, generator=generator)
    prefix = encoder.encode_prefix(ids[:, :PREFIX_LENGTH])

    def whole() -> Tensor:
        return original.encode(encoder, ids, PREFIX_LENGTH)

    def whole_with_slow_arithmetic() -> Tensor:
        with dispatch.reference():
            return whole()

    def cached() -> Tensor:
        return torch.stack(encoder(ids[:, PREFIX_LENGTH:], prefix=prefix))

    return Prepared(
        ways={
            "the original's way": whole_with_slow_arithmetic,
            "+ fused arithmetic": whole,
            "+ prefix cache, no mask": cached,
        },
        dtype="float32",
        facts={"prefix tokens": PREFIX_LENGTH, "prompt tokens": NUM_PROMPT_TOKENS},
    )


CASES = (
    Case(
        name="prefix-cache",
        title="features of a prompt of 18 tokens, mini's encoder",
        why="97 of its 137 tokens are the same for every prompt",
        prepare=_prepare,
        rounds=15,
        min_ratio=1.4,
        tolerance=1e-3,
        # Two threads spend more on waking each other than on so little arithmetic: 12 ms and a
        # ratio of 1.4 in place of 5 ms and 1.9.
        threads=1,
    ),
)
