"""Filtered search by lists: visit those that hold selected pictures, and tell when that is enough.

Shapes: Q queries, D embedding, K results, L lists, P lists visited.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.lists import Lists
from index.rank import NONE
from index.selection import Selection
from index.vectors import Floats, Ids, VectorFile

__all__ = ["Visits"]

SETTLED = 3.0
"""Pictures to compare, as a multiple of those among which the last of the k nearest came."""
AHEAD = 1.5
"""Pictures to compare next, as a multiple of what that asks for: going on costs a round."""
LEAST_GROWTH = 1.5
"""Pictures to compare next, as a multiple of those before, at least."""
NOTHING_NEW = 0.02
"""Share of the k nearest that may come later."""
MARGIN = 1.5
"""Lists ordered, as a multiple of those that should do if all held as many selected pictures."""


class Visits:
    """The visits of some queries to the lists that hold selected pictures.

    Attributes:
        compared: selected pictures compared so far, [Q].
    """

    def __init__(
        self, lists: Lists, vectors: VectorFile, queries_QD: Floats, selection: Selection
    ) -> None:
        self._lists = lists
        self._vectors = vectors
        self._queries = queries_QD
        self._selection = selection
        self._held = lists.held(selection)
        self.compared = np.zeros(len(queries_QD), np.int64)

    def run(self, width: int, enough: float, k: int) -> tuple[Floats, Ids]:
        """Visit until the k best came among the first third of what was compared, or all was.

        Args:
            width: candidates a query.
            enough: selected pictures to compare at first.
            k: results a query.

        Returns:
            The best by FAISS's own scores, and these, best first, [Q, width]; ids of -1 for none.
        """
        num_queries = len(self._queries)
        ids = np.full((num_queries, width), NONE)
        scores = np.full((num_queries, width), -np.inf, np.float32)
        waiting, targets = np.arange(num_queries), np.full(num_queries, enough)
        while len(waiting):
            visited = self._lists_for(self._queries[waiting], targets)
            scores[waiting], ids[waiting] = self._visit(waiting, visited, width)
            self.compared[waiting] = visited.compared
            needed = SETTLED * self._came_by(ids[waiting, :k], visited)
            goes_on = (needed > visited.compared) & ~visited.is_all
            least = LEAST_GROWTH * visited.compared
            targets = np.maximum(AHEAD * np.minimum(needed, len(self._selection)), least)[goes_on]
            waiting = waiting[goes_on]
        return scores, ids

    def _lists_for(self, queries_QD: Floats, targets_Q: NDArray[np.float64]) -> Visited:
        """The lists, nearest first, in which so many selected pictures lie."""
        held = self._held
        count = int(MARGIN * targets_Q.max() * held.num_lists / len(self._selection)) + 4
        while True:
            count = min(count, held.num_lists)
            lists, closeness = self._lists.nearest(queries_QD, count, held)
            reached = np.cumsum(held.counts[lists], axis=1)
            if count == held.num_lists or (reached[:, -1] >= targets_Q).all():
                break
            count *= 2
        ends = np.minimum((reached < targets_Q[:, None]).sum(axis=1) + 1, count)
        width = int(ends.max())
        lists = np.ascontiguousarray(lists[:, :width])
        lists[np.arange(width) >= ends[:, None]] = NONE
        return Visited(
            lists=lists,
            closeness=np.ascontiguousarray(closeness[:, :width]),
            reached=reached[:, :width],
            compared=reached[np.arange(len(ends)), ends - 1] + held.num_unlisted,
            is_all=ends == held.num_lists,
        )

    def _visit(self, which: NDArray[np.intp], visited: Visited, width: int) -> tuple[Floats, Ids]:
        """The best by FAISS's own scores, [Q, width]."""
        queries, selector = self._queries[which], self._selection.selector
        found = [
            part.search_lists(queries, width, visited.lists, visited.closeness, selector)
            for part in self._lists.parts
        ]
        if self._held.num_unlisted:
            found += [
                part.search(queries, width, nprobe=part.nlist, selector=selector)
                for part in self._lists.others
            ]
        if len(found) == 1:
            return found[0]
        scores, ids = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
        best = np.argsort(np.where(ids == NONE, np.inf, -scores), axis=1, kind="stable")[:, :width]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)

    def _came_by(self, ids_QK: Ids, visited: Visited) -> NDArray[np.float64]:
        """Selected pictures compared before the list that brought the last of the k best, [Q].

        Infinite where there are fewer than k.
        """
        num_queries, num_visited = visited.lists.shape
        place_of = np.zeros((num_queries, self._lists.num_lists + 1), np.intp)
        # A list of -1 is the last column, which stands for parts without lists: these come first.
        np.put_along_axis(place_of, visited.lists, np.arange(num_visited)[None], axis=1)
        place_of[:, -1] = 0
        is_none = ids_QK == NONE
        rows = self._vectors.rows_of(np.where(is_none, self._selection.ids[0], ids_QK))
        places = np.take_along_axis(place_of, self._lists.of_row[rows].astype(np.intp), axis=1)
        places.sort(axis=1)
        last = places[:, -1 - int(NOTHING_NEW * ids_QK.shape[1])]
        before = np.where(last > 0, visited.reached[np.arange(num_queries), last - 1], 0.0)
        before[is_none.any(axis=1)] = np.inf
        return before


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Visited:
    """What some queries visit.

    Args:
        lists: int64 [Q, P], nearest first; -1 for none.
        closeness: float32 [Q, P], the inner products with their centroids.
        reached: selected pictures in each list and those before it, [Q, P].
        compared: selected pictures compared, [Q].
        is_all: whether no list with selected pictures is left, [Q].
    """

    lists: Ids
    closeness: Floats
    reached: NDArray[np.int64]
    compared: NDArray[np.int64]
    is_all: NDArray[np.bool_]
