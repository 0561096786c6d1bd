"""index, remove and compact within their memory: catalog, embedding set and vectors included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.catalog import CATALOG_SCHEMA, gone_ids
from index.artifact import digest, open_door, publish
from index.embeddings import ShardBatch, publish_embeddings, write_shard
from index.folder import Folder

# VmHWM counts anonymous memory and the pages of maps alike. The baseline is taken after a tiny
# index of every kind, when all libraries are loaded and have made their pools.
VERB = """
    import io, json, sys
    from pathlib import Path
    from rich.console import Console
    from cluster.compact_job import CompactConfig, compact
    from cluster.context import Context
    from cluster.index_job import IndexJobConfig, index_embeddings
    from cluster.remove_job import RemoveConfig, remove
    from cluster.workspace import Workspace
    from index.budget import give_back
    from index.choose import IndexConfig

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    place, verb, given = sys.argv[1:]
    context = Context(Workspace.at(place), console=Console(file=io.StringIO()))

    def run(verb, name, given):
        if verb == "index":
            build = IndexConfig(num_queries=400, **given)
            corpus = name.partition("-")[0]
            config = IndexJobConfig(corpus=corpus, encoder="enc", name=name, build=build)
            return index_embeddings(config, context)
        if verb == "compact":
            return compact(CompactConfig(index=name, **given), context)
        lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        return remove(RemoveConfig(index=name, **{**given, **lists}), context)

    for kind in ("exact", "ivf", "ivf-pq"):
        tiny = f"tiny-{kind}"
        run("index", tiny, {"kind": kind, "memory": "100MB"})
        if verb != "index":
            run("remove", tiny, {"where": "id < 3", "files": ["000000009.jpg"]})
            run("compact", tiny, {})
            run("compact", tiny, {"retrain": True})
            run("remove", tiny, {"restore": True})
    give_back()
    baseline = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew
    report = run(verb, "big", json.loads(given))
    over = status("VmHWM") - baseline
    print(json.dumps({"over": over, **{key: report[key] for key in ("action", "why", "rows")}}))
"""
PART_ROWS = 50_000

linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the mark is Linux's own"
)


def scan_says(place: Path, name: str, parts: list[tuple[np.ndarray, str]]) -> None:
    """Publish a catalog, or more parts of it: ids with a status, and the columns of real ones."""
    folder = Folder.at(place / "corpora" / name).make()
    known = folder.exists("corpus.json")
    names = list(open_door(folder, "corpus")["files"]) if known else []
    for ids, status in parts:
        count = len(ids)
        columns = {
            "id": ids,
            "uri": [f"/data/photographs/of/every/year/{i // 1000:06d}/{i:09d}.jpg" for i in ids],
            "bytes": np.full(count, 123_456),
            "mtime_ns": np.full(count, 1_700_000_000_000_000_000),
            "status": [status] * count,
            "format": ["JPEG"] * count,
            "width": pa.array(np.full(count, 640), pa.int32()),
            "height": pa.array(np.full(count, 480), pa.int32()),
        }
        empty = {
            field.name: pa.nulls(count, field.type)
            for field in CATALOG_SCHEMA
            if field.name not in columns
        }
        table = pa.table({**columns, **empty}).select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA)
        names.append(f"catalog-{len(names):05d}-test.parquet")
        folder.write_with(names[-1], lambda path, table=table: pq.write_table(table, path))
    total = 1 + max(int(ids.max()) for ids, _ in parts)
    if known:
        total = open_door(folder, "corpus")["rows"]["total"]
    body = {
        "id": digest([name, names]),
        "uid": f"uid of {name}",
        "name": name,
        "config": {},
        "rows": {"total": total},
    }
    publish(folder, "corpus", body, names)


def write_corpus(place: Path, name: str, num_rows: int, dim: int) -> None:
    """A catalog and class-sorted clusters, streamed to disk."""
    starts = range(0, num_rows, PART_ROWS)
    scan_says(place, name, [(np.arange(s, min(s + PART_ROWS, num_rows)), "ok") for s in starts])
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, dim)).astype(np.float32)
    folder, records = Folder.at(place / "embeddings" / f"{name}-enc").make(), []
    for number, start in enumerate(range(0, num_rows, 8192)):
        ids = np.arange(start, min(start + 8192, num_rows))
        noise = rng.standard_normal((len(ids), dim), np.float32)
        batch = ShardBatch(
            ids=ids,
            statuses=["ok"] * len(ids),
            content_hashes=[bytes(32)] * len(ids),
            vectors=centres[ids * len(centres) // num_rows] + 0.3 * noise,
        )
        nothing = [None] * len(ids)
        records.append(write_shard(folder, f"{number:05d}-aa", batch, thumbnails=nothing))
    parents = {
        "encoder_id": "e",
        "corpus_id": "c",
        "corpus_uid": f"uid of {name}",
        "corpus": name,
        "encoder": "enc",
        "embeddings": f"{name}-enc",
    }
    publish_embeddings(folder, records, {"parents": parents, "config": {"layer": "backbone"}})


def run_verb(place: Path, verb: str, **given: Any) -> dict[str, Any]:
    """What a verb says of the index ``big``, and how much memory it took beyond the program."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(VERB), str(place), verb, json.dumps(given)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def index_within(place: Path, memory: str, kind: str) -> dict[str, Any]:
    return run_verb(place, "index", memory=memory, kind=kind)


