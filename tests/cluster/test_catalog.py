"""The catalog: newest rows, old schemas, and the memory that a scan takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cluster.catalog_writer as writer_module
from benchmarks import scan_memory
from cluster.catalog import CATALOG_SCHEMA, Catalog, newest_positions
from cluster.catalog_writer import CatalogWriter, open_for_scan
from cluster.comparison import Comparison
from cluster.known_pictures import UriIndex, uri_keys
from cluster.where import CHECKOUT
from index.artifact import digest, open_door, publish
from index.folder import Folder

OLD_SCHEMA = pa.schema([field for field in CATALOG_SCHEMA if field.name != "content_hash"])


def row(number: int, **values: Any) -> dict[str, Any]:
    return {"uri": f"/in/{number}.png", "bytes": 10, "mtime_ns": 5, "status": "ok", **values}


def test_a_corpus_from_before_there_were_sources_is_scanned_on(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    """As lookalike wrote it when a catalog had no hashes, metadata or containers."""
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    picture.write_bytes(make_png(0))
    found = picture.stat()
    rows = [
        row(0, id=0, status="vanished"),
        row(0, id=1, uri=str(picture), bytes=found.st_size, mtime_ns=found.st_mtime_ns),
    ]
    folder = Folder.at(tmp_path / "scanned" / "corpora" / "mine").make()
    part = "catalog-00000-0badcafe.parquet"
    old = [{**dict.fromkeys(OLD_SCHEMA.names), **item} for item in rows]
    record = folder.write_hashed(
        part, lambda path: pq.write_table(pa.Table.from_pylist(old, schema=OLD_SCHEMA), path)
    )
    config = {"folder": str(picture.parent), "corpus": "mine", "labels": "none"}
    body = {
        "id": digest("x"),
        "uid": "u",
        "name": "mine",
        "config": {**config, "max_megapixels": 100.0},
        "rows": {"total": 2, "ok": 1, "vanished": 1},
    }
    publish(folder, "corpus", body, {part: record})
    before = Catalog.open(folder)
    assert [item.status for item in before.rows([0, 1])] == ["vanished", "ok"]
    report, after = scan_here(picture.parent)
    assert report["since_last_scan"]["unchanged"] == 1
    same = ("uid", "rows", "files")
    assert [after.door[name] for name in same] == [before.door[name] for name in same]
    (picture.parent / "b.png").write_bytes(make_png(1))
    report, after = scan_here(picture.parent)
    assert (report["since_last_scan"]["new"], after.uid) == (1, "u")
    assert after.table["content_hash"].null_count == 3


def test_the_newest_row_is_that_of_the_part_with_the_greatest_number(tmp_path: Path) -> None:
    """Names sort otherwise from part 100,000 on."""
    folder = Folder.at(tmp_path).make()
    files = {}
    for number, size in ((99_999, 1), (100_000, 2)):
        item = {**dict.fromkeys(CATALOG_SCHEMA.names), **row(0, id=0, bytes=size)}
        table = pa.Table.from_pylist([item], schema=CATALOG_SCHEMA)
        name = f"catalog-{number:05d}-0badcafe.parquet"
        files[name] = folder.write_hashed(
            name, lambda path, table=table: pq.write_table(table, path)
        )
    publish(folder, "corpus", {"id": "i", "uid": "u", "config": {}}, files)
    assert [item.bytes for item in Catalog.open(folder).rows([0])] == [2]


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=5))
def test_the_newest_row_of_an_id_is_the_last_that_was_written(parts: list[list[int]]) -> None:
    order = sorted({picture for part in parts for picture in part})
    dense = [np.array([order.index(picture) for picture in part], np.int64) for part in parts]
    flat = [picture for part in dense for picture in part]
    naive = [
        max(i for i, other in enumerate(flat) if other == wanted) for wanted in range(len(order))
    ]
    assert newest_positions(dense).tolist() == naive


def test_rows_come_newest_and_in_the_order_of_ids_whatever_was_overridden(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = Folder.at(tmp_path).make()
    expected: dict[int, str | None] = {}
    door = None
    for scan in range(4):
        writer = CatalogWriter(folder, "mine", {}, door)
        for old, known in writer.known.rows(np.arange(0, len(expected), scan + 1)).items():
            expected[old] = f"{scan}"
            writer.override(known, {**known, "label": f"{scan}"})
        for _ in range(int(rng.integers(1, 50))):
            expected[writer.add(row(len(expected)))] = None
        door = writer.publish({})
    catalog = Catalog(open_door(folder, "corpus"), Catalog.open(folder).table)
    assert catalog.table["id"].to_pylist() == list(range(len(expected)))
    assert dict(enumerate(catalog.table["label"].to_pylist())) == expected
    asked = rng.permutation(len(expected))[:20]
    assert [item.id for item in catalog.rows(asked)] == asked.tolist()
    assert catalog.labels(asked) == [expected[i] for i in asked]
    assert catalog.door["rows"] == {"total": len(expected), "ok": len(expected)}


def test_the_index_of_uris_finds_what_was_added_and_nothing_else() -> None:
    uris = [f"/in/{i}.png" for i in range(3000)]
    index, keys = UriIndex(), uri_keys(uris)
    for start in range(0, 2000, 70):
        ids = np.arange(start, min(start + 70, 2000))
        index.add(keys[ids], ids)
    assert index.find(keys).tolist() == [*range(2000), *[-1] * 1000]


def test_keys_that_agree_in_their_first_half_are_told_apart() -> None:
    keys = np.array([[7, i] for i in range(5)] + [[8, 1]], np.uint64)
    index = UriIndex()
    index.add(keys[[0, 2, 4, 5]], np.array([10, 12, 14, 15]))
    assert index.find(keys).tolist() == [10, -1, 12, -1, 14, 15]


@pytest.mark.slow
def test_a_scan_takes_numbers_and_no_python_objects_for_each_picture() -> None:
    """At 150,000 and at 350,000 listed pictures; the difference is what each more takes."""
    small, large = (measured(rows) for rows in (150_000, 350_000))
    assert per_row(small, large, "scan") < 100
    assert per_row(small, large, "again") < 250
    assert per_row(small, large, "plan") < 500


def test_a_scan_keeps_few_bytes_for_each_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "DRAFT_ROWS", 1_000)
    folder = Folder.at(tmp_path).make()
    scan_memory.scan(folder, 5_000, again=False)
    tracemalloc.start()
    try:
        writer = CatalogWriter(folder, "many", {"metadata": {}}, open_for_scan(folder))
        comparison = Comparison(writer, 1e8, {}, scan_memory.look)
        for start in range(0, 5_000, 500):
            batch = islice(scan_memory.listing(5_000, again=True), start, start + 500)
            comparison.take(list(batch))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        comparison.close()
    assert comparison.tally["unchanged"] == 4_900
    # Columns of numbers; a row as a dict would be more than a thousand.
    assert kept / 5_000 < 200


def measured(rows: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scan_memory", "--rows", str(rows)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)
    return dict(json.loads(done.stdout))


def per_row(small: dict[str, Any], large: dict[str, Any], step: str) -> float:
    grown = large[step]["peak_mib"] - small[step]["peak_mib"]
    return float(grown * 2**20 / (large["rows"] - small["rows"]))
