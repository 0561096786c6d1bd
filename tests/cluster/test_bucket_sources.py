"""Pictures in a bucket, from a real S3 server on this machine."""

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
from cluster.picture_uri import Place, place_of
from cluster.scan_job import ScanConfig, scan
from cluster.shards import read_picture
from cluster.workspace import Workspace
from encoders.encoder import embed_picture
from index.embeddings import EmbeddingStore


@pytest.fixture(scope="module")
def store(s3_options: str) -> Place:
    """The bucket ``sources`` of the server."""
    place = place_of(f"s3://sources?{s3_options}&allow_bucket_creation=true")
    place.fs.create_dir("sources")
    return place_of(f"s3://sources?{s3_options}")


def put(store: Place, key: str, data: bytes) -> None:
    with store.fs.open_output_stream(f"sources/{key}") as stream:
        stream.write(data)


def put_parquet(store: Place, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3)
    put(store, key, buffer.getvalue())


def tally(**counts: int) -> dict[str, int]:
    names = ("new", "changed", "returned", "unchanged", "vanished")
    return {**dict.fromkeys(names, 0), **counts}


def test_objects_are_listed_compared_and_read(store: Place, scan_here: Any, make_png: Any) -> None:
    names = ["a/0.png", "a b/1#.png", "a b/deep/2%41.png", "3.png"]
    for seed, name in enumerate(names):
        put(store, f"plain/{name}", make_png(seed))
    put(store, "plain/notes.md", b"not looked at")
    source = store.uri("sources/plain")
    report, catalog = scan_here(source, labels="folder")
    assert report["source_kind"] == "folder"
    found = {row.name: (row.label, read_picture(row).data) for row in catalog.by_uri()}
    assert found == {
        "0.png": ("a", make_png(0)),
        "1#.png": ("a b", make_png(1)),
        "2%41.png": ("deep", make_png(2)),
        "3.png": (None, make_png(3)),
    }
    assert scan_here(source, labels="folder")[0]["since_last_scan"] == tally(unchanged=4)
    put(store, "plain/3.png", make_png(9, 9))
    store.fs.delete_file("sources/plain/a/0.png")
    assert sorted(read_picture(row).status for row in catalog.by_uri()) == [
        "changed",
        "missing",
        "ok",
        "ok",
    ]
    report, _ = scan_here(source, labels="folder")
    assert report["since_last_scan"] == tally(changed=1, unchanged=2, vanished=1)


def test_a_large_header_is_read_whole(store: Place, scan_here: Any) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    # A TIFF of this kind has its header behind its pixels.
    Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_lzw")
    put(store, "large/a.tif", buffer.getvalue())
    _, catalog = scan_here(store.uri("sources/large"))
    row = catalog.rows([0])[0]
    assert (row.status, row.width, row.bytes) == ("ok", 300, len(buffer.getvalue()))


def test_a_list_and_a_table_in_a_bucket_name_pictures_there(
    store: Place, scan_here: Any, make_png: Any
) -> None:
    put(store, "list/in/0.png", make_png(0))
    put(store, "list/2.png", make_png(2))
    lines = ["path,n", "in/0.png,7", f"{store.uri('sources/list/1.png')},8"]
    lines += ["s3://sources/list/2.png,9", "in/../2.png,10"]
    put(store, "list/all.csv", "\n".join(lines).encode())
    report, catalog = scan_here(store.uri("sources/list/all.csv"), columns="n")
    assert report["num_listed_twice"] == 1
    rows = catalog.rows([0, 1, 2])
    found = [(row.status, row.metadata["n"]) for row in rows]
    assert found == [("ok", 7), ("unreadable", 8), ("ok", 9)]
    assert read_picture(rows[0]).data == make_png(0)


@pytest.mark.ray
def test_rows_of_a_bucket_are_embedded_with_their_metadata_beside_them(
    store: Place, make_png: Any, make_encoder: Any, tmp_path: Path, local_ray: Any
) -> None:
    pictures = [make_png(seed) for seed in range(8)]
    table = pa.table({"image": pictures, "n": range(8), "kind": ["a", "b"] * 4})
    put_parquet(store, "rows/x.parquet", table)
    context = Context(Workspace.at(tmp_path / "w"), console=Console(file=io.StringIO()))
    source = store.uri("sources/rows")
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


def test_a_key_in_a_source_is_refused(store: Place, scan_here: Any) -> None:
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY"):
        scan_here(store.uri("sources/plain").replace("s3://", "s3://KEY:h1dd3n@"))


def test_an_object_that_was_replaced_by_one_of_equal_size_is_noticed_by_its_time(
    store: Place, scan_here: Any, make_png: Any
) -> None:
    put(store, "same/a.png", make_png(0))
    _, catalog = scan_here(store.uri("sources/same"))
    row = catalog.rows([0])[0]
    assert row.mtime_ns is not None
    with pytest.raises(ValueError, match="changed since it was scanned"):
        read_bytes(row.uri, row.bytes, row.mtime_ns - 2 * 10**9)
