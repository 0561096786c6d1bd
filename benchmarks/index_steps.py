"""One kind of the project's own index: recall and queries a second at each effort, as JSON."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import peak_mb
from index.artifact import Folder
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.part import Part, one_thread, set_threads
from index.rank import Ranker
from index.tune import REFINES
from index.vectors import VECTORS, VectorFile

EFFORTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SHARD_ROWS = 4096


def write_store(folder: Folder, vectors: Any) -> EmbeddingStore:
    """The vectors as an embedding set, as the embed job leaves it."""
    records = []
    for number, start in enumerate(range(0, len(vectors), SHARD_ROWS)):
        rows = vectors[start : start + SHARD_ROWS]
        batch = ShardBatch(
            ids=np.arange(start, start + len(rows), dtype=np.int64),
            statuses=["ok"] * len(rows),
            content_hashes=[bytes(32)] * len(rows),
            vectors=rows,
        )
        name, thumbnails = f"{number:05d}-bench", [None] * len(rows)
        records.append(write_shard(folder, name, batch, thumbnails=thumbnails))
    parents = {"encoder_id": "bench", "corpus_id": "bench", "corpus_uid": "bench"}
    publish_embeddings(folder, records, {"parents": parents, "config": {"layer": "backbone"}})
    return EmbeddingStore.open(folder)


def curve(ranker: Ranker, queries: Any, truth: Any, k: int) -> list[dict[str, float]]:
    """Recall and queries a second, one query at a time on one thread."""
    found = []
    efforts = [step for step in EFFORTS if step < ranker.nlist] or [1]
    for effort in efforts:
        ranker.top(queries[:50], k, nprobe=effort)
        start = time.perf_counter()
        ids = [ranker.top(query[None], k, nprobe=effort)[0][0] for query in queries]
        seconds = time.perf_counter() - start
        hits = [len(set(a) & set(b)) for a, b in zip(ids, truth, strict=True)]
        found.append(
            {
                "effort": effort,
                "refine": ranker.refine,
                "recall": float(np.mean(hits)) / k,
                "queries_per_s": len(queries) / seconds,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--build-threads", type=int, required=True)
    asked = parser.parse_args()
    queries, truth = (np.load(asked.folder / f"{name}.npy") for name in ("queries", "truth"))
    with tempfile.TemporaryDirectory() as name:
        vectors = np.load(asked.folder / "vectors.npy", mmap_mode="r")
        store = write_store(Folder.at(name) / "embeddings", vectors)
        set_threads(asked.build_threads)
        folder = Folder.at(name) / "built"
        start = time.perf_counter()
        door = build_index(store, folder, IndexConfig(kind=asked.kind, k=asked.k))
        whole_s = time.perf_counter() - start
        version = folder / door["version"]
        parts = [Part.open(version.local_path(part["file"])) for part in door["parts"]]
        stored = VectorFile(version.local_path(VECTORS))
        refines = REFINES if asked.kind in ("pq", "ivf-pq") else (1,)
        with one_thread():
            points = [
                point
                for refine in refines
                for point in curve(Ranker(parts, stored, refine=refine), queries, truth, asked.k)
            ]
    measured = {
        "factory": door["recipe"]["factory"],
        "build_s": door["build_s"],
        "whole_s": whole_s,
        "bytes_per_vector": door["service_bytes_per_vector"],
        "disk_bytes_per_vector": door["bytes_per_vector"],
        "peak_mb": peak_mb(),
        "curve": points,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
