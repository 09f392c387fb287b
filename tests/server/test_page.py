"""The page's files, without a browser: words, names, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from petzval.server.routes.page import FOLDER
from tests.server.running import Running

LANGUAGES = ("de", "es", "fr", "ja", "zh")
SCRIPTS = sorted(FOLDER.glob("*.js"))
HTML = (FOLDER / "index.html").read_text(encoding="utf-8")

OF_FAMILIES = {"idea", "job", "theme", "recipe", "keys"}
"""Keys that are put together in scripts: t(`job.${status}`)."""


def _words(language: str) -> dict[str, Any]:
    return json.loads((FOLDER / "locales" / f"{language}.json").read_text(encoding="utf-8"))


def _texts(entry: str | dict[str, str]) -> list[str]:
    return [entry] if isinstance(entry, str) else list(entry.values())


def _places(entry: str | dict[str, str]) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", " ".join(_texts(entry))))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_word_with_the_same_places(language: str) -> None:
    english, words = _words("en"), _words(language)
    assert list(words) == list(english)
    for key, entry in words.items():
        assert all(text.strip() for text in _texts(entry)), key
        assert isinstance(entry, str) == isinstance(english[key], str), key
        assert isinstance(entry, str) or "other" in entry, key
        assert _places(entry) == _places(english[key]), key


def _used() -> set[str]:
    scripts = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    used = set(re.findall(r"\bt\(\s*\"([\w.]+)\"", scripts))
    used |= set(re.findall(r"\[\"[^\"]+\", \"(keys\.\w+)\"\]", scripts))
    used |= set(re.findall(r"t\(wanted \? \"([\w.]+)\" : ", scripts)) | {"favourite.off"}
    return used | set(re.findall(r"data-t(?:-\w+)?=\"([\w.]+)\"", HTML))


def test_every_word_is_there_and_is_needed() -> None:
    english = set(_words("en"))
    assert _used() - english == set()
    assert {key for key in english - _used() if key.split(".")[0] not in OF_FAMILIES} == set()


def test_names_in_the_page_are_given_once_and_scripts_find_them() -> None:
    names = re.findall(r'\bid="([^"]+)"', HTML)
    assert len(names) == len(set(names))
    made = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    wanted = set(re.findall(r'\$\("#([\w-]+)"\)', made))
    assert wanted - set(names) == set()
    assert set(re.findall(r'href="#(i-\w+)"', HTML)) - set(names) == set()
    icons = set(re.findall(r'(?:icon|button)\(\s*"(\w+)"', made))
    assert {f"i-{icon}" for icon in icons} - set(names) == set()


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", HTML)
    for path in (*SCRIPTS, FOLDER / "index.html", FOLDER / "studio.css"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text), path.name
        assert "innerHTML" not in text and "eval(" not in text


def test_scripts_can_be_read_in_one_sitting() -> None:
    lengths = {path.name: path.read_text(encoding="utf-8").count("\n") for path in SCRIPTS}
    assert max(lengths.values()) <= 520, lengths


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("static/studio.js", "text/javascript; charset=utf-8"),
        ("static/studio.css", "text/css; charset=utf-8"),
        ("static/locales/ja.json", "application/json"),
        ("static/icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_of_the_page_is_served_with_its_type(studio: Running, name: str, kind: str) -> None:
    answer = studio.client.get(f"/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["../app.py", "..%2f..%2fapp.py", "locales", "no.js", "%00"])
def test_no_other_file_is_served(studio: Running, name: str) -> None:
    answer = studio.client.get(f"/static/{name}")
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_every_file_travels_with_the_package() -> None:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert '"server/page/**/*"' in project.read_text(encoding="utf-8")
