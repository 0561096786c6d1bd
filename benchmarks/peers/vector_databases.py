"""Embedded vector databases, each as its pages say to make an index, with ids alone as columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import lancedb
import numpy as np
import pyarrow as pa
from chromadb.api.shared_system_client import SharedSystemClient
from index_curve import EFFORTS, Search, Served, run

NAME = "vectors"
BATCH_ROWS = 5000
LANCE_TYPES = {
    "lancedb-ivf-pq": "IVF_PQ",
    "lancedb-ivf-flat": "IVF_FLAT",
}
# How many times k of the candidates are compared by their whole vectors.
REFINES = (4, 16)


def build(kind: str, folder: Path, vectors: np.ndarray, threads: int) -> dict[str, Any]:
    # Both size their pools by the cores that they see.
    del threads
    if kind == "chroma":
        space = {"space": "ip"}
        collection = chromadb.PersistentClient(str(folder)).create_collection(
            NAME, configuration={"hnsw": space}, embedding_function=None
        )
        for start in range(0, len(vectors), BATCH_ROWS):
            rows = vectors[start : start + BATCH_ROWS]
            ids = [str(number) for number in range(start, start + len(rows))]
            collection.add(ids=ids, embeddings=rows)
        return {}
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), vectors.shape[1]))])
    table = lancedb.connect(folder).create_table(NAME, schema=schema)
    table.add(batches(vectors, schema))
    table.create_index("dot", index_type=LANCE_TYPES[kind], vector_column_name="vector")
    return {}


def batches(vectors: np.ndarray, schema: pa.Schema) -> pa.RecordBatchReader:
    """All rows, in batches."""

    def each() -> Any:
        for start in range(0, len(vectors), BATCH_ROWS):
            rows = vectors[start : start + BATCH_ROWS]
            ids = pa.array(np.arange(start, start + len(rows)))
            flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
            yield pa.record_batch([ids, flat], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, each())


def serve(kind: str, folder: Path, k: int) -> Served:
    return of_chroma(folder, k) if kind == "chroma" else of_lance(kind, folder, k)


def of_lance(kind: str, folder: Path, k: int) -> Served:
    table = lancedb.connect(folder).open_table(NAME)

    def at(nprobes: int, refine: int) -> Search:
        def search(query: np.ndarray) -> list[int]:
            asked = table.search(query[0]).distance_type("dot").nprobes(nprobes).limit(k)
            if refine > 1:
                asked = asked.refine_factor(refine)
            return list(asked.select(["id", "_distance"]).to_arrow()["id"].to_pylist())

        return search

    refines = (1,) if kind == "lancedb-ivf-flat" else REFINES
    return [
        {
            f"{nprobes} lists, refined {refine}x": lambda n=nprobes, r=refine: at(n, r)
            for nprobes in EFFORTS
        }
        for refine in refines
    ]


def of_chroma(folder: Path, k: int) -> Served:
    def opened() -> chromadb.Collection:
        # Its clients share what is open; a changed setting is read by the next to open it.
        SharedSystemClient.clear_system_cache()
        return chromadb.PersistentClient(str(folder)).get_collection(NAME, embedding_function=None)

    def at(ef: int) -> Search:
        opened().modify(configuration={"hnsw": {"ef_search": ef}})
        collection = opened()

        def search(query: np.ndarray) -> list[int]:
            found = collection.query(query_embeddings=query, n_results=k, include=[])
            return [int(text) for text in found["ids"][0]]

        return search

    return [{str(ef): lambda ef=ef: at(ef) for ef in EFFORTS if ef >= k}]


if __name__ == "__main__":
    run(["chroma", *LANCE_TYPES], build, serve, reopened=["chroma"])
