"""Candidates of several parts as if they were of one, and the best of them first.

Shapes: Q queries, M candidates, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt

import numpy as np

from index.vectors import Floats, Ids

__all__ = [
    "FEW",
    "NONE",
    "as_cosines",
    "beside",
    "best_first",
    "falls",
    "first_of",
    "has_none",
    "most_promising",
]

NONE = np.int64(-1)
"""Stands for no picture, in ids [Q, M]."""

FEW = 128
"""Candidates of one query that are looked at as Python's numbers. After FAISS has gone through its
lists, each of numpy's functions has to be fetched anew: some 8 us, a sixth of a search."""


def beside(found: Sequence[tuple[Floats, Ids]]) -> tuple[Floats, Ids]:
    """What several parts found, as if one had."""
    scores, ids = zip(*found, strict=True)
    return np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)


def most_promising(scores_QM: Floats, ids_QM: Ids, width: int) -> tuple[Floats, Ids]:
    """The best of them by score, in no order."""
    if scores_QM.shape[1] <= width:
        return scores_QM, ids_QM
    places = np.argpartition(-scores_QM, width, axis=1)[:, :width]
    return np.take_along_axis(scores_QM, places, 1), np.take_along_axis(ids_QM, places, 1)


def best_first(ids_QM: Ids, scores_QM: Floats, k: int) -> tuple[Ids, Floats]:
    """The k best of each row, equal scores by id.

    >>> ids, scores = np.array([[7, -1, 4, 9]]), np.array([[0.5, -np.inf, 0.5, 0.6]], np.float32)
    >>> best_first(ids, scores, 3)[0].tolist()
    [[9, 4, 7]]
    """
    if falls(scores_QM):  # as FAISS leaves a part without equal scores
        return first_of(ids_QM, scores_QM, k)
    order = np.lexsort((ids_QM, -scores_QM), axis=-1)[:, :k]
    return np.take_along_axis(ids_QM, order, 1), np.take_along_axis(scores_QM, order, 1)


def as_cosines(ids_QK: Ids, scores_QK: Floats) -> tuple[Ids, Floats]:
    """Answers, best first, with scores from -1 to 1 where rounding took them beyond."""
    if not scores_QK.size or (scores_QK[:, 0].max() <= 1 and scores_QK[:, -1].min() >= -1):
        return ids_QK, scores_QK
    return best_first(ids_QK, np.clip(scores_QK, -1, 1), ids_QK.shape[1])


def first_of(ids_QM: Ids, scores_QM: Floats, k: int) -> tuple[Ids, Floats]:
    """The first k of each row, in one piece."""
    ids, scores = ids_QM[:, :k], scores_QM[:, :k]
    return (ids, scores) if len(ids) == 1 else (ids.copy(), scores.copy())


def falls(scores_QM: Floats) -> bool:
    """Whether the scores of every row fall strictly."""
    if scores_QM.size <= FEW and len(scores_QM) == 1:
        row = scores_QM[0].tolist()
        return all(map(gt, row, row[1:]))
    return bool((scores_QM[:, 1:] < scores_QM[:, :-1]).all())


def has_none(ids_QM: Ids) -> bool:
    """Whether any id stands for none."""
    if ids_QM.size <= FEW and len(ids_QM) == 1:
        return -1 in ids_QM[0].tolist()
    return bool((ids_QM == NONE).any())
