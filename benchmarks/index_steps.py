"""One kind of the project's own index, measured as the others are."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.index_curve import EFFORTS, Search, Served, run
from index.build import build_index
from index.candidate import REFINES
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder
from index.part import Part, set_threads
from index.rank import Ranker
from index.vectors import VECTORS, VectorFile

KINDS = ("exact", "ivf", "pq", "ivf-pq", "hnsw")
FILE = "door.json"
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


def build(kind: str, folder: Path, vectors: Any, threads: int) -> dict[str, Any]:
    """The index of an embedding set, which is gone afterwards."""
    set_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        store = write_store(Folder.at(name), vectors)
        start = time.perf_counter()
        door = build_index(store, Folder.at(folder), IndexConfig(kind=kind))
        seconds = time.perf_counter() - start
    (folder / FILE).write_text(json.dumps(door), encoding="utf-8")
    return {
        "factory": door["recipe"]["factory"],
        "fill_s": door["build_s"],
        "build_s": seconds,
        "bytes_per_vector": door["service_bytes_per_vector"],
    }


def serve(kind: str, folder: Path, k: int) -> Served:
    """Every effort, for codes with every depth of re-ranking."""
    set_threads(1)
    door = json.loads((folder / FILE).read_text(encoding="utf-8"))
    version = folder / door["version"]
    parts = [Part.open(version / part["file"]) for part in door["parts"]]
    stored = VectorFile(version / VECTORS)
    refines = REFINES if kind in ("pq", "ivf-pq") else (1,)
    rankers = {refine: Ranker(parts, stored, refine=refine) for refine in refines}

    def at(effort: int, refine: int) -> Search:
        ranker = rankers[refine]
        return lambda query: ranker.top(query, k, nprobe=effort)[0][0]

    # A graph keeps no less than k in sight.
    least = k if kind == "hnsw" else 1
    return [
        {
            f"{effort}, refined {refine}x": lambda e=effort, r=refine: at(e, r)
            for effort in [step for step in EFFORTS if least <= step < rankers[refine].nlist] or [1]
        }
        for refine in refines
    ]


if __name__ == "__main__":
    run(KINDS, build, serve)
