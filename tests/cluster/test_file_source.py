"""Lists of files: text, CSV and Parquet, their labels and typed columns."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.comparison as comparison_module


@pytest.fixture
def folder(tmp_path: Path, make_png: Any) -> Path:
    for position in range(4):
        path = tmp_path / "in" / "ab"[position % 2] / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_png(position))
    return tmp_path / "in"


CSV = """path,class,views,score,seen,fine,note
a/0.png,cat,3,0.5,2024-01-02,true,"one, two"
b/1.png,dog,,1,2024-01-02T03:04:05+02:00,false,
a/2.png,,7,-2.5,,true,"three
lines"
"""


def test_a_list_of_paths_is_read_line_by_line(folder: Path, scan_here: Any) -> None:
    text = f"a/0.png\n\n{folder}/b/1.png\n{(folder / 'a' / '2.png').as_uri()}\nb/gone, really.png\n"
    (folder / "list.txt").write_text(text)
    report, catalog = scan_here(folder / "list.txt", labels="folder")
    assert report["source_kind"] == "list"
    rows = catalog.rows([0, 1, 2, 3])
    assert [row.uri for row in rows[:3]] == [f"{folder}/{n}.png" for n in ("a/0", "b/1", "a/2")]
    assert [row.label for row in rows] == ["a", "b", "a", "b"]
    assert [row.status for row in rows] == ["ok", "ok", "ok", "unreadable"]


def test_a_csv_carries_labels_and_columns_of_five_types(folder: Path, scan_here: Any) -> None:
    (folder / "list.csv").write_text(CSV)
    columns = "views,score,seen,fine,remark=note"
    report, catalog = scan_here(folder / "list.csv", labels="class", columns=columns)
    assert report["pictures"] == {"total": 3, "ok": 3}
    assert [
        str(catalog.table.schema.field(name).type) for name in catalog.table.schema.names[11:]
    ] == [
        "int64",
        "double",
        "timestamp[us, tz=UTC]",
        "bool",
        "string",
    ]
    first, second, third = catalog.rows([0, 1, 2])
    assert (first.label, second.label, third.label) == ("cat", "dog", None)
    assert first.metadata == {
        "views": 3,
        "score": 0.5,
        "seen": datetime(2024, 1, 2, tzinfo=UTC),
        "fine": True,
        "remark": "one, two",
    }
    assert second.metadata["seen"] == datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert (second.metadata["views"], second.metadata["remark"]) == (None, None)
    assert third.metadata["remark"] == "three\nlines"


def test_a_type_may_be_given_and_stays_for_the_corpus_life(folder: Path, scan_here: Any) -> None:
    (folder / "list.csv").write_text("file,code\na/0.png,007\n")
    _, catalog = scan_here(folder / "list.csv", columns="code:string")
    assert catalog.rows([0])[0].metadata == {"code": "007"}
    (folder / "list.csv").write_text("file,code\na/0.png,007\nb/1.png,8\n")
    _, catalog = scan_here(folder / "list.csv", columns="code")
    assert catalog.rows([1])[0].metadata == {"code": "8"}
    with pytest.raises(ValueError, match=r"'code' is of type string, not int.*code_int=code:int"):
        scan_here(folder / "list.csv", columns="code:int")


def test_a_column_that_was_left_out_meanwhile_keeps_its_type(folder: Path, scan_here: Any) -> None:
    (folder / "list.csv").write_text("file,code\na/0.png,x1\n")
    scan_here(folder / "list.csv", columns="code")
    (folder / "list.csv").write_text("file,code\na/0.png,7\nb/1.png,8\n")
    scan_here(folder / "list.csv")
    with pytest.raises(ValueError, match=r"'code' is of type string, not int.*code_int=code:int"):
        scan_here(folder / "list.csv", columns="code:int")
    _, catalog = scan_here(folder / "list.csv", columns="code")
    assert catalog.table["code"].to_pylist() == ["7", "8"]


def test_a_list_that_changed_keeps_the_ids_of_files_that_did_not(
    folder: Path, scan_here: Any, make_png: Any
) -> None:
    (folder / "list.csv").write_text("path,n\na/0.png,1\nb/1.png,2\na/2.png,3\na/0.png,9\n")
    report, _ = scan_here(folder / "list.csv", columns="n")
    assert report["num_listed_twice"] == 1
    (folder / "b" / "1.png").write_bytes(make_png(9) + b" ")
    (folder / "list.csv").write_text("path,n\nb/3.png,4\na/2.png,-3\nb/1.png,2\n")
    report, catalog = scan_here(folder / "list.csv", columns="n")
    tally = {"new": 1, "changed": 2, "returned": 0, "unchanged": 0, "vanished": 1}
    assert report["since_last_scan"] == tally
    now = {row.name: (row.id, row.metadata["n"]) for row in catalog.by_uri()}
    assert now == {"3.png": (3, 4), "2.png": (2, -3), "1.png": (4, 2)}
    assert [row.status for row in catalog.rows([0, 1])] == ["vanished", "replaced"]


def test_columns_may_join_a_corpus_later(folder: Path, scan_here: Any) -> None:
    (folder / "list.csv").write_text("path,n\na/0.png,1\nb/1.png,2\n")
    _, before = scan_here(folder / "list.csv")
    report, after = scan_here(folder / "list.csv", columns="n")
    assert report["since_last_scan"]["changed"] == 2
    assert after.table["n"].to_pylist() == [1, 2]
    assert after.uid == before.uid


def test_a_parquet_of_paths_is_a_list_when_said_so(folder: Path, scan_here: Any) -> None:
    table = pa.table({"url": ["a/0.png", "b/1.png"], "when": [datetime(2024, 5, 1), None]})
    pq.write_table(table, folder / "list.parquet")
    with pytest.raises(ValueError, match="--source-kind list"):
        scan_here(folder / "list.parquet")
    _, catalog = scan_here(folder / "list.parquet", source_kind="list", columns="when")
    assert catalog.rows([0])[0].metadata == {"when": datetime(2024, 5, 1, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("name,n\na/0.png,1\n", {}, "--picture-column"),
        ("path,url\na/0.png,1\n", {}, "several could name the pictures"),
        ("path,n\na/0.png,1\n", {"columns": "m"}, "column 'm': not there"),
        ("path,n\na/0.png,1\n", {"labels": "m"}, "column 'm': not there"),
        ("path,n\na/0.png,1,2\n", {}, "no list that can be read"),
        ("path,n\n", {}, "names no picture"),
        ("", {}, "no list that can be read"),
    ],
)
def test_lists_that_cannot_be_read_say_what_to_do(
    folder: Path, scan_here: Any, text: str, options: dict[str, str], message: str
) -> None:
    (folder / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        scan_here(folder / "list.csv", **options)


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_name_whose_scheme_is_not_read_here_costs_no_other_line(
    folder: Path, scan_here: Any, kind: str
) -> None:
    site = "https://me:hunter2@example.org"
    names = ["a/0.png", f"{site}/x.png?id=1#top", "b/1.png", f"{site}/x.png?id=2", "ftp://h/y.png"]
    if kind == "txt":
        (folder / "list.txt").write_text("\n".join(names))
    else:
        pq.write_table(pa.table({"path": names}), folder / "list.parquet")
    report, catalog = scan_here(folder / f"list.{kind}", source_kind="list")
    assert report["pictures"] == {"total": 5, "ok": 2, "unreadable": 3}
    rows = catalog.rows([0, 1, 2, 3, 4])
    assert [row.status for row in rows] == ["ok", "unreadable", "ok", "unreadable", "unreadable"]
    assert [row.name for row in rows[1::2]] == ["x.png", "x.png"]
    assert rows[4].uri == "ftp://h/y.png"
    assert "Copy them to one of these." in str(rows[1].error)
    assert "hunter2" not in str(rows)
    report, again = scan_here(folder / f"list.{kind}", source_kind="list")
    assert report["since_last_scan"]["unchanged"] == 5
    assert again.door == catalog.door


def test_a_parquet_list_that_is_damaged_is_named(folder: Path, scan_here: Any) -> None:
    (folder / "list.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"list\.parquet: no list that can be read"):
        scan_here(folder / "list.parquet", source_kind="list")


def test_a_folder_of_pictures_has_no_columns(folder: Path, scan_here: Any) -> None:
    with pytest.raises(ValueError, match="a folder of pictures has no columns"):
        scan_here(folder, columns="views")
    with pytest.raises(ValueError, match="column 'views'"):
        scan_here(folder, labels="views")


def test_a_named_file_that_was_deleted_vanishes_and_returns(folder: Path, scan_here: Any) -> None:
    (folder / "list.txt").write_text("a/0.png\nb/1.png\na/2.png\nb/3.png\nnever.png\n")
    scan_here(folder / "list.txt")
    kept = (folder / "a" / "0.png").rename(folder / "kept")
    (folder / "b" / "1.png").unlink()
    (folder / "b" / "1.png").mkdir()
    report, catalog = scan_here(folder / "list.txt")
    assert report["since_last_scan"]["vanished"] == 2
    assert catalog.counts() == {"ok": 2, "unreadable": 1, "vanished": 2}
    report, again = scan_here(folder / "list.txt")
    assert report["since_last_scan"]["vanished"] == 0
    assert again.door == catalog.door
    kept.rename(folder / "a" / "0.png")
    report, catalog = scan_here(folder / "list.txt")
    assert report["since_last_scan"]["returned"] == 1
    assert catalog.rows([0])[0].status == "ok"


def test_a_list_of_files_that_are_mostly_gone_is_refused(folder: Path, scan_here: Any) -> None:
    (folder / "list.txt").write_text("a/0.png\nb/1.png\na/2.png\n")
    scan_here(folder / "list.txt")
    (folder / "a").rename(folder / "unplugged")
    with pytest.raises(ValueError, match=r"2 of 3 pictures are gone.*--allow-vanished"):
        scan_here(folder / "list.txt")


def test_a_named_file_that_cannot_be_reached_stays_as_it_is_known(
    folder: Path, scan_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "list.txt").write_text("a/0.png\nb/1.png\na/2.png\n")
    _, before = scan_here(folder / "list.txt")
    stat = os.stat

    def refuse(path: Any, **options: Any) -> Any:
        if str(path).endswith("0.png"):
            raise OSError(errno.EIO, "Input/output error", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    report, after = scan_here(folder / "list.txt")
    assert report["since_last_scan"]["unchanged"] == 3
    assert after.door == before.door


def test_a_file_with_a_time_is_not_opened_again(
    folder: Path, scan_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "list.csv").write_text(CSV)
    scan_here(folder / "list.csv", columns="seen")
    opened: list[str] = []

    def noted(listed: Any, *_: Any) -> Any:
        opened.append(listed.uri)
        raise AssertionError

    monkeypatch.setattr(comparison_module, "probe_row", noted)
    report, _ = scan_here(folder / "list.csv", columns="seen")
    assert (report["since_last_scan"]["unchanged"], opened) == (3, [])


def test_a_cell_of_another_type_than_was_given_is_left_empty_and_named(
    folder: Path, scan_here: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "list.csv").write_text("path,n\na/0.png,1\nb/1.png,n/a\na/2.png,none\n")
    _, catalog = scan_here(folder / "list.csv", columns="n:int")
    assert catalog.table["n"].to_pylist() == [1, None, None]
    (said,) = caplog.messages
    assert "list.csv" in said
    assert "'n/a'" in said


def test_labels_are_folders_however_a_list_writes_them(folder: Path, scan_here: Any) -> None:
    (folder / "é").mkdir()
    for name in ("é/4.png", "5.png", "6.png"):
        shutil.copy(folder / "a" / "0.png", folder / name)
    names = ["./5.png", "6.png", "./a/0.png", "../in/a/2.png", f"file://{folder}/%C3%A9/4.png"]
    (folder / "list.txt").write_text("\n".join(names))
    _, catalog = scan_here(folder / "list.txt", labels="folder")
    assert catalog.table["label"].to_pylist() == [None, None, "a", "a", "é"]


def test_a_bad_picture_with_a_value_that_is_no_number_stays_unchanged(
    folder: Path, scan_here: Any
) -> None:
    (folder / "a" / "bad.png").write_bytes(b"no picture")
    (folder / "list.csv").write_text("path,n\na/bad.png,nan\nb/1.png,1.5\n")
    first, _ = scan_here(folder / "list.csv", columns="n")
    report, _ = scan_here(folder / "list.csv", columns="n")
    assert report["since_last_scan"]["unchanged"] == 2
    assert report["corpus_id"] == first["corpus_id"]


def test_a_path_is_one_picture_however_it_is_written(folder: Path, scan_here: Any) -> None:
    ways = [f"{folder}/a/0.png", f"{folder}//a/./0.png", f"/{folder}/a//0.png", "a/./0.png"]
    (folder / "list.txt").write_text("\n".join([*ways, f"file://{folder}//a/0.png"]))
    report, catalog = scan_here(folder / "list.txt", labels="folder")
    assert (report["pictures"]["total"], report["num_listed_twice"]) == (1, 4)
    assert (catalog.rows([0])[0].uri, catalog.rows([0])[0].label) == (f"{folder}/a/0.png", "a")
    (folder / "list.txt").write_text(f"{folder}//b//./1.png")
    _, catalog = scan_here(folder / "list.txt", labels="folder", allow_vanished=True)
    assert catalog.rows([1])[0].label == "b"


def test_a_file_uri_without_a_path_or_of_another_machine_names_no_file(
    folder: Path, scan_here: Any
) -> None:
    names = ["file://", f"file://elsewhere{folder}/b/1.png", f"file://localhost{folder}/a/0.png"]
    (folder / "list.txt").write_text("\n".join(names))
    _, catalog = scan_here(folder / "list.txt")
    rows = catalog.rows([0, 1, 2])
    assert [row.status for row in rows] == ["unreadable", "unreadable", "ok"]
    assert [row.uri for row in rows] == [*names[:2], f"{folder}/a/0.png"]
    assert all("three slashes" in (row.error or "") for row in rows[:2])
