"""Every control of the composer, and what happens to a job on its way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from petzval.inference.plan import PlannedImage
from petzval.server.settings import Limits
from tests.conftest import REPOSITORY
from tests.server.browser.conftest import Open
from tests.server.running import Running, running
from tests.server.scripted import ScriptedDrawer
from tests.support import until

pytestmark = pytest.mark.browser

LOCALES = REPOSITORY / "src" / "petzval" / "server" / "page" / "locales"


def _slide(page: Page, selector: str, value: str) -> None:
    page.locator(selector).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def _jobs(studio: Running) -> list[dict[str, Any]]:
    return studio.client.get("/v1/jobs").json()["data"]


def test_every_control_reaches_the_request(studio: Running, visit: Open) -> None:
    page = visit(studio.url)
    page.get_by_role("textbox", name="Prompt").fill("  a fox in the snow ")
    page.get_by_role("radio", name="other").click()
    page.get_by_role("radio", name="scripted").click()
    page.get_by_role("radio", name=re.compile("^16:9,")).click()
    page.get_by_role("radio", name="About 256 × 256").click()
    expect(page.locator("#pixels")).to_have_text("336 × 192")
    page.get_by_role("button", name="One picture more").click()
    page.get_by_role("button", name="One picture more").click()
    page.get_by_role("button", name="One picture fewer").click()
    page.get_by_label("Seed", exact=True).fill("9007199254740993")  # more than a float can hold
    page.get_by_text("More", exact=True).click()
    _slide(page, "#steps", "3")
    _slide(page, "#guidance", "2.5")
    page.get_by_label("Keep away from").fill("fog")
    _slide(page, "#loras input", "0.8")
    expect(page.get_by_role("button", name="Keep this seed")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.get_by_role("button", name="Create", exact=False).last.click()
    expect(page.locator(".frame img.there")).to_have_count(2)
    assert _jobs(studio)[0]["request"] == {
        "prompt": "a fox in the snow",
        "negative_prompt": "fog",
        "n": 2,
        "seed": 9007199254740993,
        "size": "336x192",
        "steps": 3,
        "guidance": 2.5,
        "model": "scripted",
        "loras": [{"name": "ink", "weight": 0.8}],
        "priority": "normal",
    }
    page.get_by_role("button", name="Back to the model's own settings").click()
    expect(page.locator("#steps-value")).to_have_text("4")
    expect(page.get_by_label("Keep away from")).to_have_value("")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.get_by_label("Prompt")).to_have_value("  a fox in the snow ")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("9007199254740993")


def test_a_seed_is_new_unless_it_is_kept(studio: Running, visit: Open) -> None:
    page = visit(studio.url)
    page.get_by_label("Prompt").fill("a fox")
    for _ in range(2):
        page.keyboard.press("Control+Enter")
        expect(page.locator("#create")).to_be_enabled()
    until(lambda: len(_jobs(studio)) == 2)
    assert len({job["request"]["seed"] for job in _jobs(studio)}) == 2
    page.get_by_role("button", name="Roll a new seed").click()
    rolled = page.get_by_label("Seed", exact=True).input_value()
    page.get_by_role("button", name="Keep this seed").click()
    for _ in range(2):
        page.keyboard.press("p")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#create")).to_be_enabled()
    until(lambda: len(_jobs(studio)) == 4)
    assert [str(job["request"]["seed"]) for job in _jobs(studio)[:2]] == [rolled, rolled]


def test_mistakes_are_said_in_words(tmp_path: Path, visit: Open) -> None:
    drawer = ScriptedDrawer()
    drawer.gate.clear()
    with running(tmp_path, drawer, limits=Limits(max_waiting=1)) as studio:
        page = visit(studio.url)
        page.get_by_role("button", name="Create").last.click()
        alert = page.locator("#composer-error")
        expect(alert).to_have_text("The prompt is blank. Say what to draw.")
        expect(page.get_by_label("Prompt")).to_be_focused()
        page.get_by_label("Prompt").fill("a fox")
        expect(alert).to_be_empty()
        page.get_by_role("button", name="Create").last.click()
        until(lambda: bool(_jobs(studio)) and _jobs(studio)[0]["status"] == "running")
        for _ in range(2):
            page.get_by_role("button", name="Create").last.click()
            expect(page.locator("#create")).to_be_enabled()
        expect(alert).to_contain_text("as much waiting as it takes")
        expect(alert).to_contain_text("1 of your jobs are waiting already")
        expect(alert).to_contain_text("Try again in 5 seconds.")


def test_a_picture_without_room_is_offered_smaller(studio: Running, visit: Open) -> None:
    studio.drawer.most_tokens = 64
    page = visit(studio.url)
    page.get_by_label("Prompt").fill("a fox")
    page.get_by_role("radio", name="About 512 × 512").click()
    page.get_by_role("button", name="Create").last.click()
    alert = page.locator("#composer-error")
    expect(alert).to_contain_text("needs more memory than the server has")
    expect(page.locator(".toast")).to_have_count(0)  # it is said once
    expect(page.get_by_label("Prompt")).to_have_attribute("aria-invalid", "false")
    expect(page.locator("#create")).to_be_focused()
    page.get_by_role("button", name="Create at 256 × 256").click()
    page.get_by_role("button", name="Create at 128 × 128").click()
    until(lambda: bool(_jobs(studio)))
    assert [job["request"]["size"] for job in _jobs(studio)] == ["128x128"]
    expect(alert).to_be_empty()
    expect(page.locator("#smaller")).to_be_hidden()
    expect(page.locator("#pixels")).to_have_text("128 × 128")

    studio.drawer.most_tokens = 0
    page.get_by_role("button", name="Create").last.click()
    expect(alert).to_contain_text("needs more memory than the server has")
    expect(page.locator("#smaller")).to_be_hidden()  # there is none


def test_steps_are_shown_as_they_come_and_a_job_can_be_stopped(tmp_path: Path, visit: Open) -> None:
    drawer = ScriptedDrawer(seconds=0.5)
    with running(tmp_path, drawer) as studio:
        page = visit(studio.url)
        page.get_by_label("Prompt").fill("a slow fox")
        page.get_by_text("More", exact=True).click()
        _slide(page, "#steps", "60")
        page.get_by_role("button", name="Create").last.click()
        bar = page.get_by_role("progressbar", name="Progress of a slow fox")
        expect(page.locator(".frame .preview")).to_be_visible()
        expect(page.locator(".standing").first).to_have_text(re.compile(r"Step \d+ of 60"))
        before = int(bar.get_attribute("aria-valuenow") or 0)
        until(lambda: int(bar.get_attribute("aria-valuenow") or 0) > before)
        drawer.gate.clear()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".sheet-of-job")).to_have_count(0)
        expect(page.locator("#queue-count")).to_be_hidden()
        assert _jobs(studio)[0]["status"] == "cancelled"


def test_the_queue(tmp_path: Path, visit: Open) -> None:
    drawer = ScriptedDrawer()
    drawer.gate.clear()
    with running(tmp_path, drawer) as studio:
        page = visit(studio.url)
        for prompt in ("first", "second", "third"):
            studio.submit(prompt=prompt)
        expect(page.locator("#queue-count")).to_have_text("3")
        page.get_by_role("heading", name="Petzval Studio").click()
        page.keyboard.press("q")
        queue = page.get_by_role("complementary", name="Queue")
        expect(queue.get_by_role("listitem")).to_have_count(3)
        second = queue.get_by_role("listitem").filter(has_text="second")
        expect(queue.get_by_role("listitem").filter(has_text="third")).to_contain_text("number 2")
        expect(second).to_contain_text("number 1 in line")
        second.get_by_role("button", name="Cancel").click()
        expect(second).to_contain_text("Cancelled")
        expect(page.locator("#queue-count")).to_have_text("2")
        page.keyboard.press("Escape")
        expect(queue).to_be_hidden()
        expect(page.get_by_role("button", name="Queue")).to_be_focused()
        drawer.gate.set()
        expect(page.locator("#queue-count")).to_be_hidden()
        page.get_by_role("button", name="Queue").click()
        expect(queue.get_by_text("Done")).to_have_count(2)


def test_a_job_that_fails_says_why_and_can_be_tried_again(tmp_path: Path, visit: Open) -> None:
    def fail(image: PlannedImage, step: int) -> None:
        raise RuntimeError("out of memory")

    drawer = ScriptedDrawer(fail=fail)
    with running(tmp_path, drawer) as studio:
        page = visit(studio.url)
        page.get_by_label("Prompt").fill("a fox")
        page.get_by_role("button", name="Create").last.click()
        sheet = page.locator(".sheet-of-job")
        expect(sheet).to_contain_text("the server failed to draw this")
        drawer.fail = None
        sheet.get_by_role("button", name="Try again").click()
        expect(page.locator(".frame img.there")).to_have_count(1)


def test_keys_alone_are_enough(studio: Running, visit: Open) -> None:
    page = visit(studio.url)
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keyboard")
    expect(keys.get_by_role("term")).to_have_count(22)
    page.keyboard.press("Escape")
    expect(keys).to_have_count(0)
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_role("radio", name=re.compile("^1:1,")).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name=re.compile("^4:3,"))).to_be_focused()
    expect(page.locator("#pixels")).to_have_text("144 × 112")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("?")  # a letter like others, in a field
    expect(keys).to_have_count(0)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    keys.get_by_role("checkbox").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).not_to_be_focused()


def test_an_idea_fills_the_prompt(studio: Running, visit: Open) -> None:
    page = visit(studio.url)
    page.get_by_role("button", name="Give me an idea").click()
    first = page.get_by_label("Prompt").input_value()
    page.get_by_role("button", name="Give me an idea").click()
    assert first and page.get_by_label("Prompt").input_value() not in ("", first)


def test_every_language_speaks(studio: Running, visit: Open) -> None:
    page = visit(studio.url)
    for code in ("zh", "es", "fr", "ja", "de"):
        words = json.loads((LOCALES / f"{code}.json").read_text(encoding="utf-8"))
        page.locator("#language").select_option(code)
        expect(page.locator("html")).to_have_attribute("lang", code)
        expect(page.locator("#create span")).to_have_text(words["create"])
        expect(page.locator(".welcome h3")).to_have_text(words["welcome.title"])
        expect(page.locator(".idea").first).to_have_text(words["idea.1"])
        shown = page.locator("body").inner_text()
        assert not re.findall(r"\b[a-z]+\.[a-z]+\b|\{\w+\}", shown)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("html")).to_have_attribute("lang", "de")
