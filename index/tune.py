"""Find the fewest lists to visit that reach the target recall, and say how sure that is.

Held-out queries are corpus vectors, drawn at random over the whole corpus, with themselves taken
out of every answer; no copy of one is in the training sample. A random half of them chooses, the
other half judges: it stays a simple random sample of the corpus, so its interval means what it
says, however many copies of a picture there are.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.choose import IndexConfig, Recipe
from index.measure import TIE, Proportion, exact_top_k, recall_at_k
from index.rank import Ranker
from index.vectors import Floats, Ids, VectorFile, unit

__all__ = ["Tuning", "draw_samples", "tune"]

LATENCY_QUERIES = 100
BLOCK_ROWS = 16_384
MIN_CORPUS_SHARE = 4
"""At most a quarter of the corpus becomes queries, so that a sample is left to train on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """The chosen setting and the evidence for it.

    Args:
        nprobe: lists to visit.
        recall: recall@k on the judging half.
        tried: per nprobe tried, recall on both halves.
        latency_ms: percentiles of single queries on one thread.
    """

    nprobe: int
    recall: Proportion
    tried: list[dict[str, float]]
    latency_ms: dict[str, float]


def draw_samples(
    vectors: VectorFile, recipe: Recipe, config: IndexConfig
) -> tuple[Ids, NDArray[np.intp]]:
    """Query ids, and row numbers of the training sample.

    Disjoint also as pictures, unless almost all pictures are copies of each other.
    """
    rng = np.random.default_rng(config.seed)
    num_queries = min(config.num_queries, max(1, len(vectors) // MIN_CORPUS_SHARE))
    num_train = 0 if recipe.kind == "exact" else config.train_rows_per_list * recipe.nlist
    rows = rng.choice(len(vectors), min(len(vectors), num_queries + num_train), replace=False)
    queries, train = np.sort(rows[:num_queries]), np.sort(rows[num_queries:])
    asked, contents = set(_contents(vectors, queries)), _contents(vectors, train)
    fresh = np.array([content not in asked for content in contents], dtype=bool)
    return vectors.ids[queries], train[fresh] if fresh.sum() >= recipe.nlist else train


def _contents(vectors: VectorFile, rows: NDArray[np.intp]) -> list[bytes]:
    """A digest of every row's vector: copies of a picture have the same one."""
    return [
        hashlib.sha256(row.tobytes()).digest()
        for start in range(0, len(rows), BLOCK_ROWS)
        for row in vectors.gather(rows[start : start + BLOCK_ROWS])
    ]


def tune(ranker: Ranker, query_ids: Ids, config: IndexConfig) -> Tuning:
    """Raise nprobe until the judging half's lower bound reaches the target, or all is visited.

    Cost: one pass over the corpus for the exact answers, whatever is tried after.
    """
    vectors = ranker.vectors
    queries = unit(vectors.gather(vectors.rows_of(query_ids)))
    k = min(config.k, len(vectors) - 1)
    if k < 1:
        nothing_to_miss = Proportion(value=1.0, low=1.0, high=1.0, n=1)
        return Tuning(nprobe=1, recall=nothing_to_miss, tried=[], latency_ms={})
    _, truth = exact_top_k(queries, k, vectors.iter_batches(4096), exclude_Q=query_ids)
    judging = np.zeros(len(queries), dtype=bool)
    judging[np.random.default_rng(config.seed).permutation(len(queries))[::2]] = True
    tried: list[dict[str, float]] = []
    for nprobe in _ladder(ranker.nlist):
        recalls = recall_at_k(_scores_without_self(ranker, queries, query_ids, k, nprobe), truth)
        judged = Proportion.wilson(float(recalls[judging].sum()), int(judging.sum()))
        chosen = float(recalls[~judging].mean()) if not judging.all() else judged.value
        tried.append({"nprobe": nprobe, "recall_choosing": chosen, "recall_judging": judged.value})
        if min(chosen, judged.low) >= config.target_recall:
            break
    if nprobe == ranker.nlist:  # every row was compared: that is exact, not an estimate
        assert judged.value > 1 - TIE, "visiting all lists has to agree with brute force"
        judged = Proportion(value=judged.value, low=judged.value, high=1.0, n=judged.n)
    latency = _latency_ms(ranker, queries, k, nprobe)
    return Tuning(nprobe=nprobe, recall=judged, tried=tried, latency_ms=latency)


def _ladder(nlist: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to and with nlist."""
    steps = {1, nlist}
    power = 2
    while power < nlist:
        steps |= {power, min(power * 3 // 2, nlist)}
        power *= 2
    return sorted(steps)


def _scores_without_self(
    ranker: Ranker, queries: Floats, query_ids: Ids, k: int, nprobe: int
) -> Floats:
    """Exact cosines of the k best results that are not the query itself, dropped by id."""
    ids, scores = ranker.top(queries, k + 1, nprobe=nprobe)
    scores = np.where(ids == query_ids[:, None], -np.inf, scores)
    return np.asarray(-np.sort(-scores, axis=1)[:, :k], np.float32)


def _latency_ms(ranker: Ranker, queries: Floats, k: int, nprobe: int) -> dict[str, float]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        seconds = []
        for query in queries[:LATENCY_QUERIES]:
            start = time.perf_counter()
            ranker.top(query[None], k, nprobe=nprobe)
            seconds.append(time.perf_counter() - start)
    finally:
        faiss.omp_set_num_threads(threads)
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": round(1e3 * float(p50), 3), "p95": round(1e3 * float(p95), 3)}


def card(tuning: Tuning, config: IndexConfig) -> dict[str, Any]:
    """The tuning as JSON values for the index's door."""
    recall = tuning.recall
    return {
        "recall": {
            "k": config.k,
            "value": recall.value,
            "low": recall.low,
            "high": recall.high,
            "num_queries": recall.n,
            "target": config.target_recall,
            "text": f"recall@{config.k} {recall}, against exact search on held-out queries",
        },
        "tried": tuning.tried,
        "latency_ms": {**tuning.latency_ms, "threads": 1, "simd": _simd_level()},
    }


def _simd_level() -> str:
    return str(faiss.SIMDConfig.get_level_name())
