"""The page in every language it speaks: nothing is cut off, nothing sticks out, also on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Open
from tests.server.running import Running, running

pytestmark = pytest.mark.browser

LANGUAGES = ("en", "zh", "es", "fr", "ja", "de")
PROMPTS = {
    "zh": "一座红色的小木屋，坐落在积雪覆盖的山谷里，黄昏的光线，炊烟袅袅升起，远处是冷杉林",
    "ja": "雪に覆われた谷にたたずむ赤い小さな山小屋、夕暮れの光、煙突から立ちのぼる煙、モミの森",
    "de": "Donaudampfschifffahrtsgesellschaftskapitänsmütze auf einem Holztisch, Abendlicht",
}

OVERFLOWS = Path(__file__).with_name("overflows.js").read_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with pictures of prompts in several scripts."""
    with running(tmp_path_factory.mktemp("studio")) as studio:
        for number, prompt in enumerate(PROMPTS.values()):
            asked = {"prompt": prompt, "n": 2, "seed": 60 * number + 40, "size": "128x128"}
            studio.wait(studio.submit(**asked, steps=2)["id"])
        yield studio


def walk(page: Page, prompt: str) -> Iterator[str]:
    """Go through the page; each name is of what is seen then."""
    page.locator(".tile img.there").first.wait_for()
    yield "wall"
    page.locator("#search").fill("nothing is called so")
    page.locator("#wall-note h3").wait_for()
    yield "nothing found"
    page.locator("#wall-note button").click()
    page.locator("#create").click()
    expect(page.locator("#composer-error")).not_to_be_empty()
    if not page.locator("#more > summary").is_visible():
        page.locator("#options > summary").click()
    page.locator("#more > summary").click()
    yield "options"
    page.locator("#prompt").fill(prompt)
    page.locator("#create").click()
    page.locator(".frame img.there").wait_for()
    yield "bench"
    page.locator("#queue-button").click()
    yield "queue"
    page.keyboard.press("Escape")
    page.locator(".frame .open").click()
    page.locator(".viewer img.there").wait_for()
    yield "viewer"
    page.keyboard.press("c")
    page.locator(".tile .open").nth(2).focus()
    page.keyboard.press("c")
    page.locator("dialog[open]").wait_for()
    yield "comparison"
    page.keyboard.press("Escape")
    page.locator("#help-button").click()
    yield "keys"
    page.keyboard.press("Escape")
    page.locator("#grid-button").click()
    yield "grid"


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_overflows(pictures: Running, visit: Open, language: str, width: int) -> None:
    page = visit(pictures.url, width=width, height=844, has_touch=width < 600)
    page.locator("#language").select_option(language)
    expect(page.locator("html")).to_have_attribute("lang", language)
    found: list[str] = []
    for seen in walk(page, PROMPTS.get(language, "a red fox in the snow")):
        found += [f"{seen}: {each}" for each in page.evaluate(OVERFLOWS)]
    assert not found, "\n".join(found)