def write_corpora(place: Path, num_rows: int, dim: int) -> None:
    """The one that is measured, and a tiny one for what a process takes whatever it indexes."""
    write_corpus(place, "tiny", 2000, dim)
    write_corpus(place, "big", num_rows, dim)


def follow_a_corpus(place: Path, num_rows: int, memory: str, kind: str) -> list[dict[str, Any]]:
    """Index it, again, after a few pictures went, and after many did."""
    found = [index_within(place, memory, kind) for _ in range(2)]
    drawn = np.random.default_rng(1).permutation(num_rows)
    for gone in (drawn[: num_rows // 50], drawn[num_rows // 50 : num_rows // 4]):
        scan_says(place, "big", [(np.sort(gone), "vanished")])
        found.append(index_within(place, memory, kind))
    return found


@linux
@pytest.mark.timeout(900)
def test_an_index_is_made_and_followed_within_its_memory(tmp_path: Path) -> None:
    write_corpora(tmp_path, 300_000, 16)
    found = follow_a_corpus(tmp_path, 300_000, "64MB", "exact")
    assert [each["action"] for each in found] == ["built", "reused", "changed", "compacted"]
    over = [each["over"] for each in found]
    assert max(over) <= 64_000_000, "the catalog alone would take more"
    assert over[1] <= 28_000_000, "to see that nothing changed takes little"


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_million_pictures_are_indexed_and_followed_within_128_megabytes(
    tmp_path: Path,
) -> None:
    write_corpora(tmp_path, 2_000_000, 32)
    found = follow_a_corpus(tmp_path, 2_000_000, "128MB", "ivf-pq")
    assert [each["action"] for each in found] == ["built", "reused", "changed", "compacted"]
    assert max(each["over"] for each in found) <= 128_000_000


def thin_out(place: Path, num_rows: int) -> list[dict[str, Any]]:
    """Have an index lose pictures, a few and then a quarter of them, and be compacted each time."""
    return [
        run_verb(place, "remove", where=f"id < {num_rows // 50} and width = 640"),
        run_verb(place, "compact"),
        run_verb(place, "remove", files=[f"{num_rows - 1:09d}.jpg", f"{num_rows - 2:09d}.jpg"]),
        run_verb(place, "remove", where=f"id < {num_rows // 4}"),
        run_verb(place, "compact"),
        run_verb(place, "remove", restore=True),
        run_verb(place, "compact", retrain=True),
    ]


@linux
@pytest.mark.timeout(900)
def test_pictures_are_removed_and_restored_within_the_memory_of_their_index(
    tmp_path: Path,
) -> None:
    write_corpora(tmp_path, 300_000, 16)
    index_within(tmp_path, "64MB", "exact")
    found = thin_out(tmp_path, 300_000)
    assert [each["action"] for each in found] == [
        *("changed", "compacted", "changed", "changed"),
        *("compacted", "compacted", "built"),
    ]
    assert [each["rows"] for each in found[-2:]] == [300_000, 300_000]
    assert max(each["over"] for each in found) <= 64_000_000, "the catalog alone would take more"


@linux
@pytest.mark.timeout(900)
def test_an_index_that_has_no_room_for_changes_is_built_within_its_memory(tmp_path: Path) -> None:
    write_corpora(tmp_path, 300_000, 16)
    found = [
        index_within(tmp_path, "36MB", "exact"),
        run_verb(tmp_path, "remove", where="id < 60000"),
        run_verb(tmp_path, "compact", retrain=True),
        run_verb(tmp_path, "remove", restore=True),
    ]
    assert [each["action"] for each in found] == ["built"] * 4
    assert [each["rows"] for each in found] == [300_000, 240_000, 240_000, 300_000]
    assert "more than the memory that it may take, 36MB" in found[1]["why"]
    assert max(each["over"] for each in found) <= 36_000_000, found


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_two_million_pictures_some_are_removed_within_128_megabytes(tmp_path: Path) -> None:
    write_corpora(tmp_path, 2_000_000, 32)
    index_within(tmp_path, "128MB", "ivf-pq")
    found = [
        run_verb(tmp_path, "remove", where="id < 40000"),
        run_verb(tmp_path, "compact"),
        run_verb(tmp_path, "remove", where="id < 500000"),
        run_verb(tmp_path, "compact", retrain=True),
        run_verb(tmp_path, "remove", where="id < 1800000"),
        run_verb(tmp_path, "remove", restore=True),
    ]
    assert [each["rows"] for each in found[1:]] == [
        *(1_960_000, 1_500_000, 1_500_000, 200_000, 2_000_000)
    ]
    assert max(each["over"] for each in found) <= 128_000_000, found


def test_gone_pictures_are_those_that_the_newest_rows_say(tmp_path: Path) -> None:
    scan_says(tmp_path, "mine", [(np.arange(6), "ok"), (np.array([1, 4, 5]), "vanished")])
    scan_says(tmp_path, "mine", [(np.array([4]), "ok"), (np.array([2]), "replaced")])
    folder = Folder.at(tmp_path / "corpora" / "mine")
    assert gone_ids(folder, open_door(folder, "corpus")).tolist() == [1, 2, 5]
