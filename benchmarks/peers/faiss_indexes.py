"""Indexes of FAISS as its factory makes them: recall and queries a second at each effort.

Vectors, queries and their exact answers come from files. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import faiss
import numpy as np

EFFORTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
FACTORIES = {
    "flat": "Flat",
    "ivf": "IVF{lists},Flat",
    "hnsw": "HNSW32,Flat",
    "ivf-pq": "IVF{lists},PQ{half}x4fs,RFlat",
}


def parameters(kind: str, effort: int) -> faiss.SearchParameters:
    """Per call, of the index below the refinement where there is one."""
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=effort)
    lists = faiss.SearchParametersIVF(nprobe=effort)
    if kind == "ivf-pq":
        return faiss.IndexRefineSearchParameters(k_factor=16, base_index_params=lists)
    return lists if kind == "ivf" else faiss.SearchParameters()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=list(FACTORIES))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--build-threads", type=int, required=True)
    asked = parser.parse_args()
    vectors = np.load(asked.folder / "vectors.npy")
    queries, truth = (np.load(asked.folder / f"{name}.npy") for name in ("queries", "truth"))
    faiss.omp_set_num_threads(asked.build_threads)
    lists = int(4 * np.sqrt(len(vectors)))
    factory = FACTORIES[asked.kind].format(lists=lists, half=vectors.shape[1] // 2)
    start = time.perf_counter()
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    build_s = time.perf_counter() - start
    size = len(faiss.serialize_index(index))
    faiss.omp_set_num_threads(1)
    curve = []
    for effort in EFFORTS if asked.kind != "flat" else (1,):
        given = parameters(asked.kind, effort)
        index.search(queries[:50], asked.k, params=given)
        start = time.perf_counter()
        found = [index.search(query[None], asked.k, params=given)[1][0] for query in queries]
        seconds = time.perf_counter() - start
        hits = [len(set(a) & set(b)) for a, b in zip(np.array(found), truth, strict=True)]
        curve.append(
            {
                "effort": effort,
                "recall": float(np.mean(hits)) / asked.k,
                "queries_per_s": len(queries) / seconds,
            }
        )
    measured = {
        "factory": factory,
        "build_s": build_s,
        "bytes_per_vector": size / len(vectors),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "curve": curve,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
