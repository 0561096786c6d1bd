"""Filtered search: of the ways to answer within a selection, the cheapest that answers well.

A fixed number of lists, as without a filter, finds next to nothing once few pictures are selected.
So a search within a selection takes one of these ways:

* ``subset``: compares with every selected picture. Exact.
* ``lists``: visits lists that hold selected pictures, nearest first, until half as many again are
  compared as the tuned search compares; then on, until the k nearest, and as many as recall was
  measured with, came among the first third of those compared, or no list is left. Lists without a
  selected picture are passed over, so a selection far away from the query is found as well.
* ``scan``: an index without lists compares with every selected picture inside FAISS. Exact.

Short codes only propose: ``lists`` is then never exact, and asks for more proposals until the k
best by the stored vectors are all among the first half. A graph, which cannot be visited in parts,
leaves ``subset``, as do codes so short that the tuned search compares with all stored vectors.

Which one is a matter of estimated cost, and every answer says which it was.

Shapes: Q queries, D embedding, K results, M selected rows, L lists, P lists visited.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.best import NONE
from index.lists import Lists
from index.part import Part
from index.rank import MAX_CANDIDATE_BYTES, MAX_DROPPED, Ranker
from index.selection import Selection
from index.subset import Subsets
from index.vectors import Floats, Ids
from index.visits import Visits

__all__ = ["Plan", "Planner"]

GATHER_NS = 2.0
"""To fetch and widen one stored float16 number of a row; measured, as those below."""
PRODUCT_NS = 0.2
"""One multiplication of a row, by FAISS or BLAS."""
SELECT_NS = 12.0
"""To ask whether a row is selected."""
SUBSET_NS = 50_000.0
"""To compare with a selection, whatever it holds."""
VISIT_NS = 150_000.0
"""To find lists and visit them, whatever they hold."""
ENOUGH = 1.5
"""Pictures compared at first, as a multiple of what the tuned search compares."""
MAX_ORDERED = 1 << 21
"""Lists ordered at once, over all queries; bounds memory for many queries."""
DEEPER = 4
"""Candidates of the next try, as a multiple of those among which the k best came too late."""


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
        self._subsets = Subsets(ranker)
        self._lists: Lists | None = None
        self._lists_known = False
        self._alive: WeakKeyDictionary[Selection, Selection] = WeakKeyDictionary()
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
        selection = self._of_live(selection)
        dropped = exclude[selection.contains(exclude)] if len(exclude) else exclude
        if len(dropped) > MAX_DROPPED:
            selection, dropped = selection.without(dropped), dropped[:0]
        available = len(selection) - len(dropped)
        k = min(k, available)
        if not k or not len(queries_QD):
            empty = np.empty((len(queries_QD), k))
            plan = Plan("subset", True, available, 0.0)
            return empty.astype(np.int64), empty.astype(np.float32), plan
        ids, scores, plan = self._top(queries_QD, k + len(dropped), selection, exact)
        if not len(dropped):
            return ids, scores, plan
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
            ids, scores = self._subsets.top(queries_QD, k, selection)
        return ids, scores, Plan(way, True, len(selection), float(len(selection)))

    def _way(
        self, queries_QD: Floats, k: int, selection: Selection, exact: bool
    ) -> Literal["subset", "lists", "scan"]:
        """The cheapest way, by what each is estimated to take in nanoseconds."""
        num_queries, dim = queries_QD.shape
        selected, total = len(selection), len(self._ranker.vectors)
        gather = 0.0 if self._subsets.keeps(selected) else GATHER_NS
        subset = SUBSET_NS + selected * dim * (gather + num_queries * PRODUCT_NS)
        nlist = self._ranker.nlist
        if nlist == 1:
            scan = SUBSET_NS + num_queries * (total * SELECT_NS + selected * dim * PRODUCT_NS)
            return "scan" if scan < subset else "subset"
        # Where all codes were not enough for the target, the stored vectors answer.
        if exact or (self._ranker.lossy and self._nprobe >= nlist):
            return "subset"
        compared = min(self._enough(k), selected)
        asked = min(compared * total / selected, total)
        visits = compared * dim * PRODUCT_NS + asked * SELECT_NS + nlist * dim * PRODUCT_NS
        by_lists = VISIT_NS + num_queries * visits
        if by_lists < subset and self.lists is not None and self.lists.held(selection).num_lists:
            return "lists"
        return "subset"

    def _enough(self, k: int) -> float:
        """Selected pictures to compare before asking whether that is enough."""
        tuned = self._nprobe * len(self._ranker.vectors) / self._ranker.nlist
        return max(ENOUGH * tuned, 4.0 * k)

    @property
    def lists(self) -> Lists | None:
        """The inverted lists, looked through when first needed; None if there are none."""
        if self._lists_known:
            return self._lists
        with self._lock:
            if not self._lists_known:
                self._lists = Lists.of(self._parts, self._ranker.vectors.ids)
                self._lists_known = True
            return self._lists

    def _of_live(self, selection: Selection) -> Selection:
        """The selected pictures that may be results at all; found once a selection."""
        live = self._ranker.live
        if live is None:
            return selection
        found = self._alive.get(selection)
        if found is None:
            self._alive[selection] = found = selection.both(live)
        return found

    def _scan(self, queries: Floats, k: int, selection: Selection) -> tuple[Ids, Floats]:
        found = [
            part.search(queries, self._ranker.num_wanted(k), nprobe=1, selector=selection.selector)
            for part in self._parts
        ]
        scores, ids = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
        return self._ranker.rank(queries, ids, scores, k)

    def _by_lists(
        self, queries_QD: Floats, k: int, selection: Selection
    ) -> tuple[Ids, Floats, Plan]:
        # A single nearest tells little of what is still to come.
        sought = min(max(k, self._ranker.least), len(selection))
        width = self._ranker.num_wanted(sought)
        ids, scores, compared = self._visited(queries_QD, sought, selection, width)
        is_exact = not self._ranker.lossy and min(compared) == len(selection)
        mean = sum(compared) / len(compared)
        return ids[:, :k], scores[:, :k], Plan("lists", is_exact, len(selection), mean)

    def _visited(
        self, queries_QD: Floats, k: int, selection: Selection, width: int
    ) -> tuple[Ids, Floats, list[int]]:
        """Ids and cosines of the k best of some candidates, and how many were compared, [Q]."""
        lists = self.lists
        assert lists is not None, "chosen only where there are lists"
        width = min(width, len(selection))
        query_bytes = 4 * self._ranker.vectors.dim * width * len(self._parts)
        step = max(1, min(MAX_CANDIDATE_BYTES // query_bytes, MAX_ORDERED // lists.num_lists))
        if len(queries_QD) > step:
            blocks = [
                self._visited(queries_QD[start : start + step], k, selection, width)
                for start in range(0, len(queries_QD), step)
            ]
            ids, scores = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
            return ids, scores, [count for block in blocks for count in block[2]]
        visits = Visits(lists, queries_QD, selection)
        found, proposed = visits.run(width, self._enough(k), k)
        ids, scores = self._ranker.rank(queries_QD, proposed, found, k)
        compared = visits.compared
        # With all proposed, the stored vectors have decided.
        if self._ranker.lossy and width < len(selection):
            again = np.flatnonzero(self._too_few(proposed, ids))
            if len(again):
                ids[again], scores[again], counts = self._visited(
                    queries_QD[again], k, selection, DEEPER * width
                )
                for number, count in zip(again.tolist(), counts, strict=True):
                    compared[number] = count
        return ids, scores, compared

    def _too_few(self, proposed_QW: Ids, best_QK: Ids) -> NDArray[np.bool_]:
        """Where short codes should propose more: one of the k best was among their last half."""
        width = proposed_QW.shape[1]
        is_full = proposed_QW[:, -1] != NONE
        late = proposed_QW[:, width // 2 :]
        came_late = np.array(
            [np.isin(best, last).any() for best, last in zip(best_QK, late, strict=True)],
            bool,
        )
        return np.asarray(is_full & came_late, np.bool_)
