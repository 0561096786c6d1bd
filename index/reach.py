"""Every picture within a given cosine of a query: exact, by one pass over the stored vectors.

An index of lists cannot tell that no list it left out holds such a picture, so none is used.

Shapes: Q queries, D embedding, T matches of all queries together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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
    cosines: Callable[[Floats, Ids], Floats],
    *,
    any_of: bool = False,
) -> Matches:
    """All rows whose cosine with a query is at least ``min_score``.

    Args:
        queries_QD: unit vectors float32.
        min_score: lowest cosine; above `ALIKE` it is taken for that.
        limit: results a query; of more matches, the nearest.
        batches: ids [n] and vectors float32 [n, D] of all pictures that may be results.
        cosines: of a query [D] and the pictures of some ids [M], as every search has them. Products
            of many vectors at once differ in their last bits, and only tell what lies near.
        any_of: one answer to all queries, by the highest cosine with any of them.

    Memory: at most ``3 * limit`` results a query, and one batch times Q.
    """
    min_score = min(min_score, ALIKE)
    rounding = float(np.finfo(np.float32).eps) * queries_QD.shape[1]
    answered = [queries_QD] if any_of else [*queries_QD[:, None]]
    found: list[list[tuple[Ids, Floats]]] = [[] for _ in answered]
    counts = np.zeros(len(answered), np.int64)
    num_searched = 0

    def exact(answer: int, ids_M: Ids) -> Floats:
        each = np.stack([cosines(query_D, ids_M) for query_D in answered[answer]])
        return np.asarray(each.max(axis=0), np.float32)

    for ids, vectors in batches:
        num_searched += len(ids)
        products = queries_QD @ vectors.T
        if any_of:
            products = products.max(axis=0, keepdims=True, initial=-np.inf)
        for answer in np.flatnonzero((products >= min_score - rounding).any(axis=1)).tolist():
            scores = products[answer]
            unsure = np.flatnonzero(np.abs(scores - min_score) <= rounding)
            if len(unsure):
                scores[unsure] = exact(answer, ids[unsure])
            here = scores >= min_score
            counts[answer] += here.sum()
            found[answer].append((ids[here], scores[here]))
            if sum(len(ids) for ids, _ in found[answer]) > 2 * limit:
                found[answer] = [_nearest(found[answer], limit)]
    best = [
        _ordered(ids, np.clip(exact(answer, ids), -1, 1)) if len(ids) else (ids, scores)
        for answer, (ids, scores) in enumerate(_nearest(pieces, limit) for pieces in found)
    ]
    return Matches(
        ids=np.concatenate([ids for ids, _ in best] or [np.empty(0, np.int64)]),
        scores=np.concatenate([scores for _, scores in best] or [np.empty(0, np.float32)]),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in best)]),
        num_matching=counts,
        num_searched=num_searched,
        flags=frozenset({"limited"} if (counts > limit).any() else ()),
    )


def _nearest(pieces: list[tuple[Ids, Floats]], limit: int) -> tuple[Ids, Floats]:
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    ids, scores = _ordered(*map(np.concatenate, zip(*pieces, strict=True)))
    return ids[:limit], scores[:limit]


def _ordered(ids: Ids, scores: Floats) -> tuple[Ids, Floats]:
    """Best first, equal ones by id."""
    order = np.lexsort((ids, -scores))
    return ids[order], scores[order]
