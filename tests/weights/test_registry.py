from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petzval.errors import ConfigError, RequestError
from petzval.inference.variants import VARIANTS
from petzval.weights import registry as registry_module
from petzval.weights.hub_cache import cache_folder, commit_of, pulled_folder, snapshots
from petzval.weights.registry import FilePattern, find_mirror, is_safe, mirrors, read_registry
from tests.hub_server import VARIABLES, write_registry

BUILT_IN = Path(registry_module.__file__).with_name("mirrors.json")


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_every_published_variant_can_be_pulled_by_its_own_name() -> None:
    published = [variant for variant in VARIANTS.values() if variant.repository]
    for variant in published:
        mirror = find_mirror(variant.name)
        assert (mirror.holds, mirror.model) == ("checkpoint", variant.name)
    assert {mirror.model for mirror in mirrors().values()} - {None} == {v.name for v in published}
    assert not set(mirrors()) & {v.name for v in VARIANTS.values() if not v.repository}


def test_the_built_in_table_says_what_is_known_and_what_is_not() -> None:
    table = mirrors()
    assert len(table) > 20
    for mirror in table.values():
        assert mirror.licences and mirror.provenance
        hashes = {known.sha256 for known in mirror.known.values()} - {None}
        weights = [name for name in mirror.known if name.endswith((".safetensors", ".gguf"))]
        words = mirror.provenance
        # Where no weights can be proven, the table says so.
        assert (
            weights
            or "not known" in words
            or "as the repository" in words
            or ("put together" in words or mirror.is_pinned)
        ), mirror.name
        assert all(len(sha256 or "") == 64 for sha256 in hashes)


def test_the_autoencoder_is_not_called_free_where_it_is_not() -> None:
    for mirror in mirrors().values():
        names = [each.name for each in mirror.licences if each.part == "autoencoder"]
        expected = "Apache-2.0" if mirror.name == "flux2-vae-klein" else "Non-Commercial"
        assert all(expected in name for name in names)
        assert bool(names) == (mirror.holds in ("checkpoint", "vae"))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="unknown mirror 'lens-trubo'") as caught:
        find_mirror("lens-trubo")
    assert "lens-turbo" in caught.value.hint
    with pytest.raises(RequestError) as caught:
        find_mirror("\x1b[2J" * 100)
    assert "petzval pull" in caught.value.hint


def test_a_registry_of_ones_own_adds_and_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_registry(tmp_path / "own.json", {}, {"name": "lens", "repository": "a/b"})
    monkeypatch.setenv("PETZVAL_REGISTRY", str(path))
    assert find_mirror("TINY").repository == "someone/Tiny"
    assert find_mirror("lens").repository == "a/b"
    assert find_mirror("lens-base").repository == "Jinstudio/Lens-Base"
    monkeypatch.setenv("PETZVAL_REGISTRY", str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match=r"absent\.json: no such file, but PETZVAL_REGISTRY"):
        mirrors()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../evil"},
        {"name": "Tiny"},
        {"name": ""},
        {"repository": "no-owner"},
        {"repository": "a/../b"},
        {"repository": "a/b/c"},
        {"repository": "http://x/y"},
        {"revision": "refs/pr/1"},
        {"revision": "../x"},
        {"holds": "virus"},
        {"licences": []},
        {"licences": ["unheard-of"]},
        {"layout": "unheard-of"},
        {"layout": None},
        {"files": [{"pattern": "../x.json"}]},
        {"files": [{"pattern": "/x.json"}]},
        {"files": [{"pattern": "x.py"}]},
        {"files": [{"pattern": "x.bin"}]},
        {"files": [{"pattern": "x\\y.json"}]},
        {"files": [{"pattern": "x.json"}], "layout": "published"},
        {"known": {"vae/config.json": {"sha256": "abc"}}},
        {"known": {"vae/config.json": {"num_bytes": -1}}},
        {"known": {"vae/other.json": {"num_bytes": 1}}},
        {"title": "two\nlines"},
        {"provenance": "\x1b[2J"},
        {"colour": "red"},
    ],
)
def test_a_row_that_is_wrong_is_refused_by_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_registry(tmp_path / "own.json", changes)
    with pytest.raises(ConfigError, match=r"own\.json"):
        read_registry(path)


def test_a_name_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listed twice"):
        read_registry(write_registry(tmp_path / "own.json", {}, {}))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_registry_is_refused_or_read_and_nothing_else(
    data: st.DataObject, tmp_path: Path
) -> None:
    """One value of the built-in table, anywhere in it, becomes something else."""
    document: Any = json.loads(BUILT_IN.read_text(encoding="utf-8"))
    document["mirrors"] = document["mirrors"][:1]
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=3,
    )
    place: Any = document
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(anything)
            break
        place = place[key]
    path = tmp_path / "fuzzed.json"
    path.write_text(json.dumps(document))
    try:
        read = read_registry(path)
    except ConfigError as error:
        assert "fuzzed.json" in error.message
    else:
        assert all(is_safe(file.pattern) for mirror in read.values() for file in mirror.files)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"mirrors": []}', '{"a": ' * 100_000])
def test_a_file_that_is_no_registry_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(ConfigError, match=r"own\.json"):
        read_registry(tmp_path / "own.json")


def test_a_pattern_stays_on_its_level() -> None:
    pattern = FilePattern(pattern="text_encoder/model*.safetensors")
    assert pattern.matches("text_encoder/model-00001-of-00003.safetensors")
    assert not pattern.matches("text_encoder/original/model.safetensors")
    assert not pattern.matches("model.safetensors")
    assert not pattern.matches("other/text_encoder/model.safetensors")


def test_the_cache_lies_where_the_client_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", "~nobody-of-that-name/x")
    with pytest.raises(RequestError, match="not known here"):
        cache_folder()


@pytest.mark.parametrize(
    "content", [b"../../evil", b"/etc", b"..", b"", b"a/b", b"a\\b", b"\xff\xfe", b"x" * 10_000]
)
def test_a_forged_branch_leads_nowhere(tmp_path: Path, content: bytes) -> None:
    mirror = find_mirror("lens-turbo")
    ref = tmp_path / "hf" / "hub" / "models--Jinstudio--Lens-Turbo" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_bytes(content)
    commit = commit_of(mirror.repository, "main")
    assert commit is None or commit == "x" * 200
    assert pulled_folder(mirror) is None
    assert all(path.parent.name == "snapshots" for path in snapshots(mirror.repository))
