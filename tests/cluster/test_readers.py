"""Other programs read embeddings and indexes as docs/formats.md shows, without lookalike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from cluster.collection import Collection
from index.embeddings import EmbeddingStore
from index.removal import remove_pictures
from index.search import Searcher


@pytest.fixture
def embeddings(library: Any) -> Path:
    return Path(library.folder("embeddings", library.index).local_path())


@pytest.fixture
def version(library: Any) -> Path:
    folder = library.folder("indexes", library.index).local_path()
    return Path(folder) / (folder / "CURRENT").read_text().split()[0]


@pytest.fixture
def searcher(library: Any) -> Searcher:
    return Searcher.open(library.folder("indexes", library.index))


def test_a_store_is_a_dataset(library: Any, searcher: Searcher) -> None:
    store = EmbeddingStore.open(library.folder("embeddings", library.index))
    dataset = store.dataset()
    assert dataset.schema.names == ["id", "status", "content_hash", "vector"]
    table = dataset.to_table(filter=ds.field("id") < 5)
    assert table["id"].to_pylist() == [0, 1, 2, 3, 4]
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, searcher.vectors_of(range(5)))


def test_arrow_alone_finds_the_shards_among_other_files(embeddings: Path) -> None:
    dataset = ds.dataset(embeddings / "shards", format="parquet", exclude_invalid_files=True)
    assert dataset.count_rows(filter=ds.field("status") == "ok") == 30


def test_arrow_alone_maps_the_vectors_without_a_copy(version: Path, searcher: Searcher) -> None:
    source = pa.memory_map(str(version / "vectors.arrow"))
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(source).read_all()
    assert pa.total_allocated_bytes() == before
    vectors = table["vector"].chunk(0).flatten().to_numpy().reshape(len(table), -1)
    np.testing.assert_array_equal(vectors.astype(np.float32), searcher.vectors_of(searcher.ids))


def test_faiss_alone_searches_a_part(version: Path, searcher: Searcher) -> None:
    part = faiss.read_index(str(next(version.glob("part-*.faiss"))))
    query = searcher.vectors_of([7])
    scores, ids = part.search(query, 5)
    hits = searcher.search(query, 5, exact=True)
    assert ids[0].tolist() == hits.ids[0].tolist()
    np.testing.assert_allclose(scores, hits.scores, atol=1e-3)


def test_the_documented_readers_read_it_all(
    library: Any, version: Path, searcher: Searcher, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (shown,) = (part for part in page.split("```") if "import duckdb, lancedb" in part)
    query = "np.array(asked, np.float32)"
    program = shown.removeprefix("python")
    for theirs, ours in [
        ("mine-enc1", library.index),
        ("v000001", version.name),
        ("128", str(searcher.dim)),
        ('connect("lance")', f"connect({str(tmp_path / 'lance')!r})"),
    ]:
        assert theirs in program
        program = program.replace(theirs, ours)
    program += f"""
import json, numpy as np
asked = {searcher.vectors_of([7])[0].tolist()}
found = lance.search({query}).distance_type("dot").limit(5).to_arrow()
print(json.dumps({{"rows": lance.count_rows(), "ids": found["id"].to_pylist(),
    "distances": found["_distance"].to_pylist(), "vectors": list(vectors.shape)}}))
"""
    # In a process of its own: LanceDB's threads do not go well with the forks of other tests.
    folder = library.folder("indexes", library.index).local_path().parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    hits = searcher.search(searcher.vectors_of([7]), 5, exact=True)
    assert (found["rows"], found["vectors"]) == (len(searcher), [len(searcher), searcher.dim])
    assert found["ids"] == hits.ids[0].tolist()
    np.testing.assert_allclose(1 - np.array(found["distances"]), hits.scores[0], atol=1e-3)


def test_the_documented_search_finds_what_is_alive_in_a_changed_version(library: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (snippet,) = (part for part in page.split("```") if "def search(" in part)
    shown: dict[str, Any] = {}
    exec(snippet.removeprefix("python"), shown)
    folder = library.folder("indexes", library.index)
    query = Searcher.open(folder).vectors_of([7])
    remove_pictures(folder, np.array([7, 8]))
    searcher = Searcher.open(folder)
    scores, ids = shown["search"](searcher.folder.local_path(), query, 5)
    hits = searcher.search(query, 5, exact=True)
    assert ids[0].tolist() == hits.ids[0].tolist()
    np.testing.assert_allclose(scores, hits.scores, atol=1e-3)


def test_pandas_reads_the_shards(embeddings: Path) -> None:
    pandas = pytest.importorskip("pandas")
    files = sorted((embeddings / "shards").glob("*.parquet"))
    frame = pandas.read_parquet(files, columns=["id", "status"])
    assert (len(frame), set(frame["status"])) == (30, {"ok"})


def test_duckdb_reads_the_shards_and_a_result(embeddings: Path, library: Any) -> None:
    duckdb = pytest.importorskip("duckdb", reason="with the dev tools")
    pattern = str(embeddings / "shards" / "*.parquet")
    found = duckdb.sql(f"select count(*), max(id) from '{pattern}' where status = 'ok'").fetchall()
    assert found == [(30, 29)]
    collection = Collection.open(library.workspace, library.index)
    results = collection.to_arrow(collection.search_ids([1, 2], 4), ["label", "width"])
    rows = duckdb.sql("select query, count(*), min(width) from results group by query").fetchall()
    assert sorted(rows) == [(0, 4, 24), (1, 4, 24)]
    labels = collection.catalog.labels(results["id"].to_numpy())
    assert results["label"].to_pylist() == labels


def test_polars_scans_the_shards_lazily(embeddings: Path, searcher: Searcher) -> None:
    polars = pytest.importorskip("polars", reason="with the dev tools")
    frame = polars.scan_parquet(embeddings / "shards" / "*.parquet")
    found = frame.filter(polars.col("id") == 7).select("vector").collect()
    vector = np.array(found["vector"][0].to_list(), np.float32)
    np.testing.assert_array_equal(vector, searcher.vectors_of([7])[0])
    table = polars.from_arrow(searcher.search(searcher.vectors_of([7]), 3).to_arrow())
    assert table["id"][0] == 7
