"""The folder's own index, and the full-size networks against their recorded manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from petzval.config import to_mapping
from petzval.inference.goldens.case import CaseResult, absent, judge
from petzval.inference.goldens.folder import GoldenFolder, Subject
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.weights.manifest import ExpectedTensor, expected_tensors
from petzval.weights.published import ComponentConfig

MANIFESTS: Mapping[str, ComponentConfig] = {
    "transformer": LENS_MMDIT,
    "text_encoder_mxfp4": LENS_GPT_OSS,
    "text_encoder_dense": replace(LENS_GPT_OSS, packed_experts=False),
    "vae": LENS_VAE,
}
"""File of `manifests/` → the published architecture."""

_KINDS = {"uint8": "packed", "int64": "integer"}


def check_index(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Files hold what the index says, and the checkpoint has the architecture that it says."""
    for name, tensors in golden.files.items():
        if not golden.has(name) or not isinstance(tensors, dict):
            continue
        stored = golden.tensors(name)
        wrong = sum(not _as_stated(stored[key], said) for key, said in tensors.items())
        wrong += len(set(stored.keys) - set(tensors))
        yield judge(f"index/{name}", wrong, 0, "tensors that differ from the index")
    checkpoint = subject.checkpoint
    configs = {
        "dit": checkpoint.denoiser_config,
        "text_encoder": checkpoint.encoder_config,
        "vae": checkpoint.vae_config,
    }
    for name, config in configs.items():
        said = golden.config.get(name, {})
        ours = to_mapping(config)
        wrong_names = [key for key, value in said.items() if key in ours and ours[key] != value]
        if name == "dit" and said.get("inner_dim", _width(ours)) != _width(ours):
            wrong_names.append("inner_dim")
        detail = ", ".join(wrong_names) or "settings that differ from the index"
        yield judge(f"index/config {name}", len(wrong_names), 0, detail)
    said = golden.config.get("text_encoder", {}).get("special_ids", {})
    wrong = sum(subject.tokenizer.special_id(marker) != number for marker, number in said.items())
    yield judge("index/special ids", wrong, 0, "ids that differ from the index")


def _width(values: Mapping[str, Any]) -> int:
    """Width of the denoiser's streams."""
    return values["num_attention_heads"] * values["attention_head_dim"]


def _as_stated(tensor: Any, said: Any) -> bool:
    shape, dtype = said
    return list(tensor.shape) == list(shape) and str(tensor.dtype) == f"torch.{dtype}"


def check_manifests(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Every key, shape and kind of the published networks, built without numbers."""
    for name, config in MANIFESTS.items():
        if not golden.has(f"manifests/{name}.json"):
            yield absent(f"manifests/{name}.json")
            continue
        recorded = golden.json(f"manifests/{name}.json")["keys"]
        expected = expected_tensors(config)
        wrong = set(recorded) ^ set(expected)
        wrong |= {
            key
            for key, said in recorded.items()
            if key in expected and not _fits(expected[key], said)
        }
        detail = f"of {len(recorded)} tensors differ" + "".join(f", {k}" for k in sorted(wrong)[:3])
        yield judge(f"manifests/{name}", len(wrong), 0, detail)


def _fits(expected: ExpectedTensor, said: Mapping[str, Any]) -> bool:
    kind = _KINDS.get(said["dtype"], "float")
    return list(expected.shape) == said["shape"] and expected.kind == kind
