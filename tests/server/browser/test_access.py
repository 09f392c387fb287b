"""The page for everybody: axe-core has nothing serious to say, light or dark, wide or narrow."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Open
from tests.server.running import Running

pytestmark = pytest.mark.browser


def _findings(page: Page, where: str) -> list[str]:
    """What is serious or worse, with the element it was found at."""
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{where}: {each['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for each in violations
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_axe_finds_nothing_serious(gallery: Running, visit: Open, width: int, scheme: str) -> None:
    page = visit(gallery.url, width=width, color_scheme=scheme)
    expect(page.locator(".tile img.there").first).to_be_visible()
    if width < 600:
        page.locator("#options > summary").click()
    page.locator("#more > summary").click()
    page.get_by_label("Prompt").fill("a fox")
    page.get_by_role("button", name="Create").last.click()
    expect(page.locator(".frame img.there")).to_be_visible()
    found = _findings(page, "the page")
    page.get_by_role("button", name="Queue").click()
    found += _findings(page, "the queue")
    page.keyboard.press("Escape")
    page.locator(".frame .open").click()
    found += _findings(page, "the viewer")
    page.keyboard.press("c")
    page.get_by_role("button", name="a red fox, seed 40").focus()
    page.keyboard.press("c")
    expect(page.get_by_role("dialog", name="Side by side")).to_be_visible()
    found += _findings(page, "the comparison")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keyboard").click()
    found += _findings(page, "the keys")
    assert not found, "\n".join(found)
