"""Labels of a CSV file beside a large corpus."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.catalog import CATALOG_SCHEMA, Catalog
from cluster.label_csv import read_label_csv

NUM_PICTURES = 200_000


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """Pictures of which number 7 was replaced by the last, and number 8 is gone."""
    uris = [f"/pictures/{number:06d}.png" for number in range(NUM_PICTURES)]
    uris[-1] = uris[7]
    statuses = ["ok"] * NUM_PICTURES
    statuses[7], statuses[8] = "replaced", "vanished"
    table = pa.table({"id": np.arange(NUM_PICTURES), "uri": uris, "status": statuses})
    for field in CATALOG_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field.name, pa.nulls(NUM_PICTURES, field.type))
    door = {"name": "mine", "uid": "u", "config": {"folder": "/pictures"}}
    return Catalog(door, table.select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA))


def test_files_are_found_at_no_python_object_a_picture(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n/pictures/000003.png,cat\n000007.png,dog\n000003.png,cat\n")
    tracemalloc.start()
    try:
        events = read_label_csv(path, "ann", catalog)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = [(event.picture_id, event.label) for event in events]
    assert found == [(3, "cat"), (NUM_PICTURES - 1, "dog"), (3, "cat")]
    assert peak_bytes < 10 * NUM_PICTURES, "a dictionary of all pictures takes 150 bytes for each"


@pytest.mark.parametrize("name", ["000008.png", "/elsewhere/000003.png", "\u00e4.png"])
def test_a_file_that_is_gone_or_none_is_named(catalog: Catalog, tmp_path: Path, name: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"file,label\n{name},cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"line 2: '{name}' is no picture of corpus 'mine'"):
        read_label_csv(path, "ann", catalog)
