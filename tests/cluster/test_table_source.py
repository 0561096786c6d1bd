"""Pictures in rows: Parquet files, and datasets that Hugging Face saved."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.comparison as comparison_module
from cluster import table_source
from cluster.catalog import Catalog
from cluster.shards import read_picture

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def tally(**counts: int) -> dict[str, int]:
    names = ("new", "changed", "returned", "unchanged", "vanished")
    return {**dict.fromkeys(names, 0), **counts}


def contents(catalog: Catalog) -> dict[int, bytes]:
    """What is read back of every picture that is there, through its URI alone."""
    return {row.id: read_picture(row).data for row in catalog.by_uri()}


def write_parquet(path: Path, pictures: list[bytes | None], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(pictures, pa.binary()), **columns})
    pq.write_table(table, path, row_group_size=7)
    return path


def write_structs(path: Path, stored: list[dict[str, Any]], **columns: Any) -> Path:
    """A Parquet file of structs, as Hugging Face stores pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(stored, IMAGE), **columns})
    pq.write_table(table, path, row_group_size=1)
    return path


def save_dataset(
    folder: Path, pictures: list[Any], labels: list[int], features: dict[str, Any] | None = None
) -> Path:
    """What ``datasets.Dataset.save_to_disk`` writes, in two files of several batches."""
    folder.mkdir(parents=True)
    table = pa.table({"image": pa.array(pictures, IMAGE), "label": labels})
    half = len(table) // 2
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=4)
    described = features or {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": described}))
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    return folder


def test_rows_of_parquet_files_are_pictures_with_their_columns(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    pictures = [make_png(seed) for seed in range(20)]
    kinds = pa.array(["a", "b"] * 10).dictionary_encode()
    write_parquet(tmp_path / "in" / "x.parquet", pictures[:10], kind=kinds[:10], n=range(10))
    write_parquet(tmp_path / "in" / "y.parquet", pictures[10:], kind=kinds[10:], n=range(10, 20))
    report, catalog = scan_here(tmp_path / "in", labels="kind", columns="n")
    assert (report["source_kind"], report["pictures"]) == ("parquet", {"total": 20, "ok": 20})
    assert contents(catalog) == dict(enumerate(pictures))
    rows = catalog.rows(np.arange(20))
    assert [row.metadata["n"] for row in rows] == list(range(20))
    assert [row.label for row in rows] == ["a", "b"] * 10
    assert rows[13].name == "y.parquet row 3"


@pytest.mark.parametrize("order", ["backwards", "random"])
def test_rows_are_read_right_in_any_order(
    tmp_path: Path, scan_here: Any, make_png: Any, order: str
) -> None:
    pictures = [make_png(seed) for seed in range(90)]
    _, catalog = scan_here(write_parquet(tmp_path / "x.parquet", pictures))
    ids = np.arange(90)[::-1] if order == "backwards" else np.random.default_rng(0).permutation(90)
    assert [read_picture(row).data for row in catalog.rows(ids)] == [pictures[i] for i in ids]


def test_a_null_or_broken_picture_gets_a_status_and_stops_nothing(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    pictures = [make_png(0), None, b"", b"words", make_png(4)]
    _, catalog = scan_here(write_parquet(tmp_path / "x.parquet", pictures))
    statuses = [row.status for row in catalog.rows(np.arange(5))]
    assert statuses == ["ok", "empty", "empty", "unreadable", "ok"]


def test_unchanged_containers_are_not_read_again_and_new_ones_are(
    tmp_path: Path, scan_here: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    write_parquet(folder / "x.parquet", [make_png(seed) for seed in range(3)])
    scan_here(folder)
    opened: list[str] = []
    reading = table_source.open_parquet

    def noted(place: Any, columns: Any) -> Any:
        opened.append(Path(place.path).name)
        return reading(place, columns)

    monkeypatch.setattr(table_source, "open_parquet", noted)
    write_parquet(folder / "y.parquet", [make_png(9)])
    report, catalog = scan_here(folder)
    # Once x for its columns; its rows are not read.
    assert opened == ["x.parquet", "y.parquet"]
    assert report["since_last_scan"] == tally(new=1, unchanged=3)
    report, again = scan_here(folder)
    assert again.door == catalog.door
    (folder / "x.parquet").unlink()
    report, catalog = scan_here(folder, allow_vanished=True)
    assert report["since_last_scan"] == tally(unchanged=1, vanished=3)


def test_a_container_that_was_written_anew_keeps_the_ids_of_equal_pictures(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    pictures = [make_png(seed) for seed in range(4)]
    path = write_parquet(tmp_path / "x.parquet", pictures)
    _, before = scan_here(path)
    write_parquet(path, [*pictures[:2], make_png(7), pictures[3], make_png(8)])
    os.utime(path, ns=(1, 10**18))
    assert read_picture(before.rows([0])[0]).status == "changed"
    report, after = scan_here(path)
    assert report["since_last_scan"] == tally(new=1, changed=1, unchanged=3)
    assert contents(after) == {0: pictures[0], 1: pictures[1], 3: pictures[3]} | {
        4: make_png(7),
        5: make_png(8),
    }


def test_a_container_that_is_cut_short_keeps_what_is_known_of_it(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    folder = tmp_path / "in"
    path = write_parquet(folder / "x.parquet", [make_png(seed) for seed in range(3)])
    write_parquet(folder / "a.parquet", [make_png(7)])
    scan_here(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    report, catalog = scan_here(folder)
    assert report["skipped_folders"] == [str(path)]
    assert report["since_last_scan"] == tally(unchanged=1)
    assert catalog.counts() == {"ok": 4}
    path.write_bytes(whole)
    report, catalog = scan_here(folder)
    assert report["since_last_scan"] == tally(unchanged=4)
    assert {read_picture(row).status for row in catalog.by_uri()} == {"ok"}


def test_files_that_rows_name_stay_and_are_looked_at_at_each_scan(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(make_png(9))
    stored = [{"bytes": make_png(seed), "path": None} for seed in range(3)]
    path = write_structs(tmp_path / "x.parquet", [*stored, {"bytes": None, "path": str(own)}])
    _, before = scan_here(path)
    report, after = scan_here(path)
    assert report["since_last_scan"] == tally(unchanged=4)
    assert after.door == before.door
    own.write_bytes(make_png(10) + b" ")
    report, after = scan_here(path)
    assert report["since_last_scan"] == tally(unchanged=3, changed=1)
    assert contents(after)[4] == make_png(10) + b" "


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("https://example.org/a.png?token=hunter2#top", r"https://\.\.\.: pictures are read from"),
        ("ftp://me:hunter2@example.org/a.png", r"ftp://\.\.\.: pictures are read from"),
        ("http://[broken/a.png", "Invalid IPv6 URL"),
        ("s3://KEY:hunter2@bucket/a.png", "the key in this URI would be written"),
    ],
)
def test_a_row_whose_uri_is_not_read_here_costs_no_other_row(
    tmp_path: Path, scan_here: Any, make_png: Any, path: str, reason: str
) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(make_png(9))
    paths = [str(own), path, None, path]
    stored = [{"bytes": None if each else make_png(0), "path": each} for each in paths]
    table = write_structs(tmp_path / "x.parquet", [*stored, {"bytes": make_png(1), "path": None}])
    report, catalog = scan_here(table)
    assert report["skipped_folders"] == []
    rows = catalog.rows(list(range(5)))
    assert [row.status for row in rows] == ["ok", "unreadable", "ok", "unreadable", "ok"]
    assert [row.name for row in rows[1::2]] == ["x.parquet row 1", "x.parquet row 3"]
    assert re.search(reason, str(rows[1].error))
    assert "hunter2" not in str(rows)
    assert scan_here(table)[1].door == catalog.door
    write_structs(table, [stored[0], *[stored[1]] * 3])
    gone = {"replaced": 1, "vanished": 1}
    assert scan_here(table)[1].counts() == {"ok": 1, "unreadable": 3, **gone}


def test_files_that_a_damaged_table_named_stay_as_they_are_known(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(make_png(9))
    folder = tmp_path / "in"
    stored = [{"bytes": make_png(seed), "path": None} for seed in range(2)]
    write_structs(folder / "a.parquet", stored)
    path = write_structs(folder / "b.parquet", [stored[0], {"bytes": None, "path": str(own)}])
    scan_here(folder)
    path.write_bytes(path.read_bytes()[:-30])
    report, catalog = scan_here(folder)
    assert report["skipped_folders"] == [str(path)]
    assert report["since_last_scan"] == tally(unchanged=2)
    assert catalog.counts() == {"ok": 4}


def test_a_table_that_was_read_in_another_way_is_read_once_more(
    tmp_path: Path, scan_here: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "x.parquet", [make_png(seed) for seed in range(2)], n=[1, 2])
    with monkeypatch.context() as before:
        before.setattr(comparison_module, "READING", 0)
        before.setattr(table_source, "rows_of", lambda batch, *_: [(None, 7)] * len(batch))
        assert scan_here(path, columns="n")[1].table["n"].to_pylist() == [7, 7]
        assert scan_here(path, columns="n")[1].table["n"].to_pylist() == [7, 7]
    report, catalog = scan_here(path, columns="n")
    assert report["since_last_scan"] == tally(changed=2)
    assert catalog.table["n"].to_pylist() == [1, 2]
    _, again = scan_here(path, columns="n")
    assert again.door == catalog.door


def test_a_saved_dataset_gives_pictures_and_the_names_of_classes(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    pictures = [make_png(seed) for seed in range(21)]
    (tmp_path / "own.png").write_bytes(make_png(99))
    stored = [{"bytes": data, "path": None} for data in pictures]
    stored[5] = {"bytes": None, "path": str(tmp_path / "own.png")}
    labels = [i % 2 for i in range(20)] + [-1]
    report, catalog = scan_here(
        save_dataset(tmp_path / "set", stored, labels), labels="label", columns="again=label"
    )
    assert (report["source_kind"], report["pictures"]["ok"]) == ("huggingface", 21)
    assert contents(catalog) == dict(enumerate(pictures)) | {5: make_png(99)}
    rows = catalog.rows(np.arange(21))
    assert [row.label for row in rows] == ["cat", "dog"] * 10 + [None]
    assert rows[1].metadata == {"again": "dog"}
    assert rows[5].uri == str(tmp_path / "own.png")


def test_splits_of_a_dataset_are_told_apart(tmp_path: Path, scan_here: Any, make_png: Any) -> None:
    whole = tmp_path / "set"
    for split, seed in (("train", 0), ("test", 10)):
        stored = [{"bytes": make_png(seed + i), "path": None} for i in range(4)]
        save_dataset(whole / split, stored, [0, 1, 0, 1])
    (whole / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    _, catalog = scan_here(whole, columns="split")
    assert catalog.table["split"].to_pylist() == ["train"] * 4 + ["test"] * 4
    assert contents(catalog)[4] == make_png(10)


def test_each_split_has_its_own_names_of_classes(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    whole = tmp_path / "set"
    for split, seed, names in (("train", 0, ["cat", "dog", "eel"]), ("test", 10, ["cat", "eel"])):
        stored = [{"bytes": make_png(seed + i), "path": None} for i in range(len(names))]
        label = {"names": names, "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label}
        save_dataset(whole / split, stored, list(range(len(names))), features)
    (whole / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    _, catalog = scan_here(whole, labels="label", columns="again=label")
    assert catalog.table["label"].to_pylist() == ["cat", "dog", "eel", "cat", "eel"]
    assert catalog.table["again"].to_pylist() == ["cat", "dog", "eel", "cat", "eel"]


def test_a_selection_of_rows_is_refused(tmp_path: Path, scan_here: Any, make_png: Any) -> None:
    folder = save_dataset(tmp_path / "set", [{"bytes": make_png(0), "path": None}] * 4, [0] * 4)
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"flatten_indices\(\)"):
        scan_here(folder)


def test_columns_that_are_not_there_or_hold_no_pictures_are_refused(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = write_parquet(tmp_path / "x.parquet", [make_png(0)], n=[1], other=[b"x"], tags=[["a"]])
    table = pq.read_table(path)
    pq.write_table(table.append_column("other", table["n"]), path)
    for options, message in (
        ({"columns": "other"}, r"column 'other': 2 columns have this name"),
        ({"labels": "tags"}, r"column 'tags': list.* cannot be carried along"),
        ({"columns": "tags:int"}, r"column 'tags': list.* cannot be carried along"),
        ({"labels": "kind"}, "column 'kind': not there"),
        ({"labels": "folder"}, "rows of a table lie in no folder"),
        ({"columns": "tags"}, "cannot be carried along"),
        ({"picture_column": "n"}, "int64 holds no pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            scan_here(path, **options)
    assert scan_here(path)[0]["pictures"]["ok"] == 1


def test_a_cell_that_does_not_fit_is_left_empty_and_named_once(
    tmp_path: Path, scan_here: Any, make_png: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [make_png(seed) for seed in range(40)]
    large = pa.array([*range(38), 2**63, 2**64 - 1], pa.uint64())
    words = ["n/a", *map(str, range(39))]
    times = ["2024-01-02", "0001-01-01T00:00:00+05:00", *["2024-01-02"] * 38]
    write_parquet(tmp_path / "in" / "x.parquet", pictures, large=large, word=words, time=times)
    report, catalog = scan_here(
        tmp_path / "in", columns="large,word:int,time:timestamp", labels="word"
    )
    assert report["pictures"] == {"total": 40, "ok": 40}
    assert report["num_skipped_folders"] == 0
    assert catalog.table["large"].to_pylist() == [*range(38), None, None]
    assert catalog.table["word"].to_pylist() == [None, *range(39)]
    assert catalog.table["label"].to_pylist() == words
    assert catalog.table["time"].null_count == 1
    assert len(caplog.messages) == 3
    assert "x.parquet" in caplog.text
    for column, value in (("large", "9223372036854775808"), ("word", "n/a"), ("time", "0001-01")):
        (said,) = (text for text in caplog.messages if f"column {column!r}" in text)
        assert value in said


def test_a_column_called_split_is_carried_along(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = write_parquet(tmp_path / "x.parquet", [make_png(0)], split=["train"])
    _, catalog = scan_here(path, columns="split")
    assert catalog.table["split"].to_pylist() == ["train"]


def test_a_struct_without_paths_may_have_no_bytes(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    stored = pa.array(
        [{"bytes": make_png(0)}, {"bytes": None}], pa.struct([("bytes", pa.binary())])
    )
    pq.write_table(pa.table({"image": stored}), tmp_path / "x.parquet")
    report, _ = scan_here(tmp_path / "x.parquet")
    assert report["pictures"] == {"total": 2, "empty": 1, "ok": 1}


def test_a_damaged_file_among_others_does_not_stop_the_scan(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    folder = tmp_path / "in"
    write_parquet(folder / "01.parquet", [make_png(0)], n=[1])
    (folder / "00.parquet").write_bytes(b"")
    report, catalog = scan_here(folder, columns="n")
    assert report["skipped_folders"] == [str(folder / "00.parquet")]
    assert catalog.table["n"].to_pylist() == [1]


def test_tables_of_which_none_can_be_read_are_named_with_the_reason(
    tmp_path: Path, scan_here: Any
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("0.parquet", "1.parquet"):
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"in/0\.parquet.*file size is 0 bytes"):
        scan_here(folder)


def test_rows_that_are_lost_for_one_reason_are_told_with_it(
    tmp_path: Path, scan_here: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "x.parquet", [make_png(0)])

    def fail(*_: Any) -> Any:
        raise OSError("the disk has errors")

    monkeypatch.setattr(table_source, "rows_of", fail)
    with pytest.raises(ValueError, match=r"x\.parquet.*the disk has errors"):
        scan_here(path)
