"""Does search bring what belongs together? Of a distorted copy its original, of a class its others.

Every function scores single queries, so that sources of vectors can be compared query by query.

Shapes: Q queries, N corpus rows, B rows of a block, D embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.measure import TIE
from index.trials import Trials
from index.vectors import Floats, Ids

__all__ = ["ClassRetrieval", "directions", "find_the_original", "knn_accuracy", "retrieve_classes"]

BLOCK_ROWS = 256
"""Queries compared with all others at once: bounds memory, changes nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRetrieval:
    """How well pictures bring others of their class; in both, classes count alike.

    Args:
        precision: average precision of each query, over the whole ranking.
        found: by k, whether another of its class is among the k nearest.
        classes: C names; a trial's code is a position in it.
    """

    precision: Trials
    found: dict[int, Trials]
    classes: tuple[str, ...]


def directions(vectors_ND: Floats) -> Floats:
    """Rows of unit norm, but for those of zeros, which stay: at cosine 0 to everything."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(norms, 1e-12), np.float32)


def find_the_original(
    queries_QD: Floats,
    query_ids_Q: Ids,
    corpus_ids_N: Ids,
    corpus_ND: Floats,
    ks: Sequence[int] = (1, 10),
) -> dict[int, Trials]:
    """How often a distorted copy's own original is among the k nearest; needs no labels.

    Pictures that tie with the original share its places by chance: t tied pictures behind g better
    ones give (k - g) / t. So an encoder that maps all pictures to one point scores k / N, not 1.

    Args:
        queries_QD: vectors of the distorted copies, of any norm; zero is like nothing.
        query_ids_Q: the id of each one's original.
        corpus_ids_N: ids of the corpus, in any order.
        corpus_ND: vectors of the corpus, likewise.
        ks: the places to count.

    Raises:
        ValueError: an original is not in the corpus.
    """
    order = np.argsort(corpus_ids_N, kind="stable")
    spots = np.searchsorted(corpus_ids_N, query_ids_Q, sorter=order)
    rows = order[np.minimum(spots, len(order) - 1)]
    if np.any(corpus_ids_N[rows] != query_ids_Q):
        raise ValueError("a query's original is not in the corpus; query only pictures that are ok")
    queries, corpus = directions(queries_QD), directions(corpus_ND)
    hits = {k: np.empty(len(queries)) for k in ks}
    for start in range(0, len(queries), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        scores = queries[block] @ corpus.T
        own = np.take_along_axis(scores, rows[block, None], axis=1)
        better = (scores > own + TIE).sum(axis=1)
        tied = (np.abs(scores - own) <= TIE).sum(axis=1)
        for k in ks:
            hits[k][block] = np.clip((k - better) / tied, 0, 1)
    return {k: Trials(scores=found) for k, found in hits.items()}


def knn_accuracy(vectors_ND: Floats, labels_N: Sequence[str], k: int = 5) -> Trials:
    """Leave-one-out accuracy of the majority label among the k nearest others.

    A tie between labels goes to the one with the larger sum of cosines.
    """
    classes, codes = np.unique(np.asarray(labels_N), return_inverse=True)
    vectors = directions(vectors_ND)
    k = min(k, len(vectors) - 1)
    right = np.empty(len(vectors))
    for start in range(0, len(vectors), BLOCK_ROWS):
        scores = vectors[start : start + BLOCK_ROWS] @ vectors.T
        rows = np.arange(len(scores))
        scores[rows, rows + start] = -np.inf
        near = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(scores), len(classes)))
        # One vote each; the cosine, scaled below any whole vote, only breaks ties.
        weight = 1 + np.take_along_axis(scores, near, axis=1) / (4 * k)
        np.add.at(votes, (rows[:, None], codes[near]), weight)
        own = codes[start : start + len(scores)]
        right[start : start + len(scores)] = votes.argmax(axis=1) == own
    return Trials(scores=right)


def retrieve_classes(
    vectors_ND: Floats, labels_N: Sequence[str], ks: Sequence[int] = (1, 10)
) -> ClassRetrieval:
    """Each picture queries all the others, never itself; those of its class are relevant.

    Average precision is the sum over ranks of precision times the gain in recall. Cosines that
    round to the same multiple of 1e-5 are one rank: order among ties is chance, and counts for
    nobody. For the k nearest, ties share the last places by chance. A picture alone in its class
    asks nothing; the others still have to be told from it.

    Args:
        vectors_ND: of any norm; zero is like nothing.
        labels_N: the class of each.
        ks: numbers of neighbours.

    Raises:
        ValueError: no class has two pictures.

    Source: average precision as in Manning et al. 2008, "Introduction to Information Retrieval",
    section 8.4; the k nearest as recall@k in Song et al. 2016, "Deep metric learning via lifted
    structured feature embedding", section 6. Deviation: means are taken within classes first, so
    that a large class does not decide.

    Cost: O(N^2 (D + log N)) time, O(N) memory.
    """
    classes, codes_N, counts_C = np.unique(
        np.asarray(labels_N), return_inverse=True, return_counts=True
    )
    asking = np.flatnonzero(counts_C[codes_N] > 1)
    if not len(asking):
        raise ValueError(
            f"none of {len(classes)} classes has two labelled pictures, so none can be searched "
            "by class. Label more, or leave this figure out."
        )
    vectors = directions(vectors_ND)
    precision = np.empty(len(asking))
    found = {k: np.empty(len(asking)) for k in ks}
    for start in range(0, len(asking), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        keys = _ranking(vectors, codes_N, asking[block])
        precision[block] = _average_precision(keys)
        for k in ks:
            found[k][block] = _chance_of_a_hit(keys, k)
    own_N = codes_N[asking].astype(np.int64)
    return ClassRetrieval(
        precision=Trials(scores=precision, classes=own_N),
        found={k: Trials(scores=hits, classes=own_N) for k, hits in found.items()},
        classes=tuple(str(name) for name in classes),
    )


def _ranking(
    vectors_ND: Floats, codes_N: NDArray[np.int64], rows_B: NDArray[np.int64]
) -> NDArray[np.int32]:
    """All others of each row, nearest first: int32 [B, N - 1] of twice the rank's key, + 1 if same.

    One number holds both, since numbers sort ten times faster than they are sorted by others.
    """
    distances_BN = np.rint((vectors_ND[rows_B] @ vectors_ND.T) * np.float32(-1 / TIE))
    keys_BN = 2 * distances_BN.astype(np.int32) + (codes_N[rows_B, None] == codes_N)
    keys_BN[np.arange(len(rows_B)), rows_B] = np.iinfo(np.int32).max
    keys_BN.sort(axis=1)
    return np.asarray(keys_BN[:, :-1], np.int32)


def _average_precision(keys_BN: NDArray[np.int32]) -> NDArray[np.float64]:
    relevant_BN = np.cumsum(keys_BN & 1, axis=1, dtype=np.int32)
    # Where the last of equals stands, their common precision and recall are reached.
    ends_BN = np.diff(keys_BN >> 1, axis=1, append=np.iinfo(np.int32).max) != 0
    reached_BN = np.maximum.accumulate(np.where(ends_BN, relevant_BN, 0), axis=1)
    gained_BN = np.diff(reached_BN, axis=1, prepend=0)
    precision_BN = relevant_BN / np.arange(1, keys_BN.shape[1] + 1)
    return np.asarray((gained_BN * precision_BN).sum(axis=1) / relevant_BN[:, -1], np.float64)


def _chance_of_a_hit(keys_BN: NDArray[np.int32], k: int) -> NDArray[np.float64]:
    """Chance of a relevant one among the first k, when ties come in random order."""
    from scipy.special import gammaln

    distances_BN, same_BN = keys_BN >> 1, keys_BN & 1
    nearest_B1 = np.take_along_axis(distances_BN, same_BN.argmax(axis=1)[:, None], axis=1)
    nearer_B = (distances_BN < nearest_B1).sum(axis=1)
    ties_BN = distances_BN == nearest_B1
    tied_B, right_B = ties_BN.sum(axis=1), (ties_BN & (same_BN == 1)).sum(axis=1)
    places_B = np.clip(k - nearer_B, 0, tied_B)
    # C(wrong, places) / C(tied, places): that all of these places go to wrong ones.
    left_B = np.maximum(tied_B - right_B - places_B, 0)
    missed_B = np.exp(
        gammaln(tied_B - right_B + 1)
        - gammaln(left_B + 1)
        - gammaln(tied_B + 1)
        + gammaln(tied_B - places_B + 1)
    )
    missed_B[places_B > tied_B - right_B] = 0
    return np.asarray(np.clip(1 - missed_B, 0, 1), np.float64)
