"""Pictures are read as they were scanned, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import picture_bytes
from cluster.file_walk import mtime_ns_of
from cluster.picture_bytes import ChangedError, read_bytes


@pytest.mark.parametrize("kind", ["file", "tar", "parquet"])
def test_what_is_written_into_as_it_is_read_has_changed(
    tmp_path: Path, make_png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, data = tmp_path / "a", make_png(1)
    uri = {
        "file": str(path),
        "tar": f"file://{path}#tar=512,{len(data)}&member=a.png",
        "parquet": f"file://{path}#parquet=0&column=image",
    }[kind]
    if kind == "parquet":
        pq.write_table(pa.table({"image": [data]}), path)
    else:
        path.write_bytes(data if kind == "file" else bytes(512) + data)
    scanned_ns = path.stat().st_mtime_ns
    assert read_bytes(uri, len(data), scanned_ns) == data

    def look(found: os.stat_result) -> int:
        monkeypatch.setattr(picture_bytes, "mtime_ns_of", mtime_ns_of)
        os.utime(path, ns=(0, scanned_ns + 1))  # as a write sets it
        return mtime_ns_of(found)

    monkeypatch.setattr(picture_bytes, "mtime_ns_of", look)
    with pytest.raises(ChangedError, match="changed since it was scanned"):
        read_bytes(uri, len(data), scanned_ns)
