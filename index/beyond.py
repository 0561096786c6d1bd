"""Joins of near-duplicates beyond the K neighbours that a graph knows.

Shapes: N pictures of the index, D embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from index.search import Searcher
from index.vectors import Floats, unit

__all__ = ["joined_beyond", "merged"]

BATCH_ROWS = 4096
MANY = 256
"""Pictures of a group that are searched from one by one; for more, a pass over all vectors first
tells which lie near enough to any of them."""
MAX_AROUND = 16_384
"""Pictures around a group that are compared with each of its own; bounds memory and time."""
COMPARED_ROWS = 512
ROUNDING = 1e-3
"""More than float16 takes from a cosine."""

Rows = NDArray[np.int64]


def merged(labels: Rows, left: Rows, right: Rows) -> Rows:
    """Labels, numbered from 0, after joining the groups of two sides of pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(labels.max()) + 1
    pairs = coo_array((np.ones(len(left), bool), (labels[left], labels[right])), (count, count))
    return np.asarray(connected_components(pairs, directed=False)[1], np.int64)[labels]


def joined_beyond(
    searcher: Searcher, labels: Rows, full: NDArray[np.bool_], threshold: float
) -> tuple[Rows, int]:
    """Labels after joining groups with what lies beyond their K neighbours; searches made.

    Args:
        searcher: of the index.
        labels: the group of each row, [N], numbered from 0.
        full: rows whose K neighbours all reach the threshold, [N].
        threshold: lowest cosine of two near-duplicates.
    """
    searches = 0
    # Groups only grow: a picture with nothing near outside its group never gets it.
    unasked = full.copy()
    while True:
        pairs = []
        for members in _groups_with(labels, unasked):
            if len(members) == len(labels):
                continue
            asked = _one_of_each(searcher, members[unasked[members]])
            others, searched = _nearest_outside(searcher, asked, members, threshold)
            searches += searched
            unasked[members] = False
            found = others >= 0
            unasked[asked[found]] = True
            pairs.append((asked[found], others[found]))
        if not any(len(left) for left, _ in pairs):
            return labels, searches
        left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
        labels = merged(labels, left, right)


def _groups_with(labels: Rows, wanted: NDArray[np.bool_]) -> Iterator[Rows]:
    """The rows, rising, of each group that has one of the wanted rows."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    for label in np.unique(labels[wanted]):
        yield order[bounds[label] : bounds[label + 1]]


def _nearest_outside(
    searcher: Searcher, asked: Rows, members: Rows, threshold: float
) -> tuple[Rows, int]:
    """For each row, the row outside its group that is nearest, or -1; and the searches made."""
    others = np.full(len(asked), -1, np.int64)
    if len(asked) > MANY:
        around = _around(searcher, asked, members, threshold)
        if len(around) <= MAX_AROUND:
            return _nearest_of(searcher, asked, around, threshold), 1
    for start in range(0, len(asked), BATCH_ROWS):
        rows = asked[start : start + BATCH_ROWS]
        vectors = searcher.vectors_of(searcher.ids[rows])
        hits = searcher.search(vectors, 1, exclude_ids=searcher.ids[members])
        near = np.flatnonzero(hits.scores[:, 0] >= threshold)
        others[start + near] = np.searchsorted(searcher.ids, hits.ids[near, 0])
    return others, len(asked)


def _around(searcher: Searcher, asked: Rows, members: Rows, threshold: float) -> Rows:
    """All rows outside a group that may reach the threshold with one of those asked.

    By the triangle inequality of angles: none lies farther from the middle of those asked than the
    farthest of these and the threshold's angle together.
    """
    total_D = np.sum([part.sum(axis=0) for part in _units(searcher, asked)], axis=0)
    if not total_D.any():  # any direction serves as the middle
        total_D[0] = 1
    middle_D = unit(total_D[None])[0]
    lowest = min(float((part @ middle_D).min()) for part in _units(searcher, asked))
    angle = np.arccos(np.clip(lowest, -1, 1)) + np.arccos(max(-1.0, threshold - ROUNDING))
    least = -np.inf if angle >= np.pi else np.cos(angle) - ROUNDING
    near = np.zeros(len(searcher), bool)
    start = 0
    for _, vectors in searcher.iter_batches():
        near[start : start + len(vectors)] = vectors @ middle_D >= least
        start += len(vectors)
    near[members] = False
    return np.flatnonzero(near)


def _units(searcher: Searcher, rows: Rows) -> Iterator[Floats]:
    """Unit vectors of some rows, batch by batch."""
    for start in range(0, len(rows), COMPARED_ROWS):
        yield unit(searcher.vectors_of(searcher.ids[rows[start : start + COMPARED_ROWS]]))


def _nearest_of(searcher: Searcher, asked: Rows, around: Rows, threshold: float) -> Rows:
    """For each row, the nearest of some others, or -1 where none reaches the threshold."""
    others = np.full(len(asked), -1, np.int64)
    if not len(around):
        return others
    vectors_AD = searcher.vectors_of(searcher.ids[around])
    for number, queries in enumerate(_units(searcher, asked)):
        cosines = queries @ vectors_AD.T
        best = cosines.argmax(axis=1)
        near = np.flatnonzero(cosines[np.arange(len(best)), best] >= threshold)
        others[number * COMPARED_ROWS + near] = around[best[near]]
    return others


def _one_of_each(searcher: Searcher, rows: Rows) -> Rows:
    """The rows without those whose vector is that of an earlier one."""
    seen: dict[bytes, int] = {}
    for start in range(0, len(rows), BATCH_ROWS):
        some = rows[start : start + BATCH_ROWS]
        for row, vector in zip(some, searcher.vectors_of(searcher.ids[some]), strict=True):
            seen.setdefault(hashlib.sha256(vector.tobytes()).digest(), int(row))
    return np.array(sorted(seen.values()), np.int64)
