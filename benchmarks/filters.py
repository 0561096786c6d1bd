"""Recall and time of filtered search by share of pictures: here, and FAISS with its selector.

Both search the same inverted lists in one thread. FAISS visits the number of lists that reaches the
target recall without a filter, and skips what its ``IDSelectorBitmap`` does not select, which is
what an application does that has no planner. Truth is brute force over the selected pictures.

Shapes: N pictures, D dimensions, Q queries, K results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from benchmarks import measuring
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder
from index.measure import TIE
from index.search import Searcher

DIM, K, SEED = 128, 10, 0
CLUSTERS, NOISE = 200, 0.9
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
KINDS = ("uncorrelated", "clusters", "one side")
TIMEOUT_S = 1800.0


def corpus(num_pictures: int) -> np.ndarray:
    """Vectors in clusters, sorted by cluster, as pictures in folders are."""
    rng = np.random.default_rng(SEED)
    codes = np.sort(rng.integers(0, CLUSTERS, num_pictures))
    noise = NOISE * rng.normal(size=(num_pictures, DIM))
    return (rng.normal(size=(CLUSTERS, DIM))[codes] + noise).astype(np.float32)


def build(folder: Folder, num_pictures: int) -> None:
    """An index of inverted lists over the corpus."""
    vectors, ids = corpus(num_pictures), np.arange(num_pictures, dtype=np.int64)
    batch = ShardBatch(
        ids=ids,
        statuses=["ok"] * num_pictures,
        content_hashes=[None] * num_pictures,
        vectors=vectors,
    )
    record = write_shard(folder / "set", "00000-aa", batch, thumbnails=[None] * num_pictures)
    body = {"parents": {"encoder_id": "none"}, "config": {"layer": "backbone"}}
    publish_embeddings(folder / "set", [record], body)
    config = IndexConfig(kind="ivf", seed=SEED)
    build_index(EmbeddingStore.open(folder / "set"), folder / "index", config)


def selected(vectors: np.ndarray, kind: str, share: float) -> np.ndarray:
    """Rows of a share of the pictures: drawn, of some clusters alone, or of one side of space."""
    rng = np.random.default_rng([SEED, KINDS.index(kind)])
    count = max(1, round(share * len(vectors)))
    if kind == "uncorrelated":
        return np.sort(rng.choice(len(vectors), count, replace=False))
    if kind == "clusters":
        return np.sort(np.roll(np.arange(len(vectors)), -int(rng.integers(len(vectors))))[:count])
    return np.sort(np.argsort(-(vectors @ rng.normal(size=DIM)))[:count])


def with_selector(searcher: Searcher, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of what FAISS finds by itself."""
    part = faiss.read_index(str(searcher.folder.local_path(searcher.door["parts"][0]["file"])))
    bits = np.zeros(len(searcher), np.uint8)
    bits[rows] = 1
    selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
    parameters = faiss.SearchParametersIVF(
        sel=selector, nprobe=searcher.door["parameters"]["nprobe"]
    )
    return lambda query: part.search(query, K, params=parameters)[0]


def with_planner(searcher: Searcher, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of what is found within a selection here."""
    chosen = searcher.select(searcher.ids[rows])
    return lambda query: searcher.search(query, K, within=chosen).scores


SEARCHES = {"lookalike": with_planner, "faiss": with_selector}


def measure(contestant: str, location: Path, num_queries: int) -> dict[str, float]:
    """Recall and median milliseconds of single queries, for every kind and share."""
    faiss.omp_set_num_threads(1)
    searcher = Searcher.open(location / "index", verify="sizes", threads=1)
    vectors = searcher.vectors_of(searcher.ids)
    rng = np.random.default_rng(SEED + 1)
    drawn = vectors[rng.choice(len(vectors), num_queries, replace=False)]
    queries = drawn + 0.3 * NOISE / np.sqrt(DIM) * rng.normal(size=drawn.shape)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    found: dict[str, float] = {}
    for kind in KINDS:
        for share in SHARES:
            rows = selected(vectors, kind, share)
            search = SEARCHES[contestant](searcher, rows)
            recall, taken_ms = judged_and_timed(search, queries, vectors[rows])
            found |= {f"{kind} {share:g} recall": recall, f"{kind} {share:g} ms": taken_ms}
    _, found["unfiltered ms"] = judged_and_timed(
        lambda query: searcher.search(query, K).scores, queries, vectors
    )
    return found


def judged_and_timed(
    search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, among: np.ndarray
) -> tuple[float, float]:
    """Recall against brute force, and the median time of a query."""
    search(queries[:1])
    found, seconds = [], []
    for query in queries:
        started_s = time.perf_counter()
        found.append(search(query[None])[0])
        seconds.append(time.perf_counter() - started_s)
    # Afterwards, since brute force leaves nothing of the index in the processor's caches.
    recalls = []
    for query, scores in zip(queries, found, strict=True):
        truth = np.sort(among @ query)[::-1][:K]
        # FAISS adds in another order, so a tie is a little wider than ours.
        recalls.append((scores >= truth[-1] - 10 * TIE).sum() / len(truth))
    return float(np.mean(recalls)), 1e3 * float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--contestant", choices=sorted(SEARCHES), help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contestant:
        print(json.dumps(measure(asked.contestant, asked.index, asked.queries)))
        return
    hardware = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        build(Folder.at(folder), asked.pictures)
        shared = ["--index", folder, "--queries", str(asked.queries)]
        commands = {
            name: [
                measuring.OWN_PYTHON, "-m", "benchmarks.filters", "--contestant", name, *shared
            ]
            for name in SEARCHES
        }  # fmt: skip
        rounds = measuring.in_turn(measuring.programs(commands, TIMEOUT_S), asked.rounds)
        door = Searcher.open(Path(folder) / "index", verify="sizes").door
    settings = {
        "pictures": asked.pictures,
        "queries": asked.queries,
        "dim": DIM,
        "k": K,
        "clusters": CLUSTERS,
        "seed": SEED,
        "shares": SHARES,
        "kinds": KINDS,
        **door["parameters"],
        "recall": door["recall"]["text"],
    }
    measuring.save("filters", {"settings": settings, "rounds": rounds}, hardware)


if __name__ == "__main__":
    main()
