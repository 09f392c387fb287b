from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from petzval.inference.variants import VARIANTS
from petzval.weights.registry import mirrors
from tests.cli.conftest import Run
from tests.hub_server import COMMIT, FakeHub, published_folder, serving, write_registry

REPOSITORY = "someone/Tiny"


@pytest.fixture
def hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeHub]:
    """A hub with one published folder, which the registry calls tiny, and one file of it."""
    with serving(tmp_path, monkeypatch) as hub:
        hub.files[REPOSITORY] = published_folder()
        vae = {"files": [{"pattern": "vae/diffusion_pytorch_model.safetensors"}], "holds": "vae"}
        path = write_registry(tmp_path / "own.json", {}, {"name": "tiny-vae", **vae})
        monkeypatch.setenv("PETZVAL_REGISTRY", str(path))
        yield hub


def test_without_a_name_everything_is_listed_with_its_licence(run: Run) -> None:
    code, out, err = run("pull")
    assert (code, err) == (0, "")
    assert all(name in out for name in mirrors())
    assert "MIT" in out and "Non-Commercial" in out
    rows = json.loads(run("pull", "--json")[1])
    assert [row["name"] for row in rows] == list(mirrors())
    assert all(row["folder"] is None and row["licences"] for row in rows)


def test_the_licence_is_shown_before_a_byte_is_fetched(run: Run, hub: FakeHub) -> None:
    code, out, err = run("pull", "tiny")
    assert (code, out) == (2, "")
    assert "licence  denoiser: MIT, as microsoft/Lens declared it" in err
    assert f"commit {COMMIT[:12]}" in err and "made for a test" in err
    assert "hash that the repository lists" in err
    assert err.splitlines()[-1] == "hint: read it above, then add --yes"
    assert not [asked for asked in hub.log if "/resolve/" in asked.path]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_a_person_is_asked(
    run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run("pull", "tiny")[0] == code
    assert bool([asked for asked in hub.log if "/resolve/" in asked.path]) == (code == 0)


def test_what_was_pulled_is_printed_and_found(run: Run, hub: FakeHub) -> None:
    code, out, _ = run("pull", "tiny", "tiny-vae", "--yes")
    assert code == 0
    folder, file = (Path(line) for line in out.splitlines())
    assert (folder / "model_index.json").is_file() and folder.name == COMMIT
    assert file == folder / "vae" / "diffusion_pytorch_model.safetensors"
    rows = {row["name"]: row for row in json.loads(run("pull", "--json")[1])}
    assert rows["tiny"]["folder"] == str(folder)
    rows = {row["name"]: row for row in json.loads(run("models", "--json")[1])}
    assert rows["lens-turbo"]["folder"] == str(folder)


def test_the_result_can_be_read_by_a_program(run: Run, hub: FakeHub, tmp_path: Path) -> None:
    code, out, _ = run("pull", "tiny", "-y", "--json", "--out", "here", "--endpoint", hub.url)
    result = json.loads(out)
    assert (code, result["name"], result["commit"]) == (0, "tiny", COMMIT)
    assert Path(result["folder"]) == Path("here")
    assert set(result["proof"].values()) == {"repository"}
    assert all(Path(name).is_file() for name in result["files"])


def test_offline_nobody_is_asked(run: Run, hub: FakeHub) -> None:
    code, out, err = run("pull", "tiny", "--offline")
    assert (code, out) == (2, "") and "petzval pull tiny" in err
    run("pull", "tiny", "--yes")
    hub.log.clear()
    code, out, err = run("pull", "tiny", "--offline")
    assert code == 0 and Path(out.strip()).is_dir() and "licence" in err
    assert not hub.log


def test_a_tampered_file_is_one_line_and_a_hint(run: Run, hub: FakeHub) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    hub.bodies[name] = hub.files[REPOSITORY][name][:-1] + b"!"
    code, out, err = run("pull", "tiny", "--yes")
    assert (code, out) == (2, "")
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert name in line and "removed" in line
    assert "hint: try again" in err


def test_a_missing_model_is_answered_with_the_command_that_fetches_it(run: Run) -> None:
    for name in ("lens-turbo", "lens-turbo-yucollection"):
        code, out, err = run("generate", "a fox", "--model", name)
        assert (code, out) == (2, "")
        assert f"`petzval pull {name}`" in err
    _, out, _ = run("models")
    published = [variant for variant in VARIANTS.values() if variant.repository]
    assert all(f"petzval pull {variant.name}" in out for variant in published)


def test_an_unknown_name_is_answered_with_the_nearest(run: Run) -> None:
    code, _, err = run("pull", "lens-trubo")
    assert code == 2 and "lens-turbo" in err


def test_the_list_needs_neither_torch_nor_the_client(run: Run) -> None:
    words = "import sys; from petzval.cli.main import main; main(['pull'])"
    check = "assert not {'torch', 'huggingface_hub'} & set(sys.modules), 'too much'"
    subprocess.run([sys.executable, "-c", f"{words}; {check}"], check=True, capture_output=True)
