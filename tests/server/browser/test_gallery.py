"""The wall and what can be done with a picture."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from petzval.inference.image import read_recipe
from tests.server.browser.conftest import Open
from tests.server.running import Running, running
from tests.support import until

pytestmark = pytest.mark.browser

TILES = ".tile:not([hidden])"


def _pictures(studio: Running) -> list[dict[str, Any]]:
    return studio.client.get("/v1/pictures").json()["data"]


def _last_request(studio: Running) -> dict[str, Any]:
    return studio.client.get("/v1/jobs").json()["data"][0]["request"]


def _tile(page: Page, name: str) -> Any:
    return page.locator(TILES).filter(has=page.get_by_role("button", name=name))


def test_searching_and_favourites(gallery: Running, visit: Open) -> None:
    page = visit(gallery.url)
    expect(page.locator(TILES)).to_have_count(6)
    page.get_by_role("searchbox").fill("fox")
    expect(page.locator(TILES)).to_have_count(4)
    page.get_by_role("searchbox").fill("fox red")
    expect(page.locator(TILES)).to_have_count(2)
    expect(page.locator("#polite")).to_have_text("2 pictures found")
    _tile(page, "a red fox, seed 41").hover()
    _tile(page, "a red fox, seed 41").get_by_role("button", name="Favourite").click()
    expect(page.locator("#polite")).to_have_text("Added to your favourites")
    page.get_by_role("searchbox").fill("zebra")
    expect(page.get_by_text("No picture here answers to that")).to_be_visible()
    page.get_by_role("button", name="Show all pictures").click()
    expect(page.locator(TILES)).to_have_count(6)
    page.get_by_role("button", name="Favourites").click()
    expect(page.locator(TILES)).to_have_count(1)
    assert [p["seed"] for p in _pictures(gallery) if p["favourite"]] == [41]
    page.locator(f"{TILES} .open").focus()
    page.keyboard.press("f")
    expect(page.locator("#polite")).to_have_text("Taken out of your favourites")
    assert not any(p["favourite"] for p in _pictures(gallery))


def _wait_for_pictures(gallery: Running, count: int) -> None:
    """The page shows a deletion before the server has heard of it."""
    until(lambda: len(_pictures(gallery)) == count)


def test_deleting_can_be_undone(gallery: Running, visit: Open) -> None:
    page = visit(gallery.url)
    expect(page.locator(TILES)).to_have_count(6)
    order = page.locator(f"{TILES} .open").evaluate_all("all => all.map(each => each.ariaLabel)")
    page.get_by_role("button", name="a blue fox, seed 40").focus()
    page.keyboard.press("Delete")
    expect(page.locator(TILES)).to_have_count(5)
    page.locator(".toast", has_text="The picture was deleted.").hover()  # then the note stays
    _wait_for_pictures(gallery, 5)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(TILES)).to_have_count(6)
    expect(page.locator("#polite")).to_have_text("The picture is back.")
    page.get_by_role("button", name="a green hill, seed 41").focus()
    page.keyboard.press("Delete")
    expect(page.locator(TILES)).to_have_count(5)
    page.keyboard.press("Control+z")
    expect(page.locator("#polite")).to_have_text("The picture is back.")
    after = page.locator(f"{TILES} .open").evaluate_all("all => all.map(each => each.ariaLabel)")
    assert after == order
    _wait_for_pictures(gallery, 6)
    page.get_by_role("button", name="a red fox, seed 41").focus()
    page.keyboard.press("Delete")
    expect(page.locator(TILES)).to_have_count(5)
    _wait_for_pictures(gallery, 5)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator(TILES)).to_have_count(5)  # also not brought back by the list of jobs
    page.wait_for_timeout(200)
    expect(page.locator(TILES)).to_have_count(5)


def test_the_viewer_and_its_actions(gallery: Running, visit: Open, tmp_path: Path) -> None:
    page = visit(gallery.url)
    page.locator(f"{TILES} .open").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog", name="Picture")
    expect(viewer.locator("blockquote")).to_have_text("a green hill")
    page.keyboard.press("ArrowRight")
    expect(viewer.locator("blockquote")).to_have_text("a blue fox")
    expect(viewer.locator("img")).to_have_attribute("alt", "a blue fox, seed 41")
    expect(viewer.locator(".recipe")).to_contain_text(re.compile(r"Seed\s*41"))
    expect(viewer.locator(".recipe")).to_contain_text(re.compile(r"Size\s*128 × 128"))
    viewer.get_by_role("button", name="Favourite").click()
    expect(viewer.get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    with page.expect_download() as download:
        viewer.get_by_role("button", name="Download").click()
    path = tmp_path / "downloaded.png"
    download.value.save_as(path)
    assert download.value.suggested_filename == "a-blue-fox-41.png"
    assert read_recipe(path).seed == 41
    viewer.get_by_role("button", name="Use these settings").click()
    expect(viewer).to_have_count(0)
    expect(page.get_by_label("Prompt")).to_have_value("a blue fox")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("41")
    expect(page.locator("#steps-value")).to_have_text("2")
    page.get_by_role("button", name="a blue fox, seed 41").click()
    viewer.get_by_role("button", name="Make again").click()
    expect(page.locator(".frame img.there")).to_have_count(1)
    again = _last_request(gallery)
    assert (again["prompt"], again["seed"], again["size"], again["steps"], again["n"]) == (
        "a blue fox",
        41,
        "128x128",
        2,
        1,
    )
    page.locator(".frame .open").click()
    page.keyboard.press("v")
    expect(page.locator(".frame img.there")).to_have_count(4)
    varied = _last_request(gallery)
    assert varied["n"] == 4
    assert varied["seed"] != 41
    assert varied["prompt"] == "a blue fox"


def test_focus_walks_the_wall_and_comes_back(gallery: Running, visit: Open) -> None:
    page = visit(gallery.url, width=700)
    opens = page.locator(f"{TILES} .open")
    opens.first.focus()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > opens.first.evaluate("each => each.getBoundingClientRect().top")
    page.keyboard.press("ArrowUp")
    expect(opens.first).to_be_focused()
    page.keyboard.press("End")
    expect(opens.last).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    page.keyboard.press("Escape")
    expect(opens.last).to_be_focused()


def test_two_pictures_side_by_side(gallery: Running, visit: Open) -> None:
    page = visit(gallery.url)
    page.get_by_role("button", name="a red fox, seed 40").focus()
    page.keyboard.press("c")
    expect(page.get_by_text("Choose a second picture")).to_be_visible()
    page.get_by_role("button", name="a red fox, seed 41").focus()
    page.keyboard.press("c")
    dialog = page.get_by_role("dialog", name="Side by side")
    expect(dialog.locator("img")).to_have_count(2)
    expect(dialog.locator(".different")).to_have_text([re.compile("40"), re.compile("41")])
    dialog.get_by_role("button", name="One over the other").click()
    line = dialog.get_by_role("slider")
    line.focus()
    page.keyboard.press("ArrowRight")
    assert "51%" in (dialog.locator(".over-each-other").get_attribute("style") or "")
    page.keyboard.press("Escape")
    expect(page.locator("#tray")).to_be_hidden()


def test_prompts_and_seeds_in_a_grid(gallery: Running, visit: Open) -> None:
    page = visit(gallery.url)
    page.get_by_label("Prompt").fill("a fox")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("button", name="Grid", exact=True).click()
    form = page.get_by_role("dialog", name="Prompts and seeds")
    form.get_by_label("Prompts, one a line").fill("a fox\n\n a hen \n")
    form.get_by_label("Seeds").fill("3")
    expect(form).to_contain_text("2 × 3 = 6 pictures")
    form.get_by_role("button", name="Create").click()
    table = page.get_by_role("table")
    expect(table.locator("img")).to_have_count(6)
    expect(table.get_by_role("columnheader")).to_have_text(["Seed 7", "Seed 8", "Seed 9"])
    expect(table.get_by_role("rowheader")).to_have_text(["a fox", "a hen"])
    table.get_by_role("button", name="a hen, seed 8").click()
    expect(page.get_by_role("dialog", name="Picture").locator("blockquote")).to_have_text("a hen")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Picture")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(table).to_have_count(0)
    page.get_by_role("heading", name="Petzval Studio").click()
    page.keyboard.press("g")
    page.get_by_role("button", name="Show the last one").click()
    expect(table.locator("img")).to_have_count(6)


def _drop(page: Page, content: bytes, name: str, kind: str) -> None:
    page.evaluate(
        """([data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            const event = (kind) => new DragEvent(kind, { dataTransfer, bubbles: true });
            document.body.dispatchEvent(event("dragenter"));
            window.dropWasShown = !document.querySelector("#drop").hidden;
            document.body.dispatchEvent(event("drop"));
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )
    assert page.evaluate("window.dropWasShown")
    expect(page.locator("#drop")).to_be_hidden()


def test_a_picture_that_is_dragged_in_tells_its_recipe(
    gallery: Running, visit: Open, tmp_path: Path
) -> None:
    page = visit(gallery.url)
    content = gallery.client.get(_pictures(gallery)[0]["url"]).content
    _drop(page, content, "hill.png", "image/png")
    dialog = page.get_by_role("dialog", name="A picture's recipe")
    expect(dialog.locator("blockquote")).to_have_text("a green hill")
    expect(dialog.locator("img")).to_be_visible()
    dialog.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt")).to_have_value("a green hill")
    _drop(page, b"%PDF-1.4", "paper.pdf", "application/pdf")
    expect(dialog).to_contain_text("No recipe in this file")
    expect(dialog.get_by_role("alert")).to_contain_text("not a picture")
    page.keyboard.press("Escape")
    path = tmp_path / "hill.png"
    path.write_bytes(content)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Read a recipe").click()
    chooser.value.set_files(path)
    expect(dialog.locator("blockquote")).to_have_text("a green hill")


def test_a_server_that_asks_for_a_key(tmp_path: Path, visit: Open) -> None:
    with running(tmp_path, keys=True) as studio:
        secret = studio.studio.keys.add("somebody")
        page = visit(studio.url, ready=False)
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        dialog.get_by_label("Key").fill("no such key")
        dialog.get_by_role("button", name="Enter").click()
        expect(dialog.get_by_label("Key")).to_have_value("")
        dialog.get_by_label("Key").fill(secret)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-ready]")
        page.get_by_label("Prompt").fill("a fox")
        page.get_by_role("button", name="Create").last.click()
        expect(page.locator(".frame img.there")).to_have_count(1)
        assert secret not in (page.evaluate("JSON.stringify(localStorage)"))


def test_a_wall_that_cannot_be_fetched_says_so(gallery: Running, visit: Open) -> None:
    page = visit(gallery.url, ready=False)
    page.route("**/v1/pictures?*", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.get_by_text("The pictures could not be fetched")).to_be_visible()
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(TILES)).to_have_count(6)
