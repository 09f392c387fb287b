"""Peak memory of an encoder with packed experts: near the file's size, never the de-quantised one.

Measured in a process of its own, from the file to the features, on an encoder whose experts weigh
what they do in GPT-OSS-20B relative to the rest. De-quantised it would take 3.8 times the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from petzval.models.gpt_oss import GptOssConfig
from petzval.weights.manifest import expected_tensors
from petzval.weights.writing import Component, save_component

CONFIG = GptOssConfig(
    hidden_size=768,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=768,
    num_local_experts=16,
    num_experts_per_tok=4,
    vocab_size=512,
    packed_experts=True,
)

PROGRAM = """
import json, re, sys
import torch
torch.set_num_threads(1)
from petzval.weights.checkpoint import load_encoder, open_encoder

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1]) * 1024

def run(folder):
    config, source = open_encoder(folder)
    encoder = load_encoder(config, source, (0, config.num_hidden_layers - 1), torch.bfloat16)
    with torch.no_grad():
        return source, encoder(torch.arange(200)[None])

run(sys.argv[1])  # a small one first: torch loads and compiles what it needs
before = peak()
source, features = run(sys.argv[2])
print(json.dumps({
    "file": source.num_bytes,
    "grown": peak() - before,
    "finite": bool(torch.isfinite(features[-1].float()).all()),
}))
"""


def write_encoder(folder: Path, config: GptOssConfig) -> None:
    """Random numbers in the published layout."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for key, wanted in expected_tensors(config).items():
        if wanted.kind == "packed":
            low, high = (110, 118) if key.endswith("_scales") else (0, 256)
            numbers = torch.randint(low, high, wanted.shape, generator=generator)
            state[key] = numbers.to(torch.uint8)
        else:
            state[key] = torch.randn(wanted.shape, generator=generator).mul_(0.02).bfloat16()
    save_component(folder, Component(config=config, state=state))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_stays_near_the_file(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    write_encoder(small, replace(CONFIG, num_hidden_layers=1, layer_types=(), num_local_experts=4))
    write_encoder(large, CONFIG)
    command = [sys.executable, "-c", PROGRAM, str(small), str(large)]
    # oneDNN keeps a compiled product for every count of tokens that an expert has met, and the
    # allocator keeps some pages: constants of some 30 MB, nothing beside 12 GB and much beside a
    # file of 100 MB. Hence sixteen layers and a small cache.
    environment = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    assert measured["finite"]
    assert measured["file"] > 200_000_000
    assert measured["grown"] < 1.3 * measured["file"]
