"""How good are the answers: exact search, recall against it, and shares with their interval.

Shapes: Q queries, D embedding, K results a query.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.vectors import Floats, Ids

__all__ = [
    "TIE",
    "Proportion",
    "exact_top_k",
    "recall_at_k",
]

Z95 = 1.959963984540054
TIE = 1e-5
"""Cosines closer than this are a tie: which of two such pictures comes first means nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proportion:
    """A share in [0, 1] with its 95 % Wilson interval.

    Args:
        value: the share.
        low: lower end of the interval.
        high: upper end.
        n: number of independent trials behind it.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def wilson(cls, successes: float, n: int, *, effective_n: float | None = None) -> Proportion:
        """The interval of ``successes`` out of ``n``; a trial may also count in part.

        A mean of n values in [0, 1] never varies more than n yes-or-no trials of the same mean, so
        the interval is then on the safe side. ``effective_n`` replaces n in the interval's width
        where trials do not count alike.

        Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

        >>> round(Proportion.wilson(9, 10).low, 4)
        0.5958
        """
        if n <= 0:
            raise ValueError(f"a share of {n} trials is not defined; measure at least one")
        p, z2, m = successes / n, Z95 * Z95, n if effective_n is None else effective_n
        centre = (p + z2 / (2 * m)) / (1 + z2 / m)
        half = Z95 / (1 + z2 / m) * math.sqrt(p * (1 - p) / m + z2 / (4 * m * m))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        return cls(value=p, low=min(low, p), high=max(high, p), n=n)

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:.1f} % ({low:.1f}-{high:.1f}, n={self.n})"


def exact_top_k(
    queries_QD: Floats,
    k: int,
    batches: Iterable[tuple[Ids, Floats]],
    *,
    exclude_Q: Ids | None = None,
) -> tuple[Ids, Floats]:
    """The k nearest by brute force, in one streaming pass over the corpus.

    Args:
        queries_QD: unit vectors float32.
        k: results a query; fewer come back when the corpus is smaller.
        batches: ids [n] and unit vectors float32 [n, D].
        exclude_Q: an id per query that is not a result (a query taken from the corpus itself).

    Returns:
        ids int64 [Q, K] and cosines float32 [Q, K], best first, equal cosines by id.
    """
    num_queries = len(queries_QD)
    best_ids = np.empty((num_queries, 0), np.int64)
    best = np.empty((num_queries, 0), np.float32)
    for ids, vectors in batches:
        scores = queries_QD @ vectors.T
        if exclude_Q is not None:
            scores[exclude_Q[:, None] == ids[None, :]] = -np.inf
        scores = np.concatenate([best, scores], axis=1)
        found = np.concatenate([best_ids, np.broadcast_to(ids, (num_queries, len(ids)))], axis=1)
        if scores.shape[1] > k:
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores = np.take_along_axis(scores, top, axis=1)
            found = np.take_along_axis(found, top, axis=1)
        best, best_ids = scores, found
    order = np.lexsort((best_ids, -best), axis=-1)
    best = np.take_along_axis(best, order, axis=1)
    best_ids = np.take_along_axis(best_ids, order, axis=1)
    reachable = int(np.isfinite(best).sum(axis=1).min()) if best.size else 0
    return best_ids[:, :reachable], best[:, :reachable]


def recall_at_k(found_scores_QK: Floats, true_scores_QK: Floats) -> NDArray[np.float64]:
    """Per query, the share of found results as near as the true k-th one.

    Comparing cosines instead of ids makes ties count right: among twenty copies of one picture, any
    ten are the ten nearest.

    Args:
        found_scores_QK: exact cosines of the found results; missing ones are -inf.
        true_scores_QK: cosines of the true k nearest, best first.

    Returns:
        float64 [Q] in [0, 1].
    """
    if found_scores_QK.shape != true_scores_QK.shape:
        raise ValueError(f"found {found_scores_QK.shape}, but truth is {true_scores_QK.shape}")
    hits = found_scores_QK >= true_scores_QK[:, -1:] - TIE
    return np.asarray(hits.mean(axis=1), np.float64)
