"""The HNSW libraries, each with its own defaults for building."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import voyager
from index_curve import EFFORTS, Search, Served, run
from usearch.index import Index as Usearch

FILE, DIM = "index.graph", "dim.npy"
VOYAGER_TYPES = {
    "voyager": voyager.StorageDataType.Float32,
    "voyager-e4m3": voyager.StorageDataType.E4M3,
}
USEARCH_TYPES = {"usearch": "f32", "usearch-f16": "f16", "usearch-i8": "i8"}


def build(kind: str, folder: Path, vectors: np.ndarray, threads: int) -> dict[str, Any]:
    file, dim = str(folder / FILE), vectors.shape[1]
    if kind == "hnswlib":
        graph = hnswlib.Index(space="ip", dim=dim)
        graph.init_index(max_elements=len(vectors))
        graph.add_items(vectors, num_threads=threads)
        graph.save_index(file)
        np.save(folder / DIM, dim)
    elif kind in USEARCH_TYPES:
        scalar = Usearch(ndim=dim, metric="ip", dtype=USEARCH_TYPES[kind])
        scalar.add(np.arange(len(vectors)), vectors, threads=threads)
        scalar.save(file)
    else:
        storage = VOYAGER_TYPES[kind]
        trees = voyager.Index(voyager.Space.Cosine, dim, storage_data_type=storage)
        trees.add_items(vectors, num_threads=threads)
        trees.save(file)
    return {}


def serve(kind: str, folder: Path, k: int) -> Served:
    at = {"hnswlib": of_hnswlib, "usearch": of_usearch, "voyager": of_voyager}[
        kind.partition("-")[0]
    ](str(folder / FILE), k)
    # A list of candidates shorter than k cannot hold the answer.
    return [{str(ef): lambda ef=ef: at(ef) for ef in EFFORTS if ef >= k}]


def of_hnswlib(file: str, k: int) -> Any:
    # The file does not say its dimension, and the library wants it before it reads.
    dim = np.load(Path(file).with_name(DIM))
    index = hnswlib.Index(space="ip", dim=int(dim))
    index.load_index(file)

    def at(ef: int) -> Search:
        index.set_ef(ef)
        return lambda query: index.knn_query(query, k, num_threads=1)[0][0]

    return at


def of_usearch(file: str, k: int) -> Any:
    index = Usearch.restore(file)

    def at(ef: int) -> Search:
        index.expansion_search = ef
        return lambda query: index.search(query[0], k, threads=1).keys

    return at


def of_voyager(file: str, k: int) -> Any:
    index = voyager.Index.load(file)
    return lambda ef: lambda query: index.query(query[0], k, query_ef=ef)[0]


if __name__ == "__main__":
    run(["hnswlib", *USEARCH_TYPES, *VOYAGER_TYPES], build, serve)
