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
FAR_SHARE, FAR = 0.25, 8.0
"""Where a query's own surroundings hold less than this share of what they should, its nearest lie
scattered over many lists: so many times as much is compared at first."""
MARGIN = 1.5
"""Lists ordered, as a multiple of those that should do if all held as many selected pictures."""
NEARBY = 4
"""Lists a query's surroundings may be of all of them, one in so many."""
PADDED = 8
"""Lists come in multiples of this, so that FAISS's parameters, which count them, can be kept."""


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
        """Visit until the k best came early among what was compared, or all was.

        Args:
            width: candidates a query.
            enough: selected pictures to compare at first.
            k: results a query.

        Returns:
            The best by FAISS's own scores, and these, best first, [Q, width]; ids of -1 for none.
        """
        targets = np.full(len(self._queries), enough)
        visited = self._nearby(targets)
        if visited is None:
            visited = self._held_lists(self._queries, targets)
        scores, ids = self._visit(self._queries, visited, width)
        self.compared[:] = visited.compared
        waiting = np.arange(len(self._queries))
        while True:
            needed = SETTLED * self._came_by(ids[waiting, :k], visited)
            goes_on = (needed > visited.compared) & ~visited.is_all
            if not goes_on.any():
                return scores, ids
            least = LEAST_GROWTH * visited.compared
            targets = np.maximum(AHEAD * np.minimum(needed, len(self._selection)), least)[goes_on]
            waiting = waiting[goes_on]
            queries = self._queries[waiting]
            visited = self._held_lists(queries, targets)
            scores[waiting], ids[waiting] = self._visit(queries, visited, width)
            self.compared[waiting] = visited.compared

    def _nearby(self, targets_Q: NDArray[np.float64]) -> Visited | None:
        """The nearest lists of all, if these hold enough; if not, raises targets of far queries."""
        each = len(self._selection) / self._lists.num_lists
        count = int(MARGIN * targets_Q[0] / each) + 4
        if count > self._lists.num_lists // NEARBY:
            return None
        lists, closeness = self._lists.nearest(self._queries, count)
        reached = self._held.counts[lists].cumsum(axis=1)
        if (reached[:, -1] >= targets_Q).all():
            return self._up_to(targets_Q, lists, closeness, reached)
        targets_Q[reached[:, -1] < FAR_SHARE * targets_Q] *= FAR
        return None

    def _held_lists(self, queries_QD: Floats, targets_Q: NDArray[np.float64]) -> Visited:
        """The nearest of the lists that hold selected pictures, until these are enough."""
        held = self._held
        count = int(MARGIN * targets_Q.max() * held.num_lists / len(self._selection)) + 4
        while True:
            count = min(count, held.num_lists)
            lists, closeness = self._lists.nearest(queries_QD, count, held)
            reached = held.counts[lists].cumsum(axis=1)
            if count == held.num_lists or (reached[:, -1] >= targets_Q).all():
                return self._up_to(targets_Q, lists, closeness, reached)
            count *= 2

    def _up_to(
        self,
        targets_Q: NDArray[np.float64],
        lists: Ids,
        closeness: Floats,
        reached: NDArray[np.int64],
    ) -> Visited:
        """As few of the lists as hold enough."""
        num_queries, count = lists.shape
        ends = np.minimum((reached < targets_Q[:, None]).sum(axis=1) + 1, count)
        # FAISS reads rows of as many lists as there are at most.
        width = min(-int(-ends.max() // PADDED) * PADDED, self._lists.num_lists)
        padded = np.full((num_queries, width), NONE)
        closest = np.zeros((num_queries, width), np.float32)
        kept = min(width, count)
        padded[:, :kept] = lists[:, :kept]
        closest[:, :kept] = closeness[:, :kept]
        padded[np.arange(width) >= ends[:, None]] = NONE
        in_lists = reached[np.arange(num_queries), ends - 1]
        return Visited(
            lists=padded,
            closeness=closest,
            reached=reached,
            compared=in_lists + self._held.num_unlisted,
            is_all=in_lists + self._held.num_unlisted == len(self._selection),
        )

    def _visit(self, queries_QD: Floats, visited: Visited, width: int) -> tuple[Floats, Ids]:
        """The best by FAISS's own scores, [Q, width]."""
        parameters = self._held.parameters(visited.lists.shape[1])
        found = [
            part.search_lists(queries_QD, width, visited.lists, visited.closeness, parameters)
            for part in self._lists.parts
        ]
        if self._held.num_unlisted:
            found += [
                part.search(queries_QD, width, nprobe=part.nlist, selector=self._selection.selector)
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
        queries = np.arange(num_queries)
        place_of = np.zeros((num_queries, self._lists.num_lists + 1), np.int32)
        # A list of -1 is the last column, which stands for parts without lists: these come first.
        place_of[queries[:, None], visited.lists] = np.arange(num_visited, dtype=np.int32)
        place_of[:, -1] = 0
        is_short = ids_QK.min() == NONE
        some = np.where(ids_QK == NONE, self._selection.ids[0], ids_QK) if is_short else ids_QK
        lists = self._lists.of_row[self._vectors.rows_of(some)]
        places = place_of[queries[:, None], lists]
        places.sort(axis=1)
        last = places[:, -1 - int(NOTHING_NEW * ids_QK.shape[1])]
        before = np.where(last > 0, visited.reached[queries, last - 1], 0.0)
        if is_short:
            before[(ids_QK == NONE).any(axis=1)] = np.inf
        return before


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Visited:
    """What some queries visit.

    Args:
        lists: int64 [Q, P], nearest first; -1 for none.
        closeness: float32 [Q, P], the inner products with their centroids.
        reached: selected pictures in each list and those before it, at least of those visited.
        compared: selected pictures compared, [Q].
        is_all: whether these are all that are selected, [Q].
    """

    lists: Ids
    closeness: Floats
    reached: NDArray[np.int64]
    compared: NDArray[np.int64]
    is_all: NDArray[np.bool_]
