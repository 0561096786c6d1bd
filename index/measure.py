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

SCORES_AT_ONCE = 1 << 20
"""Cosines in memory during exact search: 4 MB, and some copies of them."""


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

    @classmethod
    def exact(cls, successes: float, n: int, *, confidence: float = 0.95) -> Proportion:
        """The interval that covers the truth at least as often as it says, for any share.

        Wilson's covers 95 % on average, and near 0 and 1 sometimes 90 %. This one is a little
        wider. Trials may count in part, as in `wilson`.

        Source: Clopper & Pearson 1934, "The use of confidence or fiducial limits illustrated in
        the case of the binomial", by quantiles of the beta distribution.

        >>> round(Proportion.exact(9, 10).low, 4)
        0.555
        """
        from scipy.special import betaincinv

        if n <= 0:
            raise ValueError(f"a share of {n} trials is not defined; measure at least one")
        tail, value = (1 - confidence) / 2, successes / n
        low = betaincinv(successes, n - successes + 1, tail) if successes > 0 else 0.0
        high = betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
        return cls(value=value, low=min(float(low), value), high=max(float(high), value), n=n)

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
    best_ids = np.full((len(queries_QD), k), -1, np.int64)
    best = np.full((len(queries_QD), k), -np.inf, np.float32)
    for ids, vectors in batches:
        step = max(1, SCORES_AT_ONCE // max(1, len(ids)))
        for start in range(0, len(queries_QD), step):
            rows = slice(start, start + step)
            scores = _products(queries_QD[rows], vectors)
            if exclude_Q is not None:
                scores[exclude_Q[rows, None] == ids[None, :]] = -np.inf
            _keep_best(best[rows], best_ids[rows], scores, ids)
    order = np.lexsort((best_ids, -best), axis=-1)
    best = np.take_along_axis(best, order, axis=1)
    best_ids = np.take_along_axis(best_ids, order, axis=1)
    reachable = int(np.isfinite(best).sum(axis=1).min()) if best.size else 0
    return best_ids[:, :reachable], best[:, :reachable]


def _products(queries_QD: Floats, vectors_ND: Floats) -> Floats:
    """All inner products, [Q, N]; those of one query in this thread alone."""
    if len(queries_QD) > 1:
        return queries_QD @ vectors_ND.T
    products: Floats = np.vecdot(vectors_ND, queries_QD)
    return products[None]


def _keep_best(best_QK: Floats, best_ids_QK: Ids, scores_QN: Floats, ids_N: Ids) -> None:
    """Merge a block's scores into the best so far, in place; few queries gain from most blocks."""
    gains = np.flatnonzero(scores_QN.max(axis=1, initial=-np.inf) > best_QK.min(axis=1))
    if not len(gains):
        return
    k, scores = best_QK.shape[1], scores_QN[gains]
    top = _highest(scores, k)
    scores = np.concatenate([best_QK[gains], np.take_along_axis(scores, top, axis=1)], axis=1)
    ids = np.concatenate([best_ids_QK[gains], ids_N[top]], axis=1)
    top = _highest(scores, k)
    best_QK[gains] = np.take_along_axis(scores, top, axis=1)
    best_ids_QK[gains] = np.take_along_axis(ids, top, axis=1)


def _highest(scores_QN: Floats, k: int) -> NDArray[np.intp]:
    """Places of the k highest of each row, in no order."""
    num_scores = scores_QN.shape[1]
    if num_scores <= k:
        return np.broadcast_to(np.arange(num_scores), scores_QN.shape)
    return np.argpartition(scores_QN, num_scores - k, axis=1)[:, num_scores - k :]


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
