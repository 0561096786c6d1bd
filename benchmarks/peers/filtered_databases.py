"""Embedded vector databases whose columns are filtered by an expression with every query.

Each with its own defaults for building, and the least effort that reaches the target recall without
a filter. Qdrant's local mode has no index and no effort: it compares every vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromadb
import lancedb
import numpy as np
import pyarrow as pa
from chromadb.api.shared_system_client import SharedSystemClient
from filtered import KINDS, Filtering, Given, Search, least_effort, run
from qdrant_client import QdrantClient, models

NAME = "vectors"
BATCH_ROWS = 5000
EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def opened(contestant: str, folder: Path, given: Given) -> Filtering:
    return {"lancedb": of_lance, "chroma": of_chroma, "qdrant-local": of_qdrant}[contestant](
        folder, given
    )


def batches(given: Given) -> Iterator[np.ndarray]:
    """Row numbers, some at a time."""
    for start in range(0, len(given.vectors), BATCH_ROWS):
        yield np.arange(start, min(start + BATCH_ROWS, len(given.vectors)))


def of_lance(folder: Path, given: Given) -> Filtering:
    """Lists of whole vectors, and an index on every column."""
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(given.vectors.ravel()), given.vectors.shape[1]
    )
    columns = {"id": pa.array(np.arange(len(flat))), "vector": flat, **given.ranks}
    table = lancedb.connect(folder).create_table(NAME, pa.table(columns))
    table.create_index("dot", index_type="IVF_FLAT", vector_column_name="vector")
    for kind in KINDS:
        table.create_scalar_index(kind)

    def at(effort: int, where: str | None = None) -> Search:
        def search(query: np.ndarray) -> list[int]:
            # More lists than these only where too few pictures are found, as its pages advise.
            asked = table.search(query[0]).distance_type("dot").limit(given.k)
            asked = asked.minimum_nprobes(effort).maximum_nprobes(0)
            if where is not None:
                asked = asked.where(where, prefilter=True)
            return list(asked.select(["id", "_distance"]).to_arrow()["id"].to_pylist())

        return search

    effort = least_effort(EFFORTS, at, given)
    return lambda kind, count: at(effort, None if count is None else f"{kind} < {count}")


def of_chroma(folder: Path, given: Given) -> Filtering:
    """A graph, with columns as metadata."""
    collection = chromadb.PersistentClient(str(folder)).create_collection(
        NAME, configuration={"hnsw": {"space": "ip"}}, embedding_function=None
    )
    for rows in batches(given):
        collection.add(
            ids=[str(row) for row in rows],
            embeddings=given.vectors[rows],
            metadatas=[{kind: int(given.ranks[kind][row]) for kind in KINDS} for row in rows],
        )

    def reopened() -> chromadb.Collection:
        # Its clients share what is open; a changed setting is read by the next to open it.
        SharedSystemClient.clear_system_cache()
        return chromadb.PersistentClient(str(folder)).get_collection(NAME, embedding_function=None)

    def among(opened: chromadb.Collection, kind: str = "", count: int | None = None) -> Search:
        where = None if count is None else {kind: {"$lt": count}}

        def search(query: np.ndarray) -> list[int]:
            found = opened.query(query_embeddings=query, n_results=given.k, where=where, include=[])
            return [int(text) for text in found["ids"][0]]

        return search

    def at(effort: int) -> Search:
        reopened().modify(configuration={"hnsw": {"ef_search": effort}})
        return among(reopened())

    least_effort([effort for effort in EFFORTS if effort >= given.k], at, given)
    tuned = reopened()
    return lambda kind, count: among(tuned, kind, count)


def of_qdrant(folder: Path, given: Given) -> Filtering:
    """Columns as payload."""
    client = QdrantClient(path=str(folder))
    size = given.vectors.shape[1]
    client.create_collection(
        NAME, vectors_config=models.VectorParams(size=size, distance=models.Distance.DOT)
    )
    for rows in batches(given):
        payloads = [{kind: int(given.ranks[kind][row]) for kind in KINDS} for row in rows]
        client.upsert(
            NAME,
            models.Batch(
                ids=rows.tolist(), vectors=given.vectors[rows].tolist(), payloads=payloads
            ),
        )

    def filtering(kind: str, count: int | None) -> Search:
        within = models.Range(lt=count)
        must = None if count is None else [models.FieldCondition(key=kind, range=within)]

        def search(query: np.ndarray) -> list[int]:
            found = client.query_points(
                NAME,
                query=query[0],
                query_filter=models.Filter(must=must),
                limit=given.k,
                with_payload=False,
            )
            return [int(point.id) for point in found.points]

        return search

    return filtering


if __name__ == "__main__":
    run(["lancedb", "chroma", "qdrant-local"], opened)
