"""Scanning folders that nobody prepared."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def save(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def scanned(folder: Path, context: Context, **options: Any) -> tuple[dict[str, Any], Catalog]:
    report = scan(ScanConfig(folder=str(folder), corpus="mine", **options), context)
    return report, Catalog.open(context.workspace.folder("corpora", "mine"))


def names_by_status(catalog: Catalog) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in catalog.rows(catalog.table["id"].to_numpy()):
        found.setdefault(row.status, []).append(row.name)
    return found


def test_every_picture_below_the_folder_gets_a_dense_id(folder: Path, context: Context) -> None:
    for position in range(5):
        save(folder / f"{position % 2}" / f"{position}.png", position, size=(4 + position, 7))
    report, catalog = scanned(folder, context)
    assert report["pictures"] == {"total": 5, "ok": 5}
    assert catalog.table["id"].to_pylist() == [0, 1, 2, 3, 4]
    row = catalog.rows([0])[0]
    assert (row.format, row.width, row.height, row.label) == ("PNG", 4, 7, None)


def test_labels_are_sub_folder_names_and_only_when_asked_for(
    folder: Path, context: Context
) -> None:
    save(folder / "cats" / "a.png")
    save(folder / "b.png")
    _, catalog = scanned(folder, context, labels="folder")
    assert {row.name: row.label for row in catalog.rows([0, 1])} == {"a.png": "cats", "b.png": None}


def test_bad_files_become_status_rows_and_stop_nothing(folder: Path, context: Context) -> None:
    save(folder / "good.png")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    Image.new("1", (12_000, 9_000)).save(folder / "bomb.png")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_bytes(b"")
    _, catalog = scanned(folder, context)
    assert names_by_status(catalog) == {
        "too_large": ["bomb.png"],
        "unreadable": ["dangling.png", "text.jpg"],
        "empty": ["empty.png"],
        "ok": ["good.png"],
    }
    assert all(
        row.error for row in catalog.rows(catalog.table["id"].to_numpy()) if row.status != "ok"
    )


def test_hostile_names_are_kept_to_the_letter(folder: Path, context: Context) -> None:
    names = [
        "quo\"te's.png",
        "new\nline.png",
        "${40+2}.png",
        "<img onerror=x>.png",
        "\u202egnp.png",
    ]
    for position, name in enumerate(names):
        save(folder / name, position)
    _, catalog = scanned(folder, context)
    assert set(names_by_status(catalog)["ok"]) == set(names)


def test_a_name_that_is_not_utf8_is_reported_not_read(folder: Path, context: Context) -> None:
    save(folder / "good.png")
    raw = os.path.join(os.fsencode(folder), b"caf\xe9.png")  # noqa: PTH118 - Path takes no bytes
    with open(raw, "wb") as file:  # noqa: PTH123 - likewise
        file.write((folder / "good.png").read_bytes())
    _, catalog = scanned(folder, context)
    assert names_by_status(catalog) == {"unreadable": ["caf\\xe9.png"], "ok": ["good.png"]}


def test_a_loop_of_links_ends_and_a_linked_folder_is_entered_once(
    folder: Path, context: Context, tmp_path: Path
) -> None:
    save(folder / "a" / "one.png")
    (folder / "a" / "loop").symlink_to(folder)
    save(tmp_path / "elsewhere" / "two.png", 1)
    (folder / "x").symlink_to(tmp_path / "elsewhere")
    (folder / "y").symlink_to(tmp_path / "elsewhere")
    _, catalog = scanned(folder, context)
    assert sorted(names_by_status(catalog)["ok"]) == ["one.png", "two.png"]


def test_a_second_scan_of_the_same_folder_changes_nothing(folder: Path, context: Context) -> None:
    save(folder / "a.png")
    _, before = scanned(folder, context)
    report, after = scanned(folder, context)
    assert report["since_last_scan"] == {"new": 0, "changed": 0, "unchanged": 1, "vanished": 0}
    assert after.door == before.door


def test_new_changed_and_vanished_pictures_never_reuse_an_id(
    folder: Path, context: Context
) -> None:
    for position, name in enumerate(["keep.png", "change.png", "vanish.png"]):
        save(folder / name, position)
    _, before = scanned(folder, context)
    ids = {row.name: row.id for row in before.by_uri()}
    save(folder / "change.png", 7, size=(9, 9))
    (folder / "vanish.png").unlink()
    save(folder / "new.png", 8)
    report, after = scanned(folder, context)
    assert report["since_last_scan"] == {"new": 1, "changed": 1, "unchanged": 1, "vanished": 1}
    assert after.rows([ids["change.png"]])[0].status == "replaced"
    assert after.rows([ids["vanish.png"]])[0].status == "vanished"
    now = {row.name: row.id for row in after.by_uri()}
    assert now["keep.png"] == ids["keep.png"]
    assert min(now["change.png"], now["new.png"]) > max(ids.values())
    assert after.uid == before.uid
    assert after.corpus_id != before.corpus_id


def test_an_empty_folder_and_a_missing_one_say_what_to_do(folder: Path, context: Context) -> None:
    with pytest.raises(ValueError, match="no pictures in here"):
        scanned(folder, context)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        scanned(folder / "missing", context)
    assert context.workspace.names("corpora") == []


def test_a_corpus_is_not_silently_pointed_at_another_folder(
    folder: Path, context: Context, tmp_path: Path
) -> None:
    save(folder / "a.png")
    scanned(folder, context)
    save(tmp_path / "other" / "b.png")
    with pytest.raises(ValueError, match="was made with folder"):
        scanned(tmp_path / "other", context)


def test_a_damaged_catalog_is_refused(folder: Path, context: Context) -> None:
    save(folder / "a.png")
    _, catalog = scanned(folder, context)
    part = context.workspace.folder("corpora", "mine").local_path(next(iter(catalog.door["files"])))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(CorruptArtifactError, match="sha256 differs"):
        scanned(folder, context)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "na me"])
def test_names_that_could_leave_the_workspace_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="corpus"):
        ScanConfig(folder=".", corpus=name)
