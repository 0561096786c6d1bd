"""A person's way through the page, in a real Chromium: search, label, train, export."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cluster.workspace import Workspace
from index.versions import open_current, set_current
from ui.app import build_app
from ui.config import UiConfig

pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
TABS = ("Search", "Label", "Classify", "Runs")


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def address(workspace: Workspace) -> Iterator[str]:
    """The application over the test's own workspace, served on a free port."""
    yield from served(workspace)


def served(workspace: Workspace) -> Iterator[str]:
    config = uvicorn.Config(
        build_app(workspace, UiConfig(max_upload_mb=1)),
        port=0,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it was ready"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


class Visit:
    """An open page and everything suspicious that it did."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._watch)
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self._address = address
        page.goto(address)

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _watch(self, request: Any) -> None:
        if not request.url.startswith((self._address, "data:", "blob:")):
            self.strangers.append(request.url)

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()
        expect(self.page.locator(f"la-{tab.lower()} .la-body > *").first).to_be_visible()

    def label_all(self, shapes: Any, count: int) -> list[str]:
        """Answer the next pictures with their true class by its key; returns their names."""
        names = []
        for _ in range(count):
            about = self.page.locator("la-label .la-about .la-name")
            names.append(about.inner_text())
            key = 1 + shapes.names.index(shapes.shape_of(names[-1]))
            self.page.keyboard.press(str(key))
            expect(about).not_to_have_text(names[-1])
        return names

    @property
    def overflow(self) -> int:
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(script))


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """A desktop visit; at its end nothing was logged as an error and nobody else was asked."""
    context = browser.new_context(viewport=DESKTOP, accept_downloads=True)
    visit = Visit(context.new_page(), address)
    yield visit
    context.close()
    assert visit.complaints == []
    assert visit.strangers == []


def upload(visit: Visit, data: bytes, name: str = "query.jpg") -> None:
    file = {"name": name, "mimeType": "image/jpeg", "buffer": data}
    visit.page.locator("la-search input[type=file]").set_input_files(file)


def test_an_uploaded_picture_shows_its_original_first_and_more_like_it(
    visit: Visit, shapes: Any
) -> None:
    visit.open("Search")
    upload(visit, shapes.jpeg("cross", 3))
    page = visit.page
    expect(page.locator("la-search h2")).to_have_text("Pictures like yours")
    tiles = page.locator("la-search .la-tile")
    expect(tiles).to_have_count(24)
    expect(tiles.first).to_have_attribute("title", "cross-03.png")
    expect(tiles.first).to_have_attribute(
        "aria-label", re.compile(r"^Rank 1, score [01]\.\d{3}, cross-03")
    )
    expect(page.locator("la-search .la-notice").last).to_have_text(
        re.compile(r"^24 pictures in [\d.]+ ms$")
    )
    tiles.nth(1).click()
    expect(page.locator("la-search h2")).to_have_text("Pictures like this one")
    assert re.search(r"[?&]id=\d+", page.url)
    shared = page.url
    page.go_back()
    expect(page.locator("la-search h2")).to_have_text("Browse the corpus")
    page.goto(shared)
    expect(page.locator("la-search h2")).to_have_text("Pictures like this one")


def test_the_grid_is_walked_and_searched_by_keyboard(visit: Visit) -> None:
    visit.open("Search")
    page = visit.page
    tiles = page.locator("la-search .la-tile")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    columns = page.evaluate(
        "[...document.querySelectorAll('.la-tile')].indexOf(document.activeElement)"
    )
    assert columns > 3
    page.keyboard.press("End")
    expect(tiles.last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("la-search h2")).to_have_text("Pictures like this one")


def test_what_is_no_picture_gets_a_sentence_and_the_page_goes_on(
    browser: Browser, address: str, shapes: Any
) -> None:
    visit = Visit(browser.new_page(viewport=DESKTOP), address)
    visit.open("Search")
    upload(visit, b"no picture at all", "fake.jpg")
    banner = visit.page.locator("la-search .la-banner")
    expect(banner).to_be_visible()
    assert len(banner.inner_text()) > 40
    upload(visit, shapes.jpeg("disc", 2))
    expect(visit.page.locator("la-search .la-tile").first).to_have_attribute("title", "disc-02.png")
    expect(banner).to_be_hidden()
    visit.page.close()
    # The refused upload itself is the one thing that the browser may log.
    assert all("422" in complaint for complaint in visit.complaints)


def test_labels_by_keyboard_train_a_classifier_whose_export_is_what_is_shown(
    visit: Visit, shapes: Any
) -> None:
    page = visit.page
    visit.open("Label")
    for name in shapes.names:
        page.get_by_label("Name of a new class").fill(name)
        page.keyboard.press("Enter")
        expect(page.locator("la-label .la-class", has_text=name)).to_be_visible()
    page.get_by_label("Name of a new class").press_sequentially("12sz")
    expect(page.locator("la-label .la-count")).to_have_text(["0", "0", "0"])
    page.locator("la-label h2").click()

    names = visit.label_all(shapes, 18)
    counted = [sum(shapes.shape_of(name) == shape for name in names) for shape in shapes.names]
    expect(page.locator("la-label .la-count")).to_have_text([str(count) for count in counted])
    expect(page.locator("la-label .la-actions .la-notice")).to_have_text("saved")

    page.keyboard.press("s")
    expect(page.locator("la-label .la-about .la-name")).not_to_have_text(names[-1])
    page.keyboard.press("z")
    page.keyboard.press("z")
    expect(page.locator("la-label .la-about .la-name")).to_have_text(names[-1])
    counted[shapes.names.index(shapes.shape_of(names[-1]))] -= 1
    expect(page.locator("la-label .la-count")).to_have_text([str(count) for count in counted])
    page.reload()
    visit.open("Label")
    expect(page.locator("la-label .la-count")).to_have_text([str(count) for count in counted])

    visit.open("Classify")
    page.get_by_role("button", name="Train and predict").click()
    expect(page.locator("la-classify .la-card").first).to_be_visible(timeout=20_000)
    expect(page.locator("la-classify .la-card", has_text="Learned from")).to_contain_text(
        "17 labels"
    )
    shown = {
        row.locator(".la-name").inner_text(): int(row.locator(".la-count").inner_text())
        for row in page.locator("la-classify .la-shares .la-class").all()[1:]
    }
    with page.expect_download() as download:
        page.get_by_role("link", name="Export Parquet").click()
    table = pq.read_table(io.BytesIO(Path(download.value.path()).read_bytes()))
    labels = table["label"].to_pylist()
    assert len(labels) == shapes.num_pictures == sum(shown.values())
    assert shown == {name: labels.count(name) for name in shapes.names}
    right = [
        shapes.shape_of(name) == label
        for name, label in zip(table["uri"].to_pylist(), labels, strict=True)
    ]
    assert sum(right) / len(right) > 0.8

    review = page.locator("la-classify .la-tile")
    doubtful = review.first.get_attribute("title")
    review.first.click()
    expect(page.locator("la-label .la-about .la-name")).to_have_text(doubtful or "")


def test_hostile_names_and_labels_are_shown_as_text(visit: Visit, shapes: Any) -> None:
    page = visit.page
    label = "<img src=x onerror=window.pwned=1> ${40+2} {{this}}"
    visit.open("Search")
    page.locator("la-search input[type=range]").fill("60")
    expect(page.locator("la-search .la-tile")).to_have_count(shapes.num_pictures)
    titles = page.locator("la-search .la-tile").evaluate_all("tiles => tiles.map((t) => t.title)")
    assert set(shapes.hostile_names) <= set(titles)
    visit.open("Label")
    page.get_by_label("Name of a new class").fill(label)
    page.keyboard.press("Enter")
    expect(page.locator("la-label .la-class .la-name")).to_have_text(label)
    page.get_by_role("button", name="Rename").click()
    page.get_by_label(f"New name of {label}").fill("\u202eevil" + label)
    page.keyboard.press("Enter")
    expect(page.locator("la-label .la-banner")).to_be_visible()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src=x]").count() == 0
    visit.complaints = [text for text in visit.complaints if "422" not in text]


def test_a_running_run_is_drawn_live(visit: Visit, shapes: Any, workspace: Workspace) -> None:
    visit.open("Runs")
    page = visit.page
    expect(page.locator("la-runs")).to_contain_text("No pretraining run yet")
    folder = shapes.write_run(workspace, "enc1", num_steps=20, state="running")
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("la-runs .la-state")).to_have_text("running")
    expect(page.locator("la-runs la-chart")).to_have_count(3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "epoch": 2, "time_s": 11, "loss": 0.125}\n')
    expect(page.locator("la-runs .la-history")).to_be_hidden()
    lost = {"lost_steps": 14, "lost_s": 38.0, "workers": 1, "waiting": 0}
    card = {
        "state": "running",
        "num_steps": 40,
        "attempts": [{"lost_steps": 0, "lost_s": 0.0}, lost],
    }
    (folder / "run.json").write_text(json.dumps({**card, "alert": "It is not protected."}))
    loss = page.locator('la-chart[data-curve="loss"]')
    expect(loss.locator(".la-reading")).to_have_text("0.125", timeout=8_000)
    expect(loss.locator("svg")).to_have_attribute("aria-label", re.compile("to 0.125 at step 20"))
    history = page.locator("la-runs .la-history")
    expect(history).to_have_text("Resumed once; 14 steps, 38 s of work lost.", timeout=8_000)
    expect(page.locator("la-runs").get_by_text("It is not protected.")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(
    browser: Browser, address: str, shapes: Any, workspace: Workspace, scheme: Any
) -> None:
    shapes.write_run(workspace, "enc1")
    context = browser.new_context(viewport=PHONE, color_scheme=scheme)
    visit = Visit(context.new_page(), address)
    for tab in TABS:
        visit.open(tab)
        assert visit.overflow == 0, tab
    dark = visit.page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    context.close()
    assert visit.complaints == []


def test_an_empty_workspace_shows_the_commands_to_run(browser: Browser, tmp_path: Path) -> None:
    for address in served(Workspace.at(tmp_path / "nothing")):
        visit = Visit(browser.new_page(viewport=PHONE), address)
        for tab in ("Search", "Label", "Classify"):
            visit.open(tab)
            body = visit.page.locator(f"la-{tab.lower()}")
            expect(body).to_contain_text("lookalike scan ~/Pictures --corpus mine")
            assert visit.overflow == 0, tab
        visit.page.close()
        assert visit.complaints == []


def test_a_version_that_cannot_answer_is_told_in_a_calm_line_while_the_older_one_does(
    visit: Visit, workspace: Workspace, shapes: Any
) -> None:
    notice = visit.page.locator("la-header .la-older")
    expect(visit.page.locator("la-header .la-facts")).to_contain_text("v000001")
    expect(notice).to_be_hidden()
    folder = workspace.folder("indexes", shapes.index)
    _, door = open_current(folder)
    shutil.copytree(folder.local_path("v000001"), folder.local_path("v000002"))
    folder.local_path("v000002/vectors.arrow").write_bytes(b"")
    set_current(folder, "v000002", door)
    look_until(visit.page, "la-header .la-older:not([hidden])")
    expect(notice).to_contain_text("v000001 goes on answering, not the version put in service")
    expect(notice).to_contain_text("vectors.arrow")
    assert visit.overflow == 0
    visit.page.locator("la-search la-grid button").first.click()
    expect(visit.page.locator("la-search h2")).to_have_text("Pictures like this one")
    set_current(folder, "v000001", door)
    look_until(visit.page, "la-header .la-older[hidden]")


def look_until(page: Page, selector: str) -> None:
    """Come back to the page again and again, as it asks the server each time, until this is so."""
    end_s = time.monotonic() + 30
    while not page.locator(selector).count():
        assert time.monotonic() < end_s
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(200)
