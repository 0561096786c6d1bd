"""Filtered search: of the ways to answer within a selection, the cheapest that answers well.

A fixed number of lists, as without a filter, finds next to nothing once few pictures are selected.
So a search within a selection takes one of these ways:

* ``subset``: compares with every selected picture. Exact.
* ``lists``: visits only lists that hold selected pictures, nearest first, until twice as many
  selected pictures are compared as the tuned search compares pictures; then as many again, and
  again, until that brings nothing new among the k nearest, or no list is left. Lists without a
  selected picture are passed over, so a selection far away from the query is found as well.
* ``scan``: an index without lists compares with every selected picture inside FAISS. Exact.

Short codes only propose: ``lists`` is then never exact, and asks for more proposals until the k
best by the stored vectors are all among the first half. A graph, which cannot be visited in parts,
leaves ``subset``.

Which one is a matter of estimated cost, and every answer says which it was.

Shapes: Q queries, D embedding, K results, M selected rows, L lists, P lists visited.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.lists import Lists
from index.measure import exact_top_k
from index.part import Part
from index.rank import MAX_CANDIDATE_BYTES, NONE, Ranker
from index.selection import Selection
from index.vectors import Floats, Ids

__all__ = ["Plan", "Planner"]

GATHER_NS = 2.2
"""To fetch and widen one stored float16 number of a row; measured, as those below."""
PRODUCT_NS = 0.15
"""One multiplication of a row, by FAISS or BLAS."""
SELECT_NS = 4.0
"""To ask whether a row is selected."""
CALL_NS = 60_000.0
"""One round of visits, whatever it visits."""
ENOUGH = 2.0
"""Pictures compared in the first round, as a multiple of what the tuned search compares."""
GROWTH = 2.0
"""Pictures compared after a further round, as a multiple of those before."""
MAX_ORDERED = 1 << 21
"""Lists ordered at once, over all queries; bounds memory for many queries."""
MAX_DROPPED = 64
"""Excluded pictures that are searched for and dropped; more make a selection of their own."""
DEEPER = 4
"""Candidates of the next try, as a multiple of those among which the k best came too late."""
NOTHING_NEW = 0.02
"""Share of the k nearest that a last round may still have changed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an answer was found.

    Args:
        way: ``tuned`` without a filter, ``exact`` if all pictures were compared, or one of the
            ways of ``index.planner``.
        is_exact: whether the answer is what comparing with every selected picture would give.
        num_selected: pictures that could have been results.
        num_compared: pictures compared with a query, on average; None if that is not known.
    """

    way: Literal["tuned", "exact", "subset", "lists", "scan"]
    is_exact: bool
    num_selected: int
    num_compared: float | None


class Planner:
    """Searches of one index version within selections. Thread-safe.

    Args:
        ranker: ranks by the stored vectors.
        parts: its parts.
        nprobe: lists that the tuned search visits.
    """

    def __init__(self, ranker: Ranker, parts: Sequence[Part], nprobe: int) -> None:
        self._ranker = ranker
        self._parts = parts
        self._nprobe = nprobe
        self._lists: Lists | None = None
        self._lists_known = False
        self._lock = threading.Lock()

    def top(
        self, queries_QD: Floats, k: int, selection: Selection, exclude: Ids, *, exact: bool = False
    ) -> tuple[Ids, Floats, Plan]:
        """The k nearest of the selected pictures; fewer if fewer are selected.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: at least 1.
            selection: of this index version.
            exclude: int64 ids that are no results, without repetition.
            exact: compare with every selected picture, whatever it costs.

        Returns:
            ids [Q, K'] and exact cosines [Q, K'] as from ``Ranker.top``, and how they were found.
        """
        dropped = exclude[selection.contains(exclude)]
        if len(dropped) > MAX_DROPPED:
            selection, dropped = selection.without(dropped), dropped[:0]
        available = len(selection) - len(dropped)
        k = min(k, available)
        if not k or not len(queries_QD):
            empty = np.empty((len(queries_QD), k))
            plan = Plan("subset", True, available, 0.0)
            return empty.astype(np.int64), empty.astype(np.float32), plan
        ids, scores, plan = self._top(queries_QD, k + len(dropped), selection, exact)
        places = np.argsort(np.isin(ids, dropped), axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(ids, places, 1), np.take_along_axis(scores, places, 1)
        return *kept, replace(plan, num_selected=available)

    def _top(
        self, queries_QD: Floats, k: int, selection: Selection, exact: bool
    ) -> tuple[Ids, Floats, Plan]:
        way = self._way(queries_QD, k, selection, exact)
        if way == "lists":
            return self._by_lists(queries_QD, k, selection)
        if way == "scan":
            ids, scores = self._scan(queries_QD, k, selection)
        else:
            ids, scores = self._subset(queries_QD, k, selection)
        return ids, scores, Plan(way, True, len(selection), float(len(selection)))

    def _way(
        self, queries_QD: Floats, k: int, selection: Selection, exact: bool
    ) -> Literal["subset", "lists", "scan"]:
        """The cheapest way, by what each is estimated to take in nanoseconds."""
        num_queries, dim = queries_QD.shape
        selected, total = len(selection), len(self._ranker.vectors)
        subset = CALL_NS + selected * dim * (GATHER_NS + num_queries * PRODUCT_NS)
        nlist = self._ranker.nlist
        if nlist == 1:
            scan = CALL_NS + num_queries * (total * SELECT_NS + selected * dim * PRODUCT_NS)
            return "scan" if scan < subset else "subset"
        if exact:
            return "subset"
        compared = min(GROWTH * self._enough(k), selected)  # two rounds, if the second ends it
        asked = min(compared * total / selected, total)
        visits = compared * dim * PRODUCT_NS + asked * SELECT_NS + nlist * dim * PRODUCT_NS
        by_lists = 2 * CALL_NS + num_queries * visits
        return "lists" if by_lists < subset and self.lists is not None else "subset"

    def _enough(self, k: int) -> float:
        """Selected pictures to compare before asking whether more would bring anything new."""
        tuned = self._nprobe * len(self._ranker.vectors) / self._ranker.nlist
        return max(ENOUGH * tuned, 4.0 * k)

    @property
    def lists(self) -> Lists | None:
        """The inverted lists, looked through when first needed; None if there are none."""
        with self._lock:
            if not self._lists_known:
                self._lists = Lists.of(self._parts, self._ranker.vectors.ids)
                self._lists_known = True
            return self._lists

    def _subset(self, queries: Floats, k: int, selection: Selection) -> tuple[Ids, Floats]:
        return exact_top_k(queries, k, self._ranker.vectors.iter_rows(selection.rows))

    def _scan(self, queries: Floats, k: int, selection: Selection) -> tuple[Ids, Floats]:
        found = [
            part.search(queries, self._ranker.num_wanted(k), nprobe=1, selector=selection.selector)[
                1
            ]
            for part in self._parts
        ]
        return self._ranker.rank(queries, np.concatenate(found, axis=1), k)

    def _by_lists(
        self, queries_QD: Floats, k: int, selection: Selection
    ) -> tuple[Ids, Floats, Plan]:
        lists = self.lists
        assert lists is not None, "chosen only where there are lists"
        ids = np.empty((len(queries_QD), k), np.int64)
        scores = np.empty((len(queries_QD), k), np.float32)
        compared = np.empty(len(queries_QD), np.int64)
        width, waiting = self._ranker.num_wanted(k), np.arange(len(queries_QD))
        while len(waiting):
            width = min(width, len(selection))
            query_bytes = 4 * self._ranker.vectors.dim * width * len(self._parts)
            step = min(MAX_CANDIDATE_BYTES // query_bytes, MAX_ORDERED // len(lists.centroids))
            deeper = []
            for start in range(0, len(waiting), max(step, 1)):
                which = waiting[start : start + max(step, 1)]
                visits = _Visits(self._parts, lists, queries_QD[which], width, selection)
                proposed = visits.run(self._enough(k), k)
                ids[which], scores[which] = self._ranker.rank(queries_QD[which], proposed, k)
                compared[which] = visits.compared
                deeper.append(which[self._too_few(proposed, ids[which])])
            # With all proposed, the stored vectors have decided.
            waiting = np.concatenate(deeper) if width < len(selection) else waiting[:0]
            width *= DEEPER
        is_exact = not self._ranker.lossy and bool((compared == len(selection)).all())
        return ids, scores, Plan("lists", is_exact, len(selection), float(compared.mean()))

    def _too_few(self, proposed_QW: Ids, best_QK: Ids) -> NDArray[np.bool_]:
        """Where short codes should propose more: one of the k best was among their last half."""
        width = proposed_QW.shape[1]
        is_full = proposed_QW[:, -1] != NONE
        if not self._ranker.lossy or not is_full.any():
            return np.zeros(len(proposed_QW), bool)
        late = proposed_QW[:, width // 2 :]
        came_late = np.array(
            [np.isin(best, last).any() for best, last in zip(best_QK, late, strict=True)],
            bool,
        )
        return np.asarray(is_full & came_late, np.bool_)


class _Visits:
    """The rounds of some queries over the lists that hold selected pictures.

    Attributes:
        compared: selected pictures compared so far, [Q].
    """

    def __init__(
        self,
        parts: Sequence[Part],
        lists: Lists,
        queries_QD: Floats,
        width: int,
        selection: Selection,
    ) -> None:
        counts = lists.counts(selection)
        num_queries = len(queries_QD)
        self._parts = parts
        self._queries = queries_QD
        self._selection = selection
        self._order, self._closeness = lists.nearest_first(queries_QD, np.flatnonzero(counts))
        self._reached = np.cumsum(counts[self._order], axis=1)
        self._begin = np.zeros(num_queries, np.intp)
        self._ids = np.full((num_queries, width), NONE)
        self._scores = np.full((num_queries, width), -np.inf, np.float32)
        self.compared = np.zeros(num_queries, np.int64)

    def run(self, enough: float, k: int) -> Ids:
        """Visit until a round brings nothing new to the k best, or every list was visited.

        Returns:
            The best by FAISS's own scores, best first, int64 [Q, width]; -1 for none.
        """
        waiting = np.arange(len(self._queries))
        self._round(waiting, enough, k)
        target = enough
        while len(waiting := waiting[self._begin[waiting] < self._order.shape[1]]):
            target *= GROWTH
            num_new = self._round(waiting, target, k)
            is_short = self._ids[waiting, k - 1] == NONE
            waiting = waiting[is_short | (num_new > NOTHING_NEW * k)]
        return self._ids

    def _round(self, which: NDArray[np.intp], target: float, k: int) -> NDArray[np.intp]:
        """Visit lists until so many are compared; how many of each query's k best are new."""
        begins, last = self._begin[which], self._order.shape[1]
        ends = np.clip((self._reached[which] < target).sum(axis=1) + 1, begins + 1, last)
        places = begins[:, None] + np.arange((ends - begins).max())
        lists = self._order[which[:, None], np.minimum(places, last - 1)]
        lists[places >= ends[:, None]] = -1
        closeness = self._closeness[which[:, None], np.minimum(places, last - 1)]
        queries, count = self._queries[which], self._ids.shape[1]
        found = [
            part.search_lists(queries, count, lists, closeness, self._selection.selector)
            for part in self._parts
        ]
        ids = np.concatenate([self._ids[which], *(ids for _, ids in found)], axis=1)
        scores = np.concatenate([self._scores[which], *(scores for scores, _ in found)], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        self._ids[which] = np.take_along_axis(ids, best, 1)
        self._scores[which] = np.take_along_axis(scores, best, 1)
        self._begin[which], self.compared[which] = ends, self._reached[which, ends - 1]
        # The first ``count`` columns are those of the rounds before.
        is_new = (best[:, :k] >= count) & (self._ids[which, :k] != NONE)
        return np.asarray(is_new.sum(axis=1), np.intp)
