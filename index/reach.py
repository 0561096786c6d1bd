"""Every picture within a given cosine of a query: exact, by one pass over the stored vectors.

An index of lists cannot tell that no list it left out holds such a picture, so none is used.

Shapes: Q queries, D embedding, T matches of all queries together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.vectors import ALIKE, Floats, Ids

__all__ = ["Matches", "within_reach"]


@dataclass(frozen=True, slots=True)
class Matches:
    """The answer to a range search: a different number of pictures for each query.

    Args:
        ids: int64 [T], those of the first query first, each query's nearest first.
        scores: float32 [T], cosines.
        offsets: int64 [Q + 1]; query q has the rows ``offsets[q]`` to before ``offsets[q + 1]``.
        num_matching: how many pictures reach the score, int64 [Q].
        num_searched: pictures compared with each query: all that could have been results.
        flags: ``limited``: a query has more matches than were asked for, and lists the nearest.
    """

    ids: Ids
    scores: Floats
    offsets: Ids
    num_matching: Ids
    num_searched: int
    flags: frozenset[str]

    def of(self, query: int) -> tuple[Ids, Floats]:
        """Ids and scores of one query's matches."""
        rows = slice(self.offsets[query], self.offsets[query + 1])
        return self.ids[rows], self.scores[rows]

    def to_arrow(self) -> pa.Table:
        """Columns query, rank (from 1), id and score; without a copy of ids and scores."""
        counts = np.diff(self.offsets)
        ranks = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], counts) + 1
        queries = np.repeat(np.arange(len(counts)), counts)
        return pa.table(
            {
                "query": pa.array(queries, pa.int32()),
                "rank": pa.array(ranks, pa.int32()),
                "id": pa.array(self.ids),
                "score": pa.array(self.scores),
            }
        )


def within_reach(
    queries_QD: Floats,
    min_score: float,
    limit: int,
    batches: Iterable[tuple[Ids, Floats]],
    *,
    any_of: bool = False,
) -> Matches:
    """All rows whose cosine with a query is at least ``min_score``.

    Args:
        queries_QD: unit vectors float32.
        min_score: lowest cosine; above `ALIKE` it is taken for that.
        limit: results a query; of more matches, the nearest.
        batches: ids [n] and vectors float32 [n, D] of all pictures that may be results.
        any_of: one answer to all queries, by the highest cosine with any of them.

    Memory: at most ``3 * limit`` results a query, and one batch times Q.
    """
    min_score = min(min_score, ALIKE)
    num_answers = 1 if any_of else len(queries_QD)
    found: list[list[tuple[Ids, Floats]]] = [[] for _ in range(num_answers)]
    counts = np.zeros(num_answers, np.int64)
    num_searched = 0
    for ids, vectors in batches:
        num_searched += len(ids)
        scores = queries_QD @ vectors.T
        if any_of:
            scores = scores.max(axis=0, keepdims=True, initial=-np.inf)
        for query in np.flatnonzero((scores >= min_score).any(axis=1)):
            here = scores[query] >= min_score
            counts[query] += here.sum()
            found[query].append((ids[here], np.clip(scores[query, here], -1, 1)))
            if sum(len(ids) for ids, _ in found[query]) > 2 * limit:
                found[query] = [_nearest(found[query], limit)]
    best = [_nearest(pieces, limit) for pieces in found]
    ids_T = np.concatenate([ids for ids, _ in best] or [np.empty(0, np.int64)])
    scores_T = np.concatenate([scores for _, scores in best] or [np.empty(0, np.float32)])
    return Matches(
        ids=ids_T,
        scores=scores_T,
        offsets=np.cumsum([0, *(len(ids) for ids, _ in best)]),
        num_matching=counts,
        num_searched=num_searched,
        flags=frozenset({"limited"} if (counts > limit).any() else ()),
    )


def _nearest(pieces: list[tuple[Ids, Floats]], limit: int) -> tuple[Ids, NDArray[np.float32]]:
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    ids = np.concatenate([ids for ids, _ in pieces])
    scores = np.concatenate([scores for _, scores in pieces])
    order = np.lexsort((ids, -scores))[:limit]
    return ids[order], scores[order]
