"""A scan killed at every change of the disk, on a full disk, and over damaged files."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster import catalog_writer
from cluster.catalog import Catalog
from cluster.context import Context
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_fsync")

SCAN = """
    import io

    from rich.console import Console

    from cluster import catalog_writer
    from cluster.context import Context
    from cluster.scan_job import ScanConfig, scan
    from cluster.workspace import Workspace

    catalog_writer.DRAFT_ROWS = 3  # so that a small scan leaves drafts

    def run(home):
        context = Context(Workspace.at(home), console=Console(file=io.StringIO()))
        scan(ScanConfig(source=home.rpartition("/")[0] + "/pictures", corpus="mine"), context)
"""


def scan_at(home: Path) -> None:
    """The same in this process."""
    context = Context(Workspace.at(home), console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(home.parent / "pictures"), corpus="mine"), context)


def rows_at(home: Path) -> list[dict[str, Any]]:
    """Every row of the corpus that is published."""
    rows: list[dict[str, Any]] = Catalog.open(
        Workspace.at(home).folder("corpora", "mine")
    ).table.to_pylist()
    return rows


@pytest.fixture
def home(tmp_path: Path, pictures: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of five, whose folder has five more by now, one changed and one gone."""
    monkeypatch.setattr(catalog_writer, "DRAFT_ROWS", 3)
    folder = pictures(10, size=16, formats=("png",))
    files = sorted(folder.rglob("*.png"))
    for path in files[5:]:
        path.rename(path.with_suffix(".later"))
    scan_at(tmp_path / "workspace")
    for path in folder.rglob("*.later"):
        path.rename(path.with_suffix(".png"))
    files[0].write_bytes(make_png(7))
    files[1].unlink()
    return tmp_path / "workspace"


@pytest.mark.slow
def test_a_killed_scan_leaves_the_corpus_as_it_was_and_is_gone_on_with(
    home: Path, forge: Any
) -> None:
    before = rows_at(home)
    whole = shutil.copytree(home, home.with_name("whole"))
    scan_at(whole)
    after = rows_at(whole)

    def check(home: Path, is_done: bool) -> None:
        assert rows_at(home) in ([after] if is_done else [before, after])

    assert forge.walk(SCAN, home, check) > 15


def test_all_damage_to_a_corpus_is_noticed_by_reading_and_by_scanning(
    home: Path, assert_noticed: Any
) -> None:
    scan_at(home)
    copy = home.with_name("copy")

    def scanned_again() -> list[dict[str, Any]]:
        shutil.rmtree(copy, ignore_errors=True)
        scan_at(shutil.copytree(home, copy))
        return rows_at(copy)

    corpus = home / "corpora" / "mine"
    num_files = len(list(corpus.glob("c*")))
    assert num_files > 3, "the door, and parts of two scans"
    assert len(assert_noticed(corpus, lambda: rows_at(home))) == num_files
    # Without a door there is no corpus, and a scan begins one.
    refused = assert_noticed(corpus, scanned_again, removed=False)
    assert len(refused) == num_files


def test_a_damaged_draft_costs_time_and_never_a_row(
    home: Path, forge: Any, assert_noticed: Any
) -> None:
    step = 0
    while not (home / "corpora" / "mine" / "scan.json").exists():
        forge.run(SCAN, home, "kill", step)
        step += 1
    copy = home.with_name("copy")

    def gone_on_with() -> list[dict[str, Any]]:
        shutil.rmtree(copy, ignore_errors=True)
        scan_at(shutil.copytree(home, copy))
        return rows_at(copy)

    published = Catalog.open(Workspace.at(home).folder("corpora", "mine")).door["files"]
    refused = assert_noticed(home / "corpora" / "mine", gone_on_with, removed=False)
    assert refused == {"corpus.json", *published}
