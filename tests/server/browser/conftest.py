"""The studio's page in the operating system's own Chromium."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import CHROMIUM
from tests.server.running import Running, running

SECONDS = 60.0
"""Patience, for machines that have much else to do."""

expect.set_options(timeout=SECONDS * 1000)


@dataclass(kw_only=True, eq=False)
class Visit:
    """A page that somebody looks at, and what went wrong in it.

    Attributes:
        problems: errors of scripts, breaches of the content security policy, failed assertions.
        lost: requests that got no answer.
    """

    page: Page
    problems: list[str] = field(default_factory=list[str])

    def hear(self) -> None:
        """Collect what the browser has to complain about."""
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            lambda message: (
                self.problems.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )


Open: TypeAlias = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Generator[Browser]:
    """One browser for the tests of a file; while it lives, no test can run a loop of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Generator[Open]:
    """`visit(url, width=…)`: a fresh visitor's page, ready; scripts may not have failed after."""
    visits: list[Visit] = []

    def open_page(
        url: str, *, width: int = 1280, height: int = 900, ready: bool = True, **context: Any
    ) -> Page:
        made = chromium.new_context(
            viewport={"width": width, "height": height},
            locale="en-GB",
            reduced_motion="reduce",
            **context,
        )
        made.set_default_timeout(SECONDS * 1000)
        visit = Visit(page=made.new_page())
        visits.append(visit)
        visit.hear()
        visit.page.goto(url)
        if ready:
            visit.page.wait_for_selector("html[data-ready]")
        return visit.page

    yield open_page
    for visit in visits:
        visit.page.context.close()
    assert [visit.problems for visit in visits] == [[] for _ in visits]


@pytest.fixture
def gallery(tmp_path: Path) -> Generator[Running]:
    """A server with six finished pictures of three prompts."""
    with running(tmp_path) as studio:
        for prompt in ("a red fox", "a blue fox", "a green hill"):
            studio.wait(studio.submit(prompt=prompt, n=2, seed=40, size="128x128", steps=2)["id"])
        yield studio
