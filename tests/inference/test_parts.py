"""Parts from different places, named one by one or in a petzval.toml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.errors import ConfigError, PetzvalError, RequestError
from petzval.inference import opening
from petzval.inference.opening import open_checkpoint
from petzval.inference.parts import NO_PARTS, Parts, read_parts
from petzval.inference.pipeline import Pipeline
from petzval.inference.variants import Defaults, locate
from petzval.models.sizes import LENS_GPT_OSS
from tests.weights.formats import comfyui_encoder, original_vae, saved, settings, stored

REQUEST: dict[str, Any] = {"seed": 3, "size": "64x48", "steps": 2, "guidance": 1.0}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three files of parts, and nothing else, in one folder."""
    saved(tmp_path / "d.safetensors", stored("denoiser"), settings("denoiser"))
    saved(tmp_path / "e.safetensors", comfyui_encoder(), settings("encoder"))
    saved(tmp_path / "v.safetensors", original_vae(), settings("vae"))
    return tmp_path


THREE = 'denoiser = "d.safetensors"\nencoder = "e.safetensors"\nvae = "v.safetensors"\n'


def toml(folder: Path, text: str) -> Path:
    file = folder / "petzval.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_of_parts_draws_and_names_itself(files: Path) -> None:
    file = toml(files, f'name = "mine"\n{THREE}[defaults]\nsteps = 4\nguidance = 1.0\n')
    located = locate(file)
    assert (located.name, located.base) == ("mine", None)
    assert located.defaults == Defaults(steps=4, guidance=1.0)
    pipeline = Pipeline.load(file, device="cpu", dtype="float32")
    [image] = pipeline.generate("a red fox", **REQUEST)
    assert image.recipe.model == "mine"
    assert image.recipe.checkpoint == pipeline.identity
    # The same parts, named one by one.
    again = Pipeline.load(
        None,
        device="cpu",
        dtype="float32",
        denoiser=files / "d.safetensors",
        encoder=files / "e.safetensors",
        vae=files / "v.safetensors",
    )
    assert again.name == "d"
    assert again.identity == pipeline.identity
    [same] = again.generate("a red fox", **REQUEST)
    assert torch.equal(torch.as_tensor(same.pixels.copy()), torch.as_tensor(image.pixels.copy()))


def test_parts_take_the_place_of_a_models_own(files: Path, golden_checkpoint: Path) -> None:
    whole = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    mixed = Pipeline.load(
        golden_checkpoint, device="cpu", dtype="float32", vae=files / "v.safetensors"
    )
    [expected] = whole.generate("a red fox", **REQUEST)
    [image] = mixed.generate("a red fox", **REQUEST)
    assert (expected.pixels == image.pixels).all()  # the same numbers under other names
    file = toml(files, f'model = "{golden_checkpoint}"\nvae = "v.safetensors"\n')
    located = locate(file)
    assert located.base == golden_checkpoint
    assert located.parts == Parts(vae=files / "v.safetensors")
    assert open_checkpoint(located).identity == mixed.identity
    with pytest.raises(RequestError, match="put together from several places") as caught:
        _ = located.folder
    assert "petzval convert" in caught.value.hint


def test_options_win_over_the_file(files: Path, golden_checkpoint: Path) -> None:
    file = toml(files, THREE)
    located = locate(file, Parts.of(vae=golden_checkpoint / "vae"))
    assert located.parts.vae == golden_checkpoint / "vae"
    assert located.parts.denoiser == files / "d.safetensors"
    assert locate(file, NO_PARTS).parts.vae == files / "v.safetensors"


def test_gpt_oss_own_tokenizer_is_at_hand(
    files: Path, monkeypatch: pytest.MonkeyPatch, golden_checkpoint: Path
) -> None:
    state = {key: tensor for key, tensor in comfyui_encoder().items() if key != "tokenizer_json"}
    saved(files / "e.safetensors", state, settings("encoder"))
    located = locate(toml(files, THREE))
    with pytest.raises(PetzvalError, match="holds no tokenizer"):
        open_checkpoint(located)
    # An encoder with the published number of rows: as if this one had them.
    content = (golden_checkpoint / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    monkeypatch.setattr(opening, "LENS_GPT_OSS", replace(LENS_GPT_OSS, vocab_size=704))
    uncached = opening._packaged_tokenizer.__wrapped__  # else it is what another test made
    monkeypatch.setattr(opening, "_packaged_tokenizer", uncached)
    monkeypatch.setattr(opening, "load_ranks", dict)
    monkeypatch.setattr(opening, "tokenizer_json", lambda _: content)
    assert open_checkpoint(located).tokenizer == content.encode()


WRONG: list[tuple[str, type[PetzvalError], str]] = [
    ("denoiser = ", ConfigError, "is no TOML"),
    ("denoizer = 'd.safetensors'", ConfigError, "unknown setting 'denoizer'"),
    ("denoiser = 3", ConfigError, "setting 'denoiser' must be a text"),
    ("vae = ''", ConfigError, "setting 'vae' must be a text"),
    ("vae = 'v.safetensors'", RequestError, "names no denoiser and no encoder"),
    ("vae = 'gone.safetensors'", RequestError, "does not exist"),
    (THREE + "defaults = 4", ConfigError, "setting 'defaults' must be a table"),
    (THREE + "[defaults]\nstep = 4", ConfigError, "unknown setting 'step'"),
    (THREE + "[defaults]\nsteps = 0", ConfigError, "'steps' must be at least 1"),
    (THREE + "[defaults]\nbase = 999", PetzvalError, "base 999 is none of"),
    (THREE + 'name = "two\\nlines"', ConfigError, "text on one line"),
    ("model = 'no such model'", RequestError, "unknown model"),
    ("model = 'petzval.toml'", ConfigError, "names itself"),
]


@pytest.mark.parametrize(("text", "kind", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_a_wrong_file_is_answered(
    files: Path, text: str, kind: type[PetzvalError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        locate(toml(files, text))


def test_what_is_missing_is_named(files: Path) -> None:
    with pytest.raises(RequestError, match="no encoder and no vae is named") as caught:
        locate(None, Parts.of(denoiser=files / "d.safetensors"))
    assert "--model" in caught.value.hint
    with pytest.raises(RequestError, match="the denoiser 'nothing' does not exist"):
        Parts.of(denoiser="nothing")
    with pytest.raises(ConfigError, match="larger than"):
        read_parts(toml(files, "#" * (1 << 21)))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_parts(files / "none.toml")
