"""Tars and Hugging Face datasets in a bucket, from real servers on this machine."""

from __future__ import annotations

import io
import json
import tarfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from cluster.picture_uri import PictureUri, Place, place_of
from cluster.shards import read_picture

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def put(bucket: Place, key: str, data: bytes) -> None:
    with bucket.fs.open_output_stream(f"pictures/{key}") as stream:
        stream.write(data)


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put_dataset(bucket: Place, key: str, pictures: list[bytes]) -> None:
    """What ``save_to_disk`` writes: one file of two batches, and two descriptions."""
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": None} for data in pictures], IMAGE),
            "label": [number % 2 for number in range(len(pictures))],
        }
    )
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    put(bucket, f"{key}/data-00000-of-00001.arrow", buffer.getvalue())
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    put(bucket, f"{key}/dataset_info.json", json.dumps({"features": features}).encode())
    files = [{"filename": "data-00000-of-00001.arrow"}]
    put(bucket, f"{key}/state.json", json.dumps({"_data_files": files}).encode())


def tally(**counts: int) -> dict[str, int]:
    names = ("new", "changed", "returned", "unchanged", "vanished")
    return {**dict.fromkeys(names, 0), **counts}


def contents(catalog: Any) -> list[bytes]:
    return [read_picture(row).data for row in catalog.by_uri()]


def test_members_of_tars_are_read_in_pieces_with_what_lies_beside_them(
    bucket: Place, scan_here: Any, make_png: Any
) -> None:
    pictures = [make_png(seed) for seed in range(6)]
    for number in (0, 1):
        members: dict[str, bytes] = {}
        for i in range(3):
            key = f"a b/{3 * number + i}"
            members |= {f"{key}.png": pictures[3 * number + i], f"{key}.cls": b"%d" % (i % 2)}
            members[f"{key}.json"] = json.dumps({"n": i}).encode()
        put(bucket, f"tars/deep/{number} #.tar", tar_of(members))
    source = bucket.uri("pictures/tars")
    report, catalog = scan_here(source, labels="cls", columns="n")
    assert (report["source_kind"], report["pictures"]) == ("tar", {"total": 6, "ok": 6})
    assert contents(catalog) == pictures
    assert catalog.table["label"].to_pylist() == ["0", "1", "0"] * 2
    assert catalog.table["n"].to_pylist() == [0, 1, 2] * 2
    assert PictureUri.parse(catalog.rows([4])[0].uri).size == len(pictures[4])
    again = scan_here(source, labels="cls", columns="n")[0]
    assert again["since_last_scan"] == tally(unchanged=6)
    time.sleep(1.1)  # a store's times are whole seconds, and members have no other mark
    put(bucket, "tars/deep/1 #.tar", tar_of({"a b/3.png": pictures[3], "a b/9.png": make_png(9)}))
    assert [row.status for row in map(read_picture, catalog.by_uri())][3:] == ["changed"] * 3
    report, catalog = scan_here(source, labels="cls", columns="n")
    # The one that is left lost what lay beside it, and keeps its id.
    assert report["since_last_scan"] == tally(unchanged=3, changed=1, new=1, vanished=2)
    assert contents(catalog) == [*pictures[:4], make_png(9)]


def test_a_tar_that_was_not_put_whole_keeps_what_is_known_of_it(
    bucket: Place, scan_here: Any, make_png: Any
) -> None:
    whole = tar_of({f"{i}.png": make_png(i) for i in range(4)})
    put(bucket, "cut/a.tar", whole)
    source = bucket.uri("pictures/cut")
    scan_here(source)
    put(bucket, "cut/a.tar", whole[: len(whole) // 4])
    report, catalog = scan_here(source)
    assert report["skipped_folders"] == ["pictures/cut/a.tar"]
    assert catalog.counts() == {"ok": 4}


def test_rows_of_a_hugging_face_dataset_are_read_by_split(
    bucket: Place, scan_here: Any, make_png: Any
) -> None:
    pictures = [make_png(seed) for seed in range(8)]
    put_dataset(bucket, "hf/train", pictures[:5])
    put_dataset(bucket, "hf/test", pictures[5:])
    put(bucket, "hf/dataset_dict.json", json.dumps({"splits": ["train", "test"]}).encode())
    source = bucket.uri("pictures/hf")
    report, catalog = scan_here(source, labels="label", columns="split")
    assert (report["source_kind"], report["pictures"]) == ("huggingface", {"total": 8, "ok": 8})
    assert contents(catalog) == pictures
    assert catalog.labels(np.arange(8)) == ["cat", "dog", "cat", "dog", "cat", "cat", "dog", "cat"]
    assert catalog.table["split"].to_pylist() == ["train"] * 5 + ["test"] * 3
    assert read_picture(catalog.rows([6])[0]).data == pictures[6]
    again = scan_here(source, labels="label", columns="split")[0]
    assert again["since_last_scan"] == tally(unchanged=8)


def test_a_file_that_a_dataset_lacks_is_named(bucket: Place, scan_here: Any, make_png: Any) -> None:
    put_dataset(bucket, "half", [make_png(seed) for seed in range(4)])
    files = [{"filename": f"data-0000{i}-of-00001.arrow"} for i in (0, 1)]
    put(bucket, "half/state.json", json.dumps({"_data_files": files}).encode())
    report, catalog = scan_here(bucket.uri("pictures/half"))
    assert catalog.counts() == {"ok": 4}
    assert report["skipped_folders"] == ["pictures/half/data-00001-of-00001.arrow"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("gs://anonymous@bucket", "bucket"),
        ("gs://anonymous@bucket/a%20b/c%23.png", "bucket/a b/c#.png"),
    ],
)
def test_gs_uris_lead_to_google_s_store_and_back(uri: str, path: str) -> None:
    """As far as this can be known without Google: which filesystem, bucket and key it would ask."""
    options = "endpoint_override=127.0.0.1%3A9&scheme=http"
    place = place_of(f"{uri}?{options}")
    assert isinstance(place.fs, pafs.GcsFileSystem)
    assert place.path == path
    back = place.uri(place.path)
    assert back == f"{uri}?{options}"
    assert PictureUri.parse(f"{back}#tar=512,70&member=x.png").file == back
