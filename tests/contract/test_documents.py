"""The pages say what is there: links lead somewhere, and the commands in them run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.tree import REPOSITORY, tracked_files

FOLDERS = (".", "docs", "docs/*", "benchmarks", "research", "tests/goldens")
PAGES = sorted(page for folder in FOLDERS for page in REPOSITORY.glob(f"{folder}/*.md"))
LINK = re.compile(r"\[(`?)([^\]`]*)\1\]\(([^)#\s]+)\)")


def _name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [match[3] for match in LINK.finditer(text) if "://" not in match[3]]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_a_linked_name_is_in_the_file_it_links_to() -> None:
    """`[`MMDiT.modulations`](src/…/mmdit.py)`: the last part of the name is defined there."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    links = [(m[2], m[3]) for m in LINK.finditer(text) if m[1] and m[3].endswith(".py")]
    assert len(links) > 15
    for name, target in links:
        if "/" in name or name == Path(target).stem:
            continue
        source = (REPOSITORY / target).read_text(encoding="utf-8")
        last = name.split(".")[-1]
        assert re.search(rf"^\s*(def|class) {last}\b", source, re.MULTILINE), (name, target)


def test_tests_that_pages_name_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`(tests/[\w/]+\.py)", page.read_text(encoding="utf-8")):
            assert (REPOSITORY / path).exists(), f"{_name(page)} names {path}"


def _shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


WITH_COMMANDS = [page for page in PAGES if _shell_blocks(page)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=_name)
def test_the_commands_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(_shell_blocks(page))
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_are_commands_to_run() -> None:
    assert {"README.md", "docs/guides/quickstart.md"} <= {_name(page) for page in WITH_COMMANDS}


def test_pages_are_under_version_control() -> None:
    tracked = set(tracked_files())
    assert [_name(page) for page in PAGES if page not in tracked] == []
