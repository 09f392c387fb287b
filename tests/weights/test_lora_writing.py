"""LoRAs as files: what is written is read back the same, in every family."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from petzval.errors import CheckpointError
from petzval.weights.header import read_header, read_metadata
from petzval.weights.lora import LowRank, layer_shapes, read_lora
from petzval.weights.lora_keys import PREFIXES, Family
from petzval.weights.lora_writing import TrainedLora, save_lora, save_peft
from tests.support import TINY_CHECKPOINT
from tests.weights.support import write_file
from tests.weights.test_lora import CONFIG

RANK, ALPHA = 3, 1.5


def trained() -> TrainedLora:
    """A LoRA on every linear layer there is."""
    generator = torch.Generator().manual_seed(0)
    layers = {
        layer: LowRank(
            down=torch.randn(RANK, inputs, generator=generator),
            up=torch.randn(outputs, RANK, generator=generator),
            scale=ALPHA / RANK,
        )
        for layer, (outputs, inputs) in layer_shapes(CONFIG).items()
    }
    return TrainedLora(
        layers=layers, rank=RANK, alpha=ALPHA, base="tiny", notes={"petzval": "a note"}
    )


@pytest.mark.parametrize("family", PREFIXES)
def test_every_family_reads_back_the_same(tmp_path: Path, family: Family) -> None:
    made = trained()
    file = save_lora(tmp_path / "style.safetensors", made, family)
    assert all(key.startswith(PREFIXES[family]) for key in read_header(file))
    assert read_metadata(file)["petzval"] == "a note"
    lora = read_lora(file, CONFIG)
    assert lora.changes.keys() == made.layers.keys()
    for layer, halves in made.layers.items():
        # A third of the settings, alpha among them, travels in another way in each family.
        assert torch.equal(lora.changes[layer].product(), halves.product("cpu"))


def test_a_peft_folder_has_both_files_and_replaces_the_old_one(tmp_path: Path) -> None:
    made = trained()
    folder = tmp_path / "style"
    for _ in range(2):
        assert save_peft(folder, made) == folder
    assert os.listdir(tmp_path) == ["style"]
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, ALPHA)
    assert config["target_modules"] == sorted(made.layers)
    assert config["base_model_name_or_path"] == "tiny"
    # The file knows its scale without the settings beside it.
    (folder / "adapter_config.json").unlink()
    lora = read_lora(folder, CONFIG)
    for layer, halves in made.layers.items():
        assert torch.equal(lora.changes[layer].product(), halves.product("cpu"))


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    whole = save_lora(tmp_path / "a.safetensors", trained(), "comfyui")
    half = save_lora(tmp_path / "b.safetensors", trained(), "comfyui", dtype=torch.bfloat16)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert read_lora(half, CONFIG).changes.keys() == trained().layers.keys()


def test_a_place_that_cannot_be_written_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(CheckpointError, match="not written"):
        save_lora(tmp_path / "taken" / "style.safetensors", trained(), "kohya")
    with pytest.raises(CheckpointError, match="not written"):
        save_peft(tmp_path / "taken" / "style", trained())
    assert os.listdir(tmp_path) == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


def test_metadata_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for number, metadata in enumerate(({"a": 1}, [])):
        file = write_file(tmp_path / f"{number}.safetensors", {"__metadata__": metadata})
        with pytest.raises(CheckpointError, match="metadata"):
            read_metadata(file)
    assert read_metadata(TINY_CHECKPOINT / "vae/diffusion_pytorch_model.safetensors") is not None
