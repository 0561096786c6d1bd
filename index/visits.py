"""Filtered search by lists: visit those that hold selected pictures, and tell when that is enough.

Every query walks by itself, in plain Python: for the few dozen lists that one visits, numpy's calls
would take longer than FAISS does to compare what is in them.

Shapes: Q queries, D embedding, K results, L lists, P lists visited.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from index.best import NONE
from index.lists import Held, Lists
from index.selection import Selection
from index.vectors import Floats, Ids

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
AROUND = 6
"""A query's own surroundings are one in so many of the lists that are ordered at first."""
MARGIN = 1.5
"""Lists ordered, as a multiple of those that should do if all held as many selected pictures."""
NEARBY = 4
"""Lists a query's surroundings may be of all of them, one in so many."""
PADDED = 8
"""Lists come in multiples of this, so that FAISS's parameters, which count them, can be kept."""


class Visits:
    """The visits of some queries to the lists that hold selected pictures.

    A list is visited once: a later round adds what it finds to what was found before.

    Args:
        lists: of the index.
        queries_QD: unit vectors float32, C-contiguous.
        selection: what may be a result, not empty.
    """

    def __init__(self, lists: Lists, queries_QD: Floats, selection: Selection) -> None:
        self._lists = lists
        self._queries = queries_QD
        self._selection = selection
        self._held = lists.held(selection)
        self._walks = [_Walk(lists, self._held, query) for query in queries_QD]

    @property
    def compared(self) -> list[int]:
        """Selected pictures compared so far, by query."""
        return [walk.compared + self._held.num_unlisted for walk in self._walks]

    def run(self, width: int, enough: float, k: int) -> tuple[Floats, Ids]:
        """Visit until the k best came early among what was compared, or all was.

        Args:
            width: candidates a query.
            enough: selected pictures to compare at first.
            k: results a query.

        Returns:
            The best by FAISS's own scores, and these, best first, [Q, width]; ids of -1 for none.
        """
        steps = self._begin(enough)
        scores, ids = _best([*self._visit(self._queries, steps, width), *self._unlisted(width)])
        waiting = list(range(len(steps)))
        best = ids[:, :k]
        while True:
            going, steps = [], []
            for number, needed in zip(waiting, self._needed(waiting, best), strict=True):
                walk = self._walks[number]
                if needed > walk.compared and not walk.is_done:
                    going.append(number)
                    steps.append(walk.go_on(max(AHEAD * needed, LEAST_GROWTH * walk.compared)))
            if not going:
                return scores, ids
            waiting = going
            found = self._visit(self._queries[going], steps, width)
            scores[going], ids[going] = _best([(scores[going], ids[going]), *found])
            best = ids[going, :k]

    def _begin(self, enough: float) -> list[list[int]]:
        """The lists that each query visits first, until so many selected pictures are compared."""
        count = int(MARGIN * enough * self._lists.num_lists / len(self._selection)) + 4
        if count > self._lists.num_lists // NEARBY:
            return [walk.go_on(enough) for walk in self._walks]
        nearest = self._lists.nearest(self._queries, count)
        held = self._held.counts[nearest]
        around = zip(self._walks, nearest.tolist(), held.tolist(), strict=True)
        each = len(self._selection) / self._lists.num_lists
        return [walk.begin(enough, each, *ordered) for walk, *ordered in around]

    def _visit(
        self, queries_QD: Floats, steps: Sequence[Sequence[int]], width: int
    ) -> list[tuple[Floats, Ids]]:
        """What each part with lists finds in some lists for each query, [Q, width]."""
        longest = max(map(len, steps))
        longest = min(-(-longest // PADDED) * PADDED, self._lists.num_lists)
        lists = np.array([[*step, *[-1] * (longest - len(step))] for step in steps], np.int64)
        parameters = self._held.parameters(longest)
        return [
            part.search_lists(queries_QD, width, lists, parameters) for part in self._lists.parts
        ]

    def _unlisted(self, width: int) -> list[tuple[Floats, Ids]]:
        """What parts without lists find, which compare all they have."""
        if not self._held.num_unlisted:
            return []
        selector = self._selection.selector
        return [
            part.search(self._queries, width, nprobe=part.nlist, selector=selector)
            for part in self._lists.others
        ]

    def _needed(self, which: Sequence[int], ids_QK: Ids) -> list[float]:
        """Pictures to compare, by when the last of the k best came; all if there are fewer."""
        short = (ids_QK[:, -1] == NONE).tolist()
        some = ids_QK
        if any(short):
            some = np.where(ids_QK == NONE, self._selection.ids[0], ids_QK)
        lists = self._lists.of_ids(some).tolist()
        late = int(NOTHING_NEW * ids_QK.shape[1])
        return [
            float(len(self._selection))
            if is_short
            else SETTLED * self._walks[number].came_by(theirs, late)
            for number, theirs, is_short in zip(which, lists, short, strict=True)
        ]


class _Walk:
    """One query's way through the lists that hold selected pictures, nearest first.

    Attributes:
        compared: selected pictures in the lists visited.
    """

    def __init__(self, lists: Lists, held: Held, query_D: Floats) -> None:
        self._lists = lists
        self._held = held
        self._query = query_D
        self._order: Sequence[int] | Ids = []
        self._reached: Sequence[int] | Ids = []
        self._visited = 0
        self._is_all_ordered = False
        # Parts without lists are compared first; their rows lie in list L.
        self._before = {lists.num_lists: 0}
        self.compared = 0

    @property
    def is_done(self) -> bool:
        """Whether all lists with selected pictures were visited."""
        return self._visited == self._held.num_lists

    def begin(
        self, enough: float, each: float, nearest: Sequence[int], held: Sequence[int]
    ) -> list[int]:
        """The lists to visit first.

        Args:
            enough: selected pictures to compare; more if few of those around it are selected.
            each: selected pictures in a list on average.
            nearest: the nearest of all lists, nearest first.
            held: selected pictures in each.
        """
        pairs = [(number, count) for number, count in zip(nearest, held, strict=True) if count]
        self._order = [number for number, _ in pairs]
        self._reached = list(accumulate(count for _, count in pairs))
        around = len(held) // AROUND
        is_far = sum(held[:around]) < FAR_SHARE * each * around
        return self.go_on(FAR * enough if is_far else enough)

    def go_on(self, target: float) -> list[int]:
        """The next lists, until ``target`` selected pictures are compared in all."""
        is_short = not len(self._reached) or self._reached[-1] < target
        if is_short and not self._is_all_ordered:
            self._order_all()
        first = self._visited
        end = min(bisect_left(self._reached, target, first) + 1, len(self._order))
        step, reached = list(self._order[first:end]), list(self._reached[first:end])
        self._before.update(zip(step, [self.compared, *reached], strict=False))
        if step:
            self._visited, self.compared = end, reached[-1]
        return step

    def came_by(self, lists_K: Sequence[int], late: int) -> int:
        """Pictures compared before the list that brought the last of some but for ``late`` ones."""
        before = [self._before[number] for number in lists_K]
        return sorted(before)[-1 - late] if late else max(before)

    def _order_all(self) -> None:
        """Put all other lists that hold something behind those whose order is known."""
        distances = -(self._lists.centroids @ self._query)
        is_other = self._held.counts > 0
        is_other[self._order] = False
        others = np.flatnonzero(is_other)
        others = others[np.argsort(distances[others])]
        order = np.concatenate([np.asarray(self._order, np.int64), others])
        self._order, self._reached = order, self._held.counts[order].cumsum()
        self._is_all_ordered = True


def _best(found: Sequence[tuple[Floats, Ids]]) -> tuple[Floats, Ids]:
    """The best of several findings by FAISS's own scores, as many as each has."""
    if len(found) == 1:
        return found[0]
    width = found[0][0].shape[1]
    scores, ids = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
    best = np.argsort(np.where(ids == NONE, np.inf, -scores), axis=1, kind="stable")[:, :width]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
