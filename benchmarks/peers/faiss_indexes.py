"""Indexes of FAISS as its factory makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index_curve import EFFORTS, Search, Served, run

FACTORIES = {
    "flat": "Flat",
    "ivf": "IVF{lists},Flat",
    "hnsw": "HNSW32,Flat",
    "ivf-pq": "IVF{lists},PQ{half}x4fs,RFlat",
}
FILE = "index.faiss"


def build(kind: str, folder: Path, vectors: np.ndarray, threads: int) -> dict[str, Any]:
    faiss.omp_set_num_threads(threads)
    lists = int(4 * np.sqrt(len(vectors)))
    factory = FACTORIES[kind].format(lists=lists, half=vectors.shape[1] // 2)
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(folder / FILE))
    return {"factory": factory}


def parameters(kind: str, effort: int) -> faiss.SearchParameters:
    """Per call, of the index below the refinement where there is one."""
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=effort)
    lists = faiss.SearchParametersIVF(nprobe=effort)
    if kind == "ivf-pq":
        return faiss.IndexRefineSearchParameters(k_factor=16, base_index_params=lists)
    return lists if kind == "ivf" else faiss.SearchParameters()


def serve(kind: str, folder: Path, k: int) -> Served:
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(folder / FILE))

    def at(effort: int) -> Search:
        given = parameters(kind, effort)
        return lambda query: index.search(query, k, params=given)[1][0]

    efforts = EFFORTS if kind != "flat" else (1,)
    return [{str(effort): lambda effort=effort: at(effort) for effort in efforts}]


if __name__ == "__main__":
    run(list(FACTORIES), build, serve)
