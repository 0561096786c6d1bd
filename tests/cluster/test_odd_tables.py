"""Tables of pictures that nobody would save like that on purpose."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.shards import read_picture


def write_structs(
    path: Path, stored: list[tuple[bytes | None, Any]], kind: pa.DataType | None = None
) -> Path:
    """A Parquet file of structs: of each picture its bytes and its path, which is of this type."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(structs(stored, kind or pa.string()), path)
    return path


def structs(stored: list[tuple[bytes | None, Any]], kind: pa.DataType) -> pa.Table:
    rows = [{"bytes": data, "path": name} for data, name in stored]
    return pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", kind)]))})


@pytest.mark.timeout(60)
def test_a_pipe_called_a_table_is_skipped_and_not_waited_for(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    write_structs(tmp_path / "in" / "1.parquet", [(make_png(0), None)])
    os.mkfifo(tmp_path / "in" / "0.parquet")
    report, _ = scan_here(tmp_path / "in")
    assert report["pictures"] == {"total": 1, "ok": 1}
    assert report["skipped_folders"] == [str(tmp_path / "in" / "0.parquet")]


@pytest.mark.parametrize("others", [[], [(None, None)]])
def test_a_row_of_no_bytes_and_a_path_is_that_file_whatever_lies_beside_it(
    tmp_path: Path, scan_here: Any, make_png: Any, others: list[tuple[None, None]]
) -> None:
    (tmp_path / "a.png").write_bytes(make_png(0))
    _, catalog = scan_here(write_structs(tmp_path / "x.parquet", [(b"", "a.png"), *others]))
    assert catalog.rows([0])[0].uri == str(tmp_path / "a.png")


def test_a_path_may_be_bytes_and_what_is_no_text_is_named(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    (tmp_path / "a.png").write_bytes(make_png(0))
    write_structs(tmp_path / "in" / "0.parquet", [(None, b"../a.png")], pa.binary())
    wrong = write_structs(tmp_path / "in" / "1.parquet", [(None, [1])], pa.list_(pa.int8()))
    report, catalog = scan_here(tmp_path / "in")
    assert catalog.rows([0])[0].uri == str(tmp_path / "a.png")
    assert report["skipped_folders"] == [str(wrong)]


def test_a_split_that_is_away_is_named_and_stays_as_it_is_known(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    for seeds, split in (([0, 1], "test"), ([2], "train")):
        folder = tmp_path / "in" / split
        folder.mkdir(parents=True)
        table = structs([(make_png(seed), None) for seed in seeds], pa.string())
        with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    splits = json.dumps({"splits": ["test", "train"]})
    (tmp_path / "in" / "dataset_dict.json").write_text(splits)
    scan_here(tmp_path / "in")
    (tmp_path / "in" / "train").rename(tmp_path / "away")
    report, catalog = scan_here(tmp_path / "in")
    assert report["skipped_folders"] == [str(tmp_path / "in" / "train")]
    assert catalog.counts() == {"ok": 3}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", {"_data_files": [{}]}),
        ("state.json", {"_data_files": [None]}),
        ("state.json", {"_data_files": "data.arrow"}),
        ("dataset_info.json", {"features": [1]}),
        ("dataset_dict.json", {"splits": 3}),
    ],
)
def test_a_dataset_whose_json_has_another_shape_is_named(
    tmp_path: Path, scan_here: Any, file: str, content: Any
) -> None:
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{file}: no JSON object as save_to_disk writes it"):
        scan_here(tmp_path)


def test_a_picture_may_lie_in_structs_of_any_depth(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    kind = pa.struct(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("n", pa.int64())]
    )
    rows = [{"image": {"bytes": make_png(0), "path": None}, "n": 3}, None]
    pq.write_table(pa.table({"meta": pa.array(rows, kind)}), tmp_path / "x.parquet")
    options = {"picture_column": "meta.image", "columns": "n=meta.n"}
    report, catalog = scan_here(tmp_path / "x.parquet", **options)
    assert report["pictures"] == {"total": 2, "ok": 1, "empty": 1}
    row = catalog.rows([0])[0]
    assert (read_picture(row).data, row.metadata) == (make_png(0), {"n": 3})
    for name in ("meta.gone", "meta.n.x", ".meta"):
        with pytest.raises(ValueError, match=f"column '{name}': not there. Columns are meta"):
            scan_here(tmp_path / "x.parquet", picture_column=name)
