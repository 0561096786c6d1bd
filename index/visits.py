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

GROWTH = 2.0
"""Pictures compared next, as a multiple of those before; the last of them may bring nothing."""
NOTHING_NEW = 0.02
"""Share of the k nearest that the last of those compared may have brought."""
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
        """Visit until what was visited last brings none of the k best, or all was visited.

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
        waiting = np.arange(num_queries)
        while len(waiting):
            visited = self._lists_for(self._queries[waiting], enough)
            scores[waiting], ids[waiting] = self._visit(waiting, visited, width)
            self.compared[waiting] = visited.compared
            is_done = visited.is_all | ~self._came_late(ids[waiting, :k], visited)
            waiting, enough = waiting[~is_done], GROWTH * enough
        return scores, ids

    def _lists_for(self, queries_QD: Floats, target: float) -> Visited:
        """The lists, nearest first, in which so many selected pictures lie."""
        held = self._held
        count = int(MARGIN * target * held.num_lists / len(self._selection)) + 4
        while True:
            count = min(count, held.num_lists)
            lists, closeness = self._lists.nearest(queries_QD, count, held)
            reached = np.cumsum(held.counts[lists], axis=1)
            if count == held.num_lists or reached[:, -1].min() >= target:
                break
            count *= 2
        ends = np.minimum((reached < target).sum(axis=1) + 1, count)
        lists = np.ascontiguousarray(lists[:, : ends.max()])
        lists[np.arange(lists.shape[1]) >= ends[:, None]] = NONE
        return Visited(
            lists=lists,
            closeness=np.ascontiguousarray(closeness[:, : lists.shape[1]]),
            late_from=(reached < target / GROWTH).sum(axis=1) + 1,
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

    def _came_late(self, ids_QK: Ids, visited: Visited) -> NDArray[np.bool_]:
        """Where one of the k best lies in the lists visited last, or there are fewer than k."""
        places = np.arange(visited.lists.shape[1])
        late = (places >= visited.late_from[:, None]) & (visited.lists != NONE)
        is_late = np.zeros((len(ids_QK), self._lists.num_lists + 1), bool)
        queries, places = np.nonzero(late)
        is_late[queries, visited.lists[queries, places]] = True
        is_none = ids_QK == NONE
        rows = self._vectors.rows_of(np.where(is_none, self._selection.ids[0], ids_QK))
        num_late = is_late[np.arange(len(ids_QK))[:, None], self._lists.of_row[rows]].sum(axis=1)
        return np.asarray(is_none.any(axis=1) | (num_late > NOTHING_NEW * ids_QK.shape[1]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Visited:
    """What some queries visit.

    Args:
        lists: int64 [Q, P], nearest first; -1 for none.
        closeness: float32 [Q, P], the inner products with their centroids.
        late_from: the place in ``lists`` from which on a result came late, [Q].
        compared: selected pictures compared, [Q].
        is_all: whether no list with selected pictures is left, [Q].
    """

    lists: Ids
    closeness: Floats
    late_from: NDArray[np.intp]
    compared: NDArray[np.int64]
    is_all: NDArray[np.bool_]
