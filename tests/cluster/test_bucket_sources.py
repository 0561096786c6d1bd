"""Pictures in a bucket, from real servers of S3's and Google's interface on this machine."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.catalog import open_corpus
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.picture_bytes import read_bytes
from cluster.picture_uri import Place
from cluster.scan_job import ScanConfig, scan
from cluster.shards import read_picture
from cluster.workspace import Workspace
from encoders.encoder import embed_picture
from index.embeddings import EmbeddingStore


def put(bucket: Place, key: str, data: bytes) -> None:
    with bucket.fs.open_output_stream(f"pictures/{key}") as stream:
        stream.write(data)


def put_parquet(bucket: Place, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3)
    put(bucket, key, buffer.getvalue())


def tally(**counts: int) -> dict[str, int]:
    names = ("new", "changed", "returned", "unchanged", "vanished")
    return {**dict.fromkeys(names, 0), **counts}


def test_objects_are_listed_compared_and_read(bucket: Place, scan_here: Any, make_png: Any) -> None:
    names = ["a/0.png", "a b/1#.png", "a b/deep/2%41.png", "3.png"]
    for seed, name in enumerate(names):
        put(bucket, f"plain/{name}", make_png(seed))
    put(bucket, "plain/notes.md", b"not looked at")
    put(bucket, "plain/.hidden/4.png", make_png(4))
    source = bucket.uri("pictures/plain")
    report, catalog = scan_here(source, labels="folder")
    assert report["source_kind"] == "folder"
    found = {row.name: (row.label, read_picture(row).data) for row in catalog.by_uri()}
    assert found == {
        "0.png": ("a", make_png(0)),
        "1#.png": ("a b", make_png(1)),
        "2%41.png": ("deep", make_png(2)),
        "3.png": (None, make_png(3)),
    }
    # Files of a folder come before its folders, whatever the store.
    assert [row.name for row in catalog.rows(range(4))] == ["3.png", "0.png", "1#.png", "2%41.png"]
    assert scan_here(source, labels="folder")[0]["since_last_scan"] == tally(unchanged=4)
    put(bucket, "plain/3.png", make_png(9, 9))
    bucket.fs.delete_file("pictures/plain/a/0.png")
    assert sorted(read_picture(row).status for row in catalog.by_uri()) == [
        "changed",
        "missing",
        "ok",
        "ok",
    ]
    report, _ = scan_here(source, labels="folder")
    assert report["since_last_scan"] == tally(changed=1, unchanged=2, vanished=1)


def test_a_large_header_is_read_whole(bucket: Place, scan_here: Any) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    # A TIFF of this kind has its header behind its pixels.
    Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_lzw")
    put(bucket, "large/a.tif", buffer.getvalue())
    _, catalog = scan_here(bucket.uri("pictures/large"))
    row = catalog.rows([0])[0]
    assert (row.status, row.width, row.bytes) == ("ok", 300, len(buffer.getvalue()))


def test_a_list_and_a_table_in_a_bucket_name_pictures_there(
    bucket: Place, scan_here: Any, make_png: Any
) -> None:
    put(bucket, "list/in/0.png", make_png(0))
    put(bucket, "list/2.png", make_png(2))
    scheme = bucket.base.partition("?")[0]  # of the same server, whose options it need not repeat
    lines = ["path,n", "in/0.png,7", f"{bucket.uri('pictures/list/1.png')},8"]
    lines += [f"{scheme}pictures/list/2.png,9", "in/../2.png,10"]
    put(bucket, "list/all.csv", "\n".join(lines).encode())
    report, catalog = scan_here(bucket.uri("pictures/list/all.csv"), columns="n")
    assert report["num_listed_twice"] == 1
    rows = catalog.rows([0, 1, 2])
    found = [(row.status, row.metadata["n"]) for row in rows]
    assert found == [("ok", 7), ("unreadable", 8), ("ok", 9)]
    assert read_picture(rows[0]).data == make_png(0)


@pytest.mark.ray
def test_rows_of_a_bucket_are_embedded_with_their_metadata_beside_them(
    bucket: Place, make_png: Any, make_encoder: Any, tmp_path: Path, local_ray: Any
) -> None:
    pictures = [make_png(seed) for seed in range(8)]
    table = pa.table({"image": pictures, "n": range(8), "kind": ["a", "b"] * 4})
    put_parquet(bucket, "rows/x.parquet", table)
    context = Context(Workspace.at(tmp_path / "w"), console=Console(file=io.StringIO()))
    source = bucket.uri("pictures/rows")
    scan(ScanConfig(source=source, corpus="far", labels="kind", columns="n"), context)
    encoder = make_encoder(context.workspace)
    report = embed(EmbedConfig(corpus="far", encoder="tiny", shard_rows=3), context)
    assert report["pictures"] == {"ok": 8}
    embedded = EmbeddingStore.open(context.workspace.folder("embeddings", "far-tiny"))
    ((ids, vectors),) = [tuple(map(np.concatenate, zip(*embedded.iter_batches(), strict=True)))]
    np.testing.assert_array_equal(ids, np.arange(8))
    expected = [embed_picture(encoder, data, layer="backbone") for data in pictures]
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    catalog = open_corpus(context.workspace, "far")
    assert catalog.table["n"].to_pylist() == list(range(8))
    assert catalog.labels(ids) == ["a", "b"] * 4
    assert "testsecret" not in json.dumps(report) + json.dumps(catalog.door)


@pytest.mark.parametrize(
    "source", ["s3://KEY:h1dd3n@pictures/plain", "gs://KEY@pictures", "gs://anonymous@KEY@pictures"]
)
def test_a_key_in_a_source_is_refused(source: str, scan_here: Any) -> None:
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as refused:
        scan_here(source)
    assert "KEY@" not in str(refused.value)
    assert "h1dd3n" not in str(refused.value)


def test_an_object_that_was_replaced_by_one_of_equal_size_is_noticed_by_its_time(
    bucket: Place, scan_here: Any, make_png: Any
) -> None:
    put(bucket, "same/a.png", make_png(0))
    _, catalog = scan_here(bucket.uri("pictures/same"))
    row = catalog.rows([0])[0]
    assert row.mtime_ns is not None
    with pytest.raises(ValueError, match="changed since it was scanned"):
        read_bytes(row.uri, row.bytes, row.mtime_ns - 2 * 10**9)
