"""Scanning folders that nobody prepared."""

from __future__ import annotations

import io
import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import cluster.catalog_writer as writer_module
import cluster.comparison as comparison_module
import cluster.scan_job as scan_module
from cluster.catalog import Catalog
from cluster.context import Context
from cluster.scan_job import ScanConfig, scan
from cluster.shards import read_picture
from cluster.workspace import Workspace
from encoders.picture import probe
from index.artifact import CorruptArtifactError
from index.lock import sole_writer


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
    report = scan(ScanConfig(source=str(folder), corpus="mine", **options), context)
    return report, Catalog.open(context.workspace.folder("corpora", "mine"))


def tally(**counts: int) -> dict[str, int]:
    names = ("new", "changed", "returned", "unchanged", "vanished")
    return {**dict.fromkeys(names, 0), **counts}


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


def test_a_link_to_a_folder_gives_no_picture_another_id(
    folder: Path, context: Context, tmp_path: Path
) -> None:
    for position in range(3):
        save(folder / "z" / "deep" / f"{position}.png", position)
    save(folder / ".hidden" / "four.png", 4)
    save(tmp_path / "elsewhere" / "five.png", 5)
    _, before = scanned(folder, context)
    (folder / "a").symlink_to(folder / "z")
    (folder / "b").symlink_to(folder / "z" / "deep")
    (folder / "up").symlink_to(tmp_path)
    (folder / "z" / "in").symlink_to(folder / ".hidden")
    report, after = scanned(folder, context)
    assert report["since_last_scan"] == tally(new=2, unchanged=3)
    assert after.rows([0, 1, 2]) == before.rows([0, 1, 2])
    assert {row.uri for row in after.by_uri()} - {row.uri for row in before.by_uri()} == {
        str(folder / "up" / "elsewhere" / "five.png"),
        str(folder / "z" / "in" / "four.png"),
    }


def test_a_link_whose_file_was_deleted_vanishes(
    folder: Path, context: Context, tmp_path: Path
) -> None:
    save(folder / "a.png")
    target = save(tmp_path / "elsewhere.png", 1)
    (folder / "b.png").symlink_to(target)
    scanned(folder, context)
    target.unlink()
    report, catalog = scanned(folder, context)
    assert report["since_last_scan"] == tally(unchanged=1, vanished=1)
    assert catalog.counts() == {"ok": 1, "vanished": 1}


def test_a_second_scan_of_the_same_folder_changes_nothing(folder: Path, context: Context) -> None:
    save(folder / "a.png")
    _, before = scanned(folder, context)
    report, after = scanned(folder, context)
    assert report["since_last_scan"] == tally(unchanged=1)
    assert after.door == before.door


def test_times_that_no_column_can_hold_stop_nothing(folder: Path, context: Context) -> None:
    moment = int(datetime(2300, 1, 1, tzinfo=UTC).timestamp())
    save(folder / "a.png")
    with tarfile.open(folder.parent / "in.tar", "w") as tar:
        tar.add(folder / "a.png", "a.png")
    for path in (folder / "a.png", folder.parent / "in.tar"):
        os.utime(path, (moment, moment))
    if (folder / "a.png").stat().st_mtime != moment:
        pytest.skip("this disk keeps no such time")
    for corpus, source in (("mine", folder), ("tars", folder.parent / "in.tar")):
        for new, unchanged in ((1, 0), (0, 1)):
            report = scan(ScanConfig(source=str(source), corpus=corpus), context)
            assert report["since_last_scan"] == tally(new=new, unchanged=unchanged)
        catalog = Catalog.open(context.workspace.folder("corpora", corpus))
        assert read_picture(catalog.rows([0])[0]).status == "ok"


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
    assert report["since_last_scan"] == tally(new=1, changed=1, unchanged=1, vanished=1)
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
    with pytest.raises(FileNotFoundError, match="not there"):
        scanned(folder / "missing", context)
    assert not context.workspace.folder("corpora", "mine").exists("corpus.json")


