"""Peak memory of one full-size text-encoder layer in MXFP4, in a process of its own.

The published encoder is 24 such layers and an embedding. A machine without 4-bit kernels must stay
within 1.3 times the packed size. What a layer needs on top of its own bytes is needed
once, however many layers there are; it is held to a tenth of that allowance.
"""

from __future__ import annotations

import subprocess
import sys

PUBLISHED_BYTES = 12_602_992_128  # MXFP4 encoder without head and final norm
HEADROOM = 0.3 * PUBLISHED_BYTES / 10

PROGRAM = """
import dataclasses, torch
from petzval.kernels.backends import peak_resident_bytes
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.sizes import LENS_GPT_OSS

torch.set_num_threads(1)
config = dataclasses.replace(LENS_GPT_OSS, num_hidden_layers=1, layer_types=(), vocab_size=64)
with torch.device("meta"):
    encoder = GptOssEncoder(config, (0,)).bfloat16()
encoder = encoder.to_empty(device="cpu").requires_grad_(False)
for name, tensor in encoder.state_dict().items():
    if tensor.dtype == torch.uint8:
        tensor.fill_(120 if name.endswith("scales") else 0x31)
    else:
        tensor.fill_(1.0 if "norm" in name else 0.01)
encoder.model.layers[0].mlp.router.bias.copy_(torch.randn(32, generator=torch.Generator()))
held = sum(t.nbytes for t in encoder.state_dict().values())
# Not getrusage: its peak begins with that of the process that started this one.
before = peak_resident_bytes()
features = encoder(torch.arange(24)[None])[0]
assert torch.isfinite(features).all()
print(held, peak_resident_bytes() - before)
"""


def test_a_layer_needs_little_beside_its_own_bytes() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=540
    )
    held, extra = (int(number) for number in run.stdout.split())
    # 1/32 of the experts' bytes is one expert; the layer's own size is the published one.
    assert 0.95 * 11_444_725_248 / 24 < held < 1.05 * 11_444_725_248 / 24
    assert extra < HEADROOM
