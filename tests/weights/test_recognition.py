"""A network is recognised by its keys, whatever stands before them and beside them in a file."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights.component import open_component
from petzval.weights.formats import KINDS, Kind
from petzval.weights.recognition import homes, one_network
from petzval.weights.tensors import TensorSource
from tests.support import golden_json
from tests.weights.formats import (
    comfyui_encoder,
    gguf_encoder,
    original_vae,
    saved,
    settings,
    stored,
    write_gguf,
)

PREFIXES = (
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "_orig_mod.",
)
MANIFESTS: dict[Kind, tuple[str, ...]] = {
    "denoiser": ("transformer",),
    "encoder": ("text_encoder_dense", "text_encoder_mxfp4"),
    "vae": ("vae",),
}


def whole_checkpoint() -> dict[str, Tensor]:
    """All three networks in one file, as ComfyUI saves a checkpoint."""
    places = {
        "model.diffusion_model.": stored("denoiser"),
        "text_encoders.gpt_oss.transformer.": comfyui_encoder(),
        "vae.": original_vae(),
    }
    return {prefix + key: value for prefix, state in places.items() for key, value in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_published_network_is_recognised_behind_any_prefix(prefix: str) -> None:
    for kind, manifests in MANIFESTS.items():
        for name in manifests:
            keys = [prefix + key for key in golden_json(f"manifests/{name}.json")["keys"]]
            assert homes(keys) == {kind: (prefix,)}


def test_statistics_of_another_network_are_no_autoencoder() -> None:
    assert homes(["layer1.bn.running_mean", "layer1.bn.running_var"]) == {}
    assert homes(["layer1.bn.running_mean", "layer1.decoder.conv_in.weight"]) == {
        "vae": ("layer1.",)
    }


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_taken_off(tmp_path: Path, prefix: str) -> None:
    states: dict[Kind, dict[str, Tensor]] = {"denoiser": stored("denoiser"), "vae": original_vae()}
    for kind, state in states.items():
        file = saved(
            tmp_path / kind, {prefix + key: value for key, value in state.items()}, settings(kind)
        )
        assert set(open_component(file, kind).source) == set(stored(kind))


def test_a_checkpoint_in_one_file_gives_each_of_its_parts(tmp_path: Path) -> None:
    file = saved(tmp_path / "all", whole_checkpoint())
    source = TensorSource.open(file)
    own = {"denoiser": stored("denoiser"), "encoder": comfyui_encoder(), "vae": original_vae()}
    for kind in KINDS:
        found, part = one_network(source, file, kind)
        assert (found, set(part)) == (kind, set(own[kind]))
        assert all(torch.equal(part.read(key), value) for key, value in own[kind].items())
    with pytest.raises(
        CheckpointError, match="holds a denoiser and a text encoder and an auto"
    ) as e:
        open_component(file)
    assert "--part" in e.value.hint


def test_a_gguf_encoder_behind_a_prefix_is_the_same(tmp_path: Path) -> None:
    plain = gguf_encoder(tmp_path / "plain", "MXFP4")
    reader = gguf.GGUFReader(plain)
    tensors = {f"text_encoders.llm.{t.name}": (t.data, t.tensor_type.name) for t in reader.tensors}
    numbers = {
        name: field.parts[-1].tolist()[0]
        for name, field in reader.fields.items()
        if name.startswith("gpt-oss.")
    }
    numbers = {k: round(v, 6) if isinstance(v, float) else v for k, v in numbers.items()}
    file = write_gguf(tmp_path / "prefixed", tensors, numbers=numbers, architecture="gpt-oss")
    one, other = open_component(plain), open_component(file)
    assert other.packings == ("MXFP4",)
    assert set(one.source) == set(other.source)
    assert all(torch.equal(one.source.read(key), other.source.read(key)) for key in one.source)
