"""Pictures of the studio's page: `python -m docs.studio_pictures http://127.0.0.1:8000`.

Looks at a studio that runs already and has some pictures, at three widths, by day and by night, and
draws one more to be seen while it is drawn. Needs Chromium, as the tests of the page do.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PICTURES = Path(__file__).resolve().parent / "pictures"
WIDTHS = {"phone": (390, 844), "tablet": (1024, 768), "wide": (1600, 1000)}
PROMPT = "a rocket on a dark blue background, 3D render"
MOST_BYTES = 150_000
_PATIENCE_MS = 300_000


def main(address: str) -> None:
    """Write `studio-<width>-<light or dark>.webp`, and some of what one may do."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("PETZVAL_CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = _visit(browser, address, "wide", "light")
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_role("button", name="Create").last.click()
        page.get_by_text(re.compile(r"Step ([5-9]|1\d) of")).wait_for()
        _keep(page, "studio-drawing")
        page.wait_for_selector(".frame img.there")
        _keep(page, "studio-wide-light")
        page.locator(".frame .open").click()
        page.wait_for_selector(".viewer img.there")
        _keep(page, "studio-picture")
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                if (width, scheme) != ("wide", "light"):
                    _keep(_visit(browser, address, width, scheme), f"studio-{width}-{scheme}")
        browser.close()


def _visit(browser: Browser, address: str, width: str, scheme: str) -> Page:
    across, down = WIDTHS[width]
    context = browser.new_context(
        viewport={"width": across, "height": down},
        color_scheme="dark" if scheme == "dark" else "light",
        has_touch=width == "phone",
        reduced_motion="reduce",
    )
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    page.locator(".tile img.there").nth(5).wait_for()
    return page


def _keep(page: Page, name: str) -> None:
    """Write what is to be seen as WebP, in the best quality that is small enough."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    for quality in (92, 85, 75, 60):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() < MOST_BYTES:
            break
    (PICTURES / f"{name}.webp").write_bytes(buffer.getvalue())
    page.evaluate("document.activeElement?.blur()")
    print(name, buffer.tell())


if __name__ == "__main__":
    main(sys.argv[1])
