"""A folder made of parts has what programs that read tokenizers look for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from petzval.conditioning.vocabulary import write_tokenizer
from petzval.errors import CheckpointError
from petzval.weights.assembly import assemble
from petzval.weights.convert import convert_checkpoint
from petzval.weights.tokenizer_files import published_tokenizer
from tests.support import TINY_CHECKPOINT
from tests.weights.formats import comfyui_encoder, saved, settings

PUBLISHED = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]


def _parts(folder: Path, tokenizer: str | Path | None = None) -> Path:
    """A folder written from a denoiser, an autoencoder and an encoder's file with a tokenizer."""
    encoder = saved(folder / "encoder.safetensors", comfyui_encoder(), settings("encoder"))
    homes = (TINY_CHECKPOINT / "transformer", encoder, TINY_CHECKPOINT / "vae")
    convert_checkpoint(assemble(*homes, tokenizer, keep=("mxfp4",)), folder / "out")
    return folder / "out" / "tokenizer"


def test_a_folder_from_parts_has_the_files_of_a_published_one(tmp_path: Path) -> None:
    home, published = _parts(tmp_path), TINY_CHECKPOINT / "tokenizer"
    assert sorted(path.name for path in home.iterdir()) == PUBLISHED
    for name in PUBLISHED:
        written, theirs = (json.loads((place / name).read_text()) for place in (home, published))
        for each in (written, theirs):  # theirs names no longest text
            each.pop("model_max_length", None)
        assert written == theirs, name


def test_what_lies_beside_the_tokenizer_goes_along_and_nothing_else(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    shutil.copytree(TINY_CHECKPOINT / "tokenizer", beside)
    (beside / "tokenizer_config.json").write_text('{"tokenizer_class": "Other"}')
    (beside / "special_tokens_map.json").unlink()
    (beside / "chat_template.jinja").write_text("{{ messages }}")
    (beside / "model.safetensors").write_bytes(b"large")
    home = _parts(tmp_path, beside)
    assert sorted(path.name for path in home.iterdir()) == ["chat_template.jinja", *PUBLISHED]
    assert json.loads((home / "tokenizer_config.json").read_text()) == {"tokenizer_class": "Other"}


def test_our_own_tokenizers_are_published_in_the_same_words(tmp_path: Path) -> None:
    write_tokenizer({bytes([byte]): byte for byte in range(256)}, tmp_path)
    made = published_tokenizer((tmp_path / "tokenizer.json").read_bytes())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made


def test_a_marker_that_the_tokenizer_has_not_is_not_named() -> None:
    content = json.dumps({"added_tokens": [{"id": 7, "content": "<|return|>"}]}).encode()
    made = published_tokenizer(content)
    assert json.loads(made["special_tokens_map.json"]) == {"eos_token": "<|return|>"}


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"added_tokens": [{"id": "x"}]}'])
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        published_tokenizer(content)


def test_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    home, text = _parts(tmp_path), "a red fox<|return|>"
    tokenizers = pytest.importorskip("tokenizers")
    expected = tokenizers.Tokenizer.from_file(str(home / "tokenizer.json")).encode(text).ids
    loaded = transformers.AutoTokenizer.from_pretrained(home)
    assert loaded(text)["input_ids"] == expected
    assert (loaded.pad_token, loaded.eos_token) == ("<|endoftext|>", "<|return|>")


def test_diffusers_reads_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from petzval.diffusers import LensPipeline

    home = _parts(tmp_path)
    loaded = LensPipeline.from_pretrained(home.parent)
    loaded.save_pretrained(tmp_path / "again")
    again = tmp_path / "again" / "tokenizer"
    assert sorted(path.name for path in again.iterdir()) == PUBLISHED