def test_a_folder_that_cannot_be_read_is_reported_and_its_pictures_stay(
    folder: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder / "a.png")
    save(folder / "away" / "b.png", 1)
    _, before = scanned(folder, context)
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path == str(folder / "away"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report, after = scanned(folder, context)
    assert report["skipped_folders"] == [str(folder / "away")]
    assert report["since_last_scan"] == tally(unchanged=1)
    assert after.door == before.door


def test_links_to_themselves_and_pipes_end_nothing(folder: Path, context: Context) -> None:
    save(folder / "good.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "self").symlink_to(folder / "self")
    os.mkfifo(folder / "pipe.jpg")
    report, catalog = scanned(folder, context)
    assert names_by_status(catalog) == {"unreadable": ["pipe.jpg", "self.png"], "ok": ["good.png"]}
    assert [bad["status"] for bad in report["bad_pictures"]] == ["unreadable"] * 2
    report, again = scanned(folder, context)
    assert again.door == catalog.door


def test_a_disk_that_was_away_gives_no_picture_another_id(folder: Path, context: Context) -> None:
    for position in range(4):
        save(folder / "disk" / f"{position}.png", position)
    _, before = scanned(folder, context)
    (folder / "disk").rename(folder.parent / "unplugged")
    with pytest.raises(ValueError, match=r"4 of 4 pictures are gone.*--allow-vanished"):
        scanned(folder, context)
    report, away = scanned(folder, context, allow_vanished=True)
    assert (report["since_last_scan"], away.counts()) == (tally(vanished=4), {"vanished": 4})
    (folder.parent / "unplugged").rename(folder / "disk")
    report, after = scanned(folder, context)
    assert report["since_last_scan"] == tally(returned=4)
    assert list(after.by_uri()) == list(before.by_uri())


def test_a_bad_picture_is_looked_at_again_and_keeps_its_id(folder: Path, context: Context) -> None:
    save(folder / "a.png")
    large = save(folder / "b.png", 1, size=(1100, 1000))
    report, before = scanned(folder, context, max_megapixels=1.0)
    assert before.counts() == {"ok": 1, "too_large": 1}
    assert "--max-megapixels" in report["bad_pictures"][0]["error"]
    report, after = scanned(folder, context)
    assert report["since_last_scan"] == tally(changed=1, unchanged=1)
    assert {row.uri: row.id for row in after.by_uri()}[str(large)] == 1
    assert after.counts() == {"ok": 2}
    _, lowered = scanned(folder, context, max_megapixels=1.0)
    assert lowered.counts() == {"ok": 1, "too_large": 1}


def test_a_scan_that_was_killed_goes_on_where_it_was(
    folder: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "DRAFT_ROWS", 2)
    for position in range(5):
        save(folder / f"{position}.png", position)
    monkeypatch.setattr(scan_module, "BATCH_FILES", 2)
    opened: list[str] = []
    deadly = {"4.png"}

    def probe_or_die(file: Any) -> Any:
        opened.append(Path(file.name).name)
        if opened[-1] in deadly:
            raise KeyboardInterrupt
        return probe(file)

    monkeypatch.setattr(comparison_module, "probe", probe_or_die)
    with pytest.raises(KeyboardInterrupt):
        scanned(folder, context)
    assert not context.workspace.folder("corpora", "mine").exists("corpus.json")
    deadly.clear()
    opened.clear()
    report, catalog = scanned(folder, context)
    assert opened == ["4.png"]
    assert report["since_last_scan"] == tally(new=1, unchanged=4)
    assert [row.name for row in catalog.rows(list(range(5)))] == [f"{i}.png" for i in range(5)]
    files = context.workspace.folder("corpora", "mine").names()
    assert not set(files) - {*catalog.door["files"], "corpus.json", ".lock"}


def test_two_scans_into_one_corpus_do_not_run_at_once(folder: Path, context: Context) -> None:
    save(folder / "a.png")
    with (
        sole_writer(context.workspace.folder("corpora", "mine"), "scanning"),
        pytest.raises(ValueError, match="another process is scanning"),
    ):
        scanned(folder, context)


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
        ScanConfig(source=".", corpus=name)


def test_a_file_of_more_bytes_than_a_picture_has_is_too_large(
    folder: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(save(folder / "a.png"), 4 << 40)
    _, catalog = scanned(folder, context)
    row = catalog.rows([0])[0]
    assert row.status == "too_large"
    assert "4,398,046,511,104 bytes" in str(row.error)
    assert "1,073,741,824 are allowed" in str(row.error)


def test_a_file_that_was_taken_before_there_was_a_limit_is_looked_at_again(
    folder: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(save(folder / "a.png"), 2 << 30)
    with monkeypatch.context() as before:
        before.setattr(comparison_module, "MAX_BYTES", 1 << 62, raising=False)
        assert scanned(folder, context)[1].counts() == {"ok": 1}
    assert scanned(folder, context)[1].counts() == {"too_large": 1}


def test_a_source_that_is_no_place_is_named(tmp_path: Path, context: Context) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError, match=r"loop: not there\. Give a folder"):
        scanned(tmp_path / "loop", context)
    with pytest.raises(FileNotFoundError, match=r"~no-one/in: not there\. Give a folder"):
        scanned(Path("~no-one/in"), context)
    with pytest.raises(ValueError, match="SOURCE is empty"):
        ScanConfig(source="", corpus="mine")
