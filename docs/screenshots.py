"""Renew ``docs/screenshots`` from the running application: every tab, wide, narrow, light, dark.

    python docs/screenshots.py --workspace ./workspace

The workspace is only read: labels, classifiers and predictions for the pictures are made in a
scratch one that links to it. Labels come from the corpus' own, where it has some.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from cluster.checks import find_chromium
from cluster.workspace import Workspace
from ui.app import build_app
from ui.config import UiConfig
from ui.labelling import Labelling
from ui.session import Session
from ui.suggesting import Suggesting

TARGET = Path(__file__).parent / "screenshots"
LINKED = ("corpora", "encoders", "embeddings", "indexes", "runs")
SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")
TABS = ("Search", "Label", "Classify", "Runs")
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NUM_CLASSES = 9
NUM_ANSWERS = 150


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workspace", default="./workspace", help="a workspace with an index")
    arguments.add_argument("--picture", default="smiley-cat", help="part of the query's file name")
    given = arguments.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("error: no Chromium found. Install it, or set LOOKALIKE_CHROMIUM to it.")
    with scratch_over(Path(given.workspace).resolve()) as workspace:
        label_some(workspace)
        with served(workspace) as address, sync_playwright() as playwright:
            root = hasattr(os, "geteuid") and os.geteuid() == 0
            browser = playwright.chromium.launch(
                executable_path=chromium, args=ARGUMENTS + ["--no-sandbox"] * root
            )
            take_all(browser, f"{address}/?id={picture_named(workspace, given.picture)}")
            browser.close()


@contextmanager
def scratch_over(source: Path) -> Iterator[Workspace]:
    """A workspace that shows the pictures of another and keeps its own labels."""
    if not (source / "indexes").is_dir():
        raise SystemExit(f"error: {source}: no index in there. Run `make demo` first.")
    with tempfile.TemporaryDirectory(prefix="lookalike-shots-") as scratch:
        for kind in LINKED:
            if (source / kind).is_dir():
                (Path(scratch) / kind).symlink_to(source / kind)
        yield Workspace.at(scratch)


def label_some(workspace: Workspace) -> None:
    """Answer suggestions with the corpus' own labels, as a person would."""
    session = Session(workspace, UiConfig())
    name = session.default_index()
    if name is None:
        raise SystemExit("error: the workspace has no index that opens. Run `make demo` first.")
    collection = session.collection(name)
    own = {row.id: row.label for row in collection.catalog.rows(collection.ids())}
    common = Counter(label for label in own.values() if label).most_common(NUM_CLASSES)
    classes = [label for label, _ in common]
    labelling = Labelling(session)
    suggesting = Suggesting(session, labelling)
    for label in classes:
        labelling.create_class(name, label)
    skipped: list[int] = []
    answered = 0
    while classes and answered < NUM_ANSWERS:
        pictures = suggesting.suggest(name, 12, skipped)["pictures"]
        if not pictures:
            break
        events = [
            {
                "op_id": f"screenshot-{item['id']}",
                "id": item["id"],
                "label": own[item["id"]],
                "source": item["source"],
            }
            for item in pictures
            if own[item["id"]] in classes
        ]
        skipped += [item["id"] for item in pictures if own[item["id"]] not in classes]
        if events:
            labelling.write(name, events)
        answered += len(events)
    labelling.close()


def picture_named(workspace: Workspace, part: str) -> int:
    """The first picture with this in its file name, else the first of all."""
    session = Session(workspace, UiConfig())
    collection = session.collection(session.default_index() or "")
    rows = collection.catalog.rows(collection.ids())
    return next((row.id for row in rows if part in row.name), rows[0].id)


@contextmanager
def served(workspace: Workspace) -> Iterator[str]:
    app = build_app(workspace, UiConfig())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def take_all(browser: Browser, address: str) -> None:
    TARGET.mkdir(exist_ok=True)
    for size, viewport in SIZES.items():
        for scheme in SCHEMES:
            context = browser.new_context(
                viewport=viewport,
                color_scheme=scheme,
                device_scale_factor=1,
                reduced_motion="reduce",
            )
            page = context.new_page()
            page.goto(address)
            for tab in TABS:
                show(page, tab)
                page.screenshot(path=TARGET / f"{tab.lower()}-{size}-{scheme}.png")
            context.close()


def show(page: Page, tab: str) -> None:
    """Bring a tab into the state that its picture shows."""
    page.get_by_role("tab", name=tab, exact=True).click()
    page.locator(f"la-{tab.lower()} .la-body > *").first.wait_for()
    if tab == "Search":
        page.get_by_text("Pictures like this one").wait_for()
    if tab == "Label":
        page.locator("la-label .la-picture > *").first.wait_for()
    if tab == "Classify":
        train = page.get_by_role("button", name="Train and predict")
        if train.is_enabled() and not page.locator("la-classify .la-card").count():
            train.click()
            page.locator("la-classify .la-tile").first.wait_for(timeout=60_000)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function(
        """[...document.images].every((image) => image.complete || !image.offsetParent
            || image.getBoundingClientRect().top > innerHeight)"""
    )
    page.wait_for_timeout(400)


if __name__ == "__main__":
    main()
