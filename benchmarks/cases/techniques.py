"""One technique at a time, each against what it replaces; whole pictures are in the waterfalls."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Prepared
from petzval.bench import original
from petzval.inference.compile import lay_channels
from petzval.inference.denoise import packed_branch
from petzval.kernels import backends, dispatch, fast, fused, reference
from petzval.kernels.fp4 import decode_fp4
from petzval.kernels.sequences import FusedStream
from petzval.models.mmdit import MMDiT
from petzval.models.rope import mmdit_rope
from petzval.models.sizes import LENS_MMDIT, MINI_MMDIT, MINI_VAE
from petzval.models.vae import Autoencoder

NUM_IMAGE, NUM_TEXT = 1024, 128
"""512 x 512 pixels at the published width."""


def _draw(*shape: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def _number(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _joint() -> Prepared:
    """Split, per-head norm, rotation and joining: reference, torch, and Triton where it runs."""
    device = backends.default_device()
    dtype, width, head = _number(device), LENS_MMDIT.hidden_size, LENS_MMDIT.attention_head_dim
    norms = [_draw(head, seed=i, device=device, dtype=dtype) for i in range(4)]
    image = FusedStream(
        _draw(1, NUM_IMAGE, 3 * width, seed=5, device=device, dtype=dtype), *norms[:2]
    )
    text = FusedStream(
        _draw(1, NUM_TEXT, 3 * width, seed=6, device=device, dtype=dtype), *norms[2:]
    )
    rope = mmdit_rope((32, 32), NUM_TEXT, LENS_MMDIT.axes_dims_rope, device=device)

    def best() -> Tensor:
        args = (image, text, 1e-6, rope.cos, rope.sin)
        return torch.cat([x.flatten() for x in dispatch.joint_qkv(*args, text_queries=True)])

    def slow() -> Tensor:
        with dispatch.reference():
            return best()

    def portable() -> Tensor:
        with dispatch.portable():
            return best()

    ways = {"one after the other, joined": slow, "written into one buffer": portable}
    if fused.triton_ready(device, dtype)[0]:
        ways["one Triton kernel a stream"] = best
    return Prepared(ways=ways, dtype=str(dtype).removeprefix("torch."))


def _lengths() -> Prepared:
    """Four pictures whose prompts have 10 to 120 tokens: padded with a mask, and packed."""
    device = backends.default_device()
    model = MMDiT(MINI_MMDIT).eval()
    original.randomise(model, seed=1)
    model = model.to(device)
    lengths, grid = (10, 30, 60, 120), (16, 16)
    width = MINI_MMDIT.hidden_size
    texts = [_draw(n, width, seed=n, device=device, dtype=torch.float32) for n in lengths]
    noise = _draw(4, 256, MINI_MMDIT.in_channels, seed=2, device=device, dtype=torch.float32)
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.arange(max(lengths), device=device)[None] < torch.tensor(
        lengths, device=device
    ).unsqueeze(1)
    modulations = model.modulations(torch.tensor([0.7], device=device))
    rope = mmdit_rope(grid, max(lengths), MINI_MMDIT.axes_dims_rope, device=device)
    packed = packed_branch(model, texts, grid, modulations)
    return Prepared(
        ways={
            "padded, with a mask": lambda: model(noise, padded, modulations[0], rope, mask),
            "packed": lambda: packed(noise, 0.7, 0),
        },
        dtype="float32",
        facts={"pictures": 4, "text tokens": sum(lengths), "with padding": 4 * max(lengths)},
    )


def _channels() -> Prepared:
    """The decoder as it is, and with its channels last."""
    device = backends.default_device()
    plain, last = Autoencoder(MINI_VAE).eval(), Autoencoder(MINI_VAE).eval()
    original.randomise(plain, seed=3)
    last.load_state_dict(plain.state_dict())
    plain, last = plain.to(device), last.to(device)
    lay_channels(last)
    latents = _draw(1, MINI_VAE.latent_channels, 32, 32, seed=4, device=device, dtype=torch.float32)
    return Prepared(
        ways={
            "channels first": lambda: plain.decode(latents),
            "channels last": lambda: last.decode(latents),
        },
        dtype="float32",
    )


def _decoding() -> Prepared:
    """One expert's matrix of GPT-OSS-20B from 4-bit floats."""
    device = backends.default_device()
    backends.keep_heap(True)
    generator = torch.Generator("cpu").manual_seed(5)
    packed = torch.randint(0, 256, (5760, 1440), generator=generator).to(torch.uint8).to(device)
    return Prepared(
        ways={
            "one code after the other": lambda: reference.decode_fp4(packed, torch.bfloat16),
            "a byte at a time": lambda: decode_fp4(packed, torch.bfloat16),
        },
        dtype="bfloat16",
        facts={"values": 2 * packed.numel()},
    )


def _doubling() -> Prepared:
    """The second of the published decoder's three doublings, for a picture of 512 x 512."""
    device = backends.default_device()
    backends.keep_heap(True)
    dtype, channels, side = _number(device), 512, 128
    x = _draw(1, channels, side, side, seed=1, device=device, dtype=dtype)
    weight = _draw(channels, channels, 3, 3, seed=2, device=device, dtype=dtype) / 68
    bias = _draw(channels, seed=3, device=device, dtype=dtype)
    return Prepared(
        ways={
            "doubled, then 3 x 3": lambda: reference.upsample_convolution(x, weight, bias),
            "four 2 x 2 of the small picture": lambda: fast.upsample_convolution(x, weight, bias),
        },
        dtype=str(dtype).removeprefix("torch."),
        facts={"channels": channels},
    )


CASES = (
    Case(
        name="joint-qkv",
        title="query, key and value of both streams, published width, 512 x 512",
        why="between the projections and attention lie six passes over the tokens, or one",
        prepare=_joint,
        tolerance=0.1,
    ),
    Case(
        name="texts-of-any-length",
        title="one call for four pictures with prompts of 10 to 120 tokens, mini's size",
        why="a batch of prompts as people write them needs neither padding nor a mask",
        prepare=_lengths,
        tolerance=2e-3,
    ),
    Case(
        name="channels-last",
        title="decode a picture of 256 x 256, mini's decoder",
        why="fast convolutions want it; used where the decoder is compiled, for torch's own "
        "group norm of that layout loses digits on a CPU",
        prepare=_channels,
        tolerance=1e-2,
    ),
    Case(
        name="doubling-convolution",
        title="nearest-neighbour doubling and convolution, published width, 128 x 128 to 256 x 256",
        why="a doubled picture repeats itself: 16 products are enough in place of 36",
        prepare=_doubling,
        tolerance=0.05,
        min_ratio=1.0,
    ),
    Case(
        name="decode-fp4",
        title="an expert's matrix of 2880 x 5760 from 4-bit floats, published width",
        why="without a kernel for it each prompt decodes 768 of these, and half as large ones",
        prepare=_decoding,
    ),
)
