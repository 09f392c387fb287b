from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.cli import options
from petzval.errors import CheckpointError, ConfigError, RequestError
from petzval.inference.variants import DEFAULT_MODEL, VARIANTS, Defaults, locate, places
from petzval.weights.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No models but those that a test puts there."""
    monkeypatch.delenv("PETZVAL_MODELS", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def _checkpoint(folder: Path, card: object = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    if card is not None:
        (folder / "petzval.json").write_text(json.dumps(card))
    return folder


def test_each_variant_knows_its_steps_and_guidance() -> None:
    wanted = {
        "lens-base": (50, 5.0),
        "lens": (20, 5.0),
        "lens-turbo": (4, 1.0),
        "mini": (20, 4.0),
        "mini-turbo": (4, 1.0),
    }
    assert {
        name: (variant.defaults.steps, variant.defaults.guidance)
        for name, variant in VARIANTS.items()
    } == wanted


def test_a_folder_of_models_is_searched_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _checkpoint(tmp_path / "models" / "lens-turbo")
    monkeypatch.setenv("PETZVAL_MODELS", str(tmp_path / "models"))
    assert locate("Lens-Turbo").folder == folder
    assert locate("lens-turbo").defaults == Defaults(steps=4, guidance=1.0, base=1024)


def test_the_cache_of_published_files_is_searched(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "hub" / "models--microsoft--Lens"
    _checkpoint(entry / "snapshots" / "aaa")
    newest = _checkpoint(entry / "snapshots" / "bbb")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("bbb\n")
    assert locate("lens").folder == newest


def test_a_folder_takes_its_own_card_before_its_namesakes_defaults(tmp_path: Path) -> None:
    named = _checkpoint(tmp_path / "lens-base")
    assert locate(named).defaults.steps == 50
    own = _checkpoint(tmp_path / "mine", {"steps": 8, "guidance": 2, "base": 256, "note": "x"})
    assert locate(str(own)).defaults == Defaults(steps=8, guidance=2.0, base=256)
    assert locate(own).name == "mine"


def test_a_checkpoint_keeps_its_name_wherever_it_lies(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "export", {"name": "mini", "steps": 8})
    assert locate(folder).name == "mini"
    assert locate(str(folder)).name == "mini"


@pytest.mark.parametrize(
    "card",
    [[], {"steps": 0}, {"steps": "many"}, {"guidance": -1}, {"base": 1000}]
    + [{"name": name} for name in ("", " ", 3, "a\nb", "\x1b[2J", "x" * 81)],
)
def test_a_damaged_card_is_refused_by_name(tmp_path: Path, card: object) -> None:
    folder = _checkpoint(tmp_path / "mine", card)
    with pytest.raises((ConfigError, CheckpointError), match=r"petzval\.json"):
        locate(folder)


@pytest.mark.parametrize("name", ["lense", "", " ", "/no/such/folder", "x" * 5000, "a\0b"])
def test_an_unknown_model_lists_what_is_known(name: str) -> None:
    with pytest.raises(RequestError, match="unknown model") as caught:
        locate(name)
    assert all(variant in caught.value.hint for variant in VARIANTS)


def test_an_absent_variant_says_where_it_belongs() -> None:
    with pytest.raises(CheckpointError, match="not on this machine") as caught:
        locate("lens-turbo")
    assert "PETZVAL_MODELS" in caught.value.hint


def test_a_lone_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RequestError, match="is a file"):
        locate(tmp_path / "model.safetensors")


def test_the_shipped_variant_is_looked_for_inside_the_package() -> None:
    first = next(iter(places(VARIANTS["mini"])))
    assert first.parts[-3:] == ("petzval", "assets", "mini")


def _shipped(name: str) -> Path:
    return next(iter(places(VARIANTS[name])))


def test_what_ships_is_small() -> None:
    sizes = {
        name: sum(path.stat().st_size for path in _shipped(name).rglob("*") if path.is_file())
        for name in ("mini", "mini-turbo")
    }
    assert sizes[DEFAULT_MODEL] <= 48e6
    assert sum(sizes.values()) <= 96e6


def test_the_default_draws_in_four_steps_without_guidance() -> None:
    located = locate(DEFAULT_MODEL)
    assert located.name == DEFAULT_MODEL == options.DEFAULT_MODEL
    assert located.defaults == Defaults(steps=4, guidance=1.0, base=256)


def test_the_student_differs_from_its_parent_in_the_denoiser_alone() -> None:
    student, parent = Checkpoint.open(_shipped("mini-turbo")), Checkpoint.open(_shipped("mini"))
    assert student.denoiser_config == parent.denoiser_config
    assert student.identity != parent.identity
    for part in ("text_encoder", "vae", "tokenizer"):
        files = sorted(path for path in (_shipped("mini") / part).rglob("*") if path.is_file())
        assert files
        for path in files:
            twin = _shipped("mini-turbo") / path.relative_to(_shipped("mini"))
            assert twin.read_bytes() == path.read_bytes()
