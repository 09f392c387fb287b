"""Parts from different places make one checkpoint, or are told why they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import CheckpointError, ConfigError
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.weights.assembly import assemble, find_tokenizer
from petzval.weights.checkpoint import Checkpoint, check_fit
from petzval.weights.component import open_component
from tests.support import TINY_CHECKPOINT
from tests.weights.formats import comfyui_encoder, saved, settings, stored
from tests.weights.support import copy_checkpoint, edit_json

TOKENIZER = TINY_CHECKPOINT / "tokenizer"


def test_the_identity_follows_the_parts_and_not_their_names(tmp_path: Path) -> None:
    first = assemble(TINY_CHECKPOINT, TINY_CHECKPOINT, TINY_CHECKPOINT)
    assert first.assembled
    assert first.tokenizer_folder == TOKENIZER
    again = assemble(
        TINY_CHECKPOINT / "transformer",
        open_component(TINY_CHECKPOINT / "text_encoder"),
        TINY_CHECKPOINT / "vae",
        TOKENIZER / "tokenizer.json",
    )
    assert first.identity == again.identity
    state = {key: tensor.bfloat16() for key, tensor in stored("denoiser").items()}
    other = saved(tmp_path / "d", state, settings("denoiser"))
    changed = assemble(other, TINY_CHECKPOINT, TINY_CHECKPOINT)
    assert changed.identity != first.identity
    assert changed.folder == tmp_path


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    folder = copy_checkpoint(tmp_path)
    edit_json(folder / "transformer/config.json", selected_layer_index=[1, 2, 4, 6])
    with pytest.raises(ConfigError, match="goes beyond the text encoder's 6 layers"):
        assemble(folder / "transformer", TINY_CHECKPOINT, TINY_CHECKPOINT)


def test_tokenizers_from_everywhere(tmp_path: Path) -> None:
    content = (TOKENIZER / "tokenizer.json").read_bytes()
    inside = saved(tmp_path / "encoder", comfyui_encoder(), settings("encoder"))
    alone = saved(tmp_path / "alone", stored("encoder"), settings("encoder"))
    carrying, plain = open_component(inside), open_component(alone)
    assert find_tokenizer(None, carrying) == content
    assert find_tokenizer(content, plain) == content
    assert find_tokenizer(inside, plain) == content
    assert find_tokenizer(TINY_CHECKPOINT, plain) == TOKENIZER
    assert find_tokenizer(TOKENIZER, carrying) == TOKENIZER
    with pytest.raises(CheckpointError, match="holds no tokenizer, and none lies beside it"):
        find_tokenizer(None, plain)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        find_tokenizer(alone, plain)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(content)
    assert find_tokenizer(None, plain) == tmp_path / "tokenizer"


def test_a_tokenizer_inside_a_file_is_used_and_has_no_folder(tmp_path: Path) -> None:
    inside = saved(tmp_path / "encoder", comfyui_encoder(), settings("encoder"))
    checkpoint = assemble(TINY_CHECKPOINT, inside, TINY_CHECKPOINT)
    ids = [PromptTokenizer(place).encode("a red fox").ids for place in (
        checkpoint.tokenizer, TOKENIZER, TOKENIZER / "tokenizer.json"
    )]  # fmt: skip
    assert ids[0] == ids[1] == ids[2]
    with pytest.raises(CheckpointError, match="the tokenizer lies inside the encoder's file"):
        _ = checkpoint.tokenizer_folder
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        PromptTokenizer(b"\xff{")


def test_a_published_folder_keeps_its_identity() -> None:
    """Recipes in pictures name it: it may not change with what else can be read."""
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    assert not checkpoint.assembled
    assert checkpoint.identity.startswith("cc4b120592")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 36}, {"num_local_experts": 128}])
def test_the_larger_gpt_oss_is_no_encoder_of_lens(change: dict[str, int]) -> None:
    """It is as wide, so every shape fits, and the pictures would be noise."""
    check_fit("here", LENS_MMDIT, LENS_GPT_OSS, LENS_VAE)
    other = replace(LENS_GPT_OSS, layer_types=(), **change)
    with pytest.raises(ConfigError, match="this denoiser reads GPT-OSS-20B") as caught:
        check_fit("here", LENS_MMDIT, other, LENS_VAE)
    assert "petzval pull gpt-oss-20b" in caught.value.hint
    own = replace(LENS_MMDIT, selected_layer_index=(1, 2, 3, 4))  # trained on another, by somebody
    check_fit("here", own, other, LENS_VAE)
