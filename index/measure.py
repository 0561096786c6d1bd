"""How good are the answers: exact search, recall, and retrieval figures, each with its interval.

Shapes: Q queries, N corpus rows, D embedding, K results a query, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.heads import centred, fit_logistic
from index.vectors import Floats, Ids, unit

__all__ = [
    "TIE",
    "FewLabelAccuracy",
    "Proportion",
    "exact_top_k",
    "few_label_accuracy",
    "find_the_original",
    "knn_accuracy",
    "recall_at_k",
]

Z95 = 1.959963984540054
TIE = 1e-5
"""Cosines closer than this are a tie: which of two such pictures comes first means nothing."""

BLOCK_ROWS = 1024


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
    def wilson(cls, successes: float, n: int) -> Proportion:
        """The interval of ``successes`` out of ``n``; a trial may also count in part.

        A mean of n values in [0, 1] never varies more than n yes-or-no trials of the same mean, so
        the interval is then on the safe side.

        Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

        >>> round(Proportion.wilson(9, 10).low, 4)
        0.5958
        """
        if n <= 0:
            raise ValueError(f"a share of {n} trials is not defined; measure at least one")
        p, z2 = successes / n, Z95 * Z95
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        return cls(value=p, low=min(low, p), high=max(high, p), n=n)

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:.1f} % ({low:.1f}-{high:.1f}, n={self.n})"


@dataclass(frozen=True, kw_only=True, slots=True)
class FewLabelAccuracy:
    """Balanced accuracy of logistic regression on few labels, over several random draws.

    Args:
        mean: mean over draws, in [0, 1].
        sd: standard deviation over draws.
        num_draws: number of draws.
        labels_per_class: labels of each class that the head saw.
        classes: number of classes that had enough pictures.
    """

    mean: float
    sd: float
    num_draws: int
    labels_per_class: int
    classes: int


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


def find_the_original(
    queries_QD: Floats,
    query_ids_Q: Ids,
    corpus_ids_N: Ids,
    corpus_ND: Floats,
    ks: Sequence[int] = (1, 10),
) -> dict[int, Proportion]:
    """How often a distorted copy's own original is among the k nearest; needs no labels.

    Pictures that tie with the original share its places by chance: t tied pictures behind g better
    ones give (k - g) / t. So an encoder that maps all pictures to one point scores k / N, not 1.

    Args:
        queries_QD: vectors of the distorted copies, of any norm.
        query_ids_Q: the id of each one's original.
        corpus_ids_N: ids of the corpus, in any order.
        corpus_ND: vectors of the corpus, of any norm.
        ks: the places to count.

    Raises:
        ValueError: an original is not in the corpus.
    """
    order = np.argsort(corpus_ids_N, kind="stable")
    spots = np.searchsorted(corpus_ids_N, query_ids_Q, sorter=order)
    rows = order[np.minimum(spots, len(order) - 1)]
    if np.any(corpus_ids_N[rows] != query_ids_Q):
        raise ValueError("a query's original is not in the corpus; query only pictures that are ok")
    queries, corpus = unit(queries_QD), unit(corpus_ND)
    hits = dict.fromkeys(ks, 0.0)
    for start in range(0, len(queries), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        scores = queries[block] @ corpus.T
        own = np.take_along_axis(scores, rows[block, None], axis=1)
        better = (scores > own + TIE).sum(axis=1)
        tied = (np.abs(scores - own) <= TIE).sum(axis=1)
        for k in ks:
            hits[k] += float(np.clip((k - better) / tied, 0, 1).sum())
    return {k: Proportion.wilson(hits[k], len(queries)) for k in ks}


def knn_accuracy(vectors_ND: Floats, labels_N: Sequence[str], k: int = 5) -> Proportion:
    """Leave-one-out accuracy of the majority label among the k nearest others.

    A tie between labels goes to the one with the larger sum of cosines.
    """
    classes, codes = np.unique(np.asarray(labels_N), return_inverse=True)
    vectors = unit(vectors_ND)
    k = min(k, len(vectors) - 1)
    right = 0
    for start in range(0, len(vectors), BLOCK_ROWS):
        scores = vectors[start : start + BLOCK_ROWS] @ vectors.T
        rows = np.arange(len(scores))
        scores[rows, rows + start] = -np.inf
        near = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(scores), len(classes)))
        # One vote each; the cosine, scaled below any whole vote, only breaks ties.
        weight = 1 + np.take_along_axis(scores, near, axis=1) / (4 * k)
        np.add.at(votes, (rows[:, None], codes[near]), weight)
        right += int((votes.argmax(axis=1) == codes[start : start + len(scores)]).sum())
    return Proportion.wilson(right, len(vectors))


def few_label_accuracy(
    vectors_ND: Floats, labels_N: Sequence[str], labels_per_class: int, seeds: Sequence[int]
) -> FewLabelAccuracy:
    """Balanced accuracy of logistic regression on a few labels of each class, per random draw.

    Features are centred by the corpus mean and L2-normalised (SimpleShot, Wang et al. 2019); C is
    fixed at 10, the setting of ``index/heads.py``, so that no test label tunes it. Classes
    that have no more pictures than ``labels_per_class`` are left out.

    Raises:
        ValueError: fewer than two classes are large enough.
    """
    from sklearn.metrics import balanced_accuracy_score

    labels = np.asarray(labels_N)
    names, counts = np.unique(labels, return_counts=True)
    names = names[counts > labels_per_class]
    if len(names) < 2:
        raise ValueError(
            f"{len(names)} classes have more than {labels_per_class} pictures; two are needed. "
            "Ask for fewer labels per class."
        )
    vectors = unit(vectors_ND)
    features = centred(vectors, vectors.mean(axis=0))
    accuracies = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        drawn = np.concatenate(
            [
                rng.choice(np.flatnonzero(labels == name), labels_per_class, replace=False)
                for name in names
            ]
        )
        rest = np.isin(labels, names)
        rest[drawn] = False
        head = fit_logistic(features[drawn], [str(label) for label in labels[drawn]])
        predicted = np.asarray(head.classes)[head.logits(features[rest]).argmax(axis=1)]
        accuracies.append(float(balanced_accuracy_score(labels[rest], predicted)))
    return FewLabelAccuracy(
        mean=float(np.mean(accuracies)),
        sd=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        num_draws=len(accuracies),
        labels_per_class=labels_per_class,
        classes=len(names),
    )
