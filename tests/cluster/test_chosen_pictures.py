"""Which pictures are meant by files and filters, found in a catalog that is read in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.chosen_pictures as chosen_module
from cluster.catalog import CATALOG_SCHEMA, Catalog
from cluster.chosen_pictures import ChosenPictures
from index.artifact import digest, open_door, publish
from index.filters import FilterError, matching
from index.folder import Folder


def scanned(tmp_path: Path) -> ChosenPictures:
    folder = Folder.at(tmp_path / "scanned" / "corpora" / "mine")
    return ChosenPictures(folder, open_door(folder, "corpus"))


def write_catalog(folder: Folder, parts: list[list[dict[str, Any]]]) -> ChosenPictures:
    """A corpus of just these rows, a part for each list."""
    names = [f"catalog-{number:05d}-test.parquet" for number in range(len(parts))]
    folder.make()
    for name, rows in zip(names, parts, strict=True):
        filled = [{"bytes": 1, "status": "ok", **row} for row in rows]
        table = pa.Table.from_pylist(filled, schema=CATALOG_SCHEMA)
        folder.write_with(name, lambda path, table=table: pq.write_table(table, path))
    total = 1 + max(row["id"] for rows in parts for row in rows)
    body = {"id": digest(names), "uid": "u", "name": "mine", "config": {}, "rows": {"total": total}}
    publish(folder, "corpus", body, names)
    return ChosenPictures(folder, open_door(folder, "corpus"))


@pytest.mark.parametrize("block_rows", [2, 16_384])
def test_filters_find_what_they_find_in_the_whole_catalog(
    tmp_path: Path, scan_here: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(chosen_module, "BLOCK_ROWS", block_rows)
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(7)]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(make_png(number))
    source = tmp_path / "list.csv"
    lines = [
        f"{name},{'cat' if number < 4 else 'dog'},{number}" for number, name in enumerate(names)
    ]
    source.write_text("path,class,views\n" + "\n".join(lines))
    scan_here(source, labels="class")
    lines[1] = lines[1].replace("cat", "bird")
    (tmp_path / names[2]).write_bytes(make_png(9) + b" ")
    source.write_text("path,class,views\n" + "\n".join(lines[:-1]))
    _, catalog = scan_here(source, labels="class", columns="views")
    pictures = scanned(tmp_path)
    assert len(pictures.door["files"]) == 2
    for text in (
        "label = 'cat'",
        "label = 'bird' or status = 'vanished'",
        "status in ('replaced', 'vanished') and views is null",
        "views >= 2 and name like '%.png'",
        "id >= 0",
        "name = '3.png'",
        "label = 'none'",
    ):
        expected = matching(catalog.named, text, ["id"])["id"].to_pylist()
        assert sorted(pictures.where(text).tolist()) == expected, text
    assert len(pictures.where("id >= 0")) == len(catalog.table) == 8
    with pytest.raises(FilterError, match=r"no such column\. Did you mean label"):
        pictures.where("labels = 'cat'")


def test_of_rows_of_one_picture_the_last_one_counts_within_a_part_and_over_all(
    tmp_path: Path,
) -> None:
    pictures = write_catalog(
        Folder.at(tmp_path / "corpus"),
        [
            [
                {"id": 0, "uri": "/old/a.png", "label": "x"},
                {"id": 1, "uri": "/old/b.png", "label": "x"},
                {"id": 0, "uri": "/new/a.png", "label": "x"},
                {"id": 2, "uri": "/new/c.png", "label": "y"},
            ],
            [{"id": 1, "uri": "/old/b.png", "label": "z"}, {"id": 3, "uri": "/new/c.png"}],
        ],
    )
    catalog = Catalog.open(pictures.folder)
    assert pictures.where("label = 'x'").tolist() == [0]
    assert sorted(pictures.where("label != 'x'").tolist()) == [1, 2]
    assert pictures.of_files(["/new/a.png"]).tolist() == [0]
    assert sorted(pictures.of_files(["new/c.png", "b.png"]).tolist()) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"'/old/a\.png': is in no row of corpus 'mine'"):
        pictures.of_files(["/old/a.png"])
    assert [row.uri for row in catalog.rows([0, 1])] == ["/new/a.png", "/old/b.png"]


def test_a_whole_path_is_meant_even_if_others_end_with_it(tmp_path: Path) -> None:
    uris = ["/a/b.png", "/c/a/b.png", "/d/a/b.png", "s3://bucket/x.png?region=r", "/a/~x.png"]
    rows = [{"id": number, "uri": uri} for number, uri in enumerate(uris)]
    pictures = write_catalog(Folder.at(tmp_path / "corpus"), [rows[1:3], rows[:1], rows[3:]])
    assert pictures.of_files(["/a/b.png"]).tolist() == [0]
    assert pictures.of_files([uris[3]]).tolist() == [3]
    assert pictures.of_files(["~x.png"]).tolist() == [4]
    with pytest.raises(ValueError, match=r"'b\.png': could be /./?a?/?b\.png or .*whole path"):
        pictures.of_files(["b.png"])


def test_as_much_is_held_of_a_large_catalog_as_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_module, "BLOCK_ROWS", 1000)
    start = "/photographs/of/every/year" * 4
    peaks = {}
    really = ChosenPictures._with_all
    for num_parts in (2, 16):
        held: list[int] = []

        def looked_at(*given: Any, held: list[int] = held) -> Any:
            rows = really(*given)
            held.append(pa.total_allocated_bytes())
            return rows

        monkeypatch.setattr(ChosenPictures, "_with_all", looked_at)
        ids = np.arange(2000 * num_parts).reshape(num_parts, -1).tolist()
        parts = [[{"id": i, "uri": f"{start}/{i:06d}.png"} for i in part] for part in ids]
        pictures = write_catalog(Folder.at(tmp_path / f"of-{num_parts}"), parts)
        before = pa.total_allocated_bytes()
        assert pictures.of_files(["000007.png"]).tolist() == [7]
        assert pictures.where("name like '%7.png' and id = 17").tolist() == [17]
        assert len(held) == 2 * 2 * num_parts
        peaks[num_parts] = max(held) - before
    assert peaks[16] < 1.2 * peaks[2]
