"""The inverted lists of an index: where they lie, and which of them hold selected pictures.

Shapes: Q queries, D embedding, L lists, N rows of the index, M of them selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.part import Part
from index.selection import Selection
from index.vectors import Floats, Ids, locate

__all__ = ["Lists"]


class Lists:
    """What a filtered search knows of the lists of all parts, which share their centroids.

    Attributes:
        centroids: float32 [L, D].

    Memory: 4 bytes a picture. Cost: one pass over the ids.
    """

    def __init__(self, centroids_LD: Floats, parts: Sequence[Part], ids_N: Ids) -> None:
        self.centroids = centroids_LD
        self._list_of_row = np.empty(len(ids_N), np.int32)
        for part in parts:
            for number, ids in enumerate(part.ids_by_list()):
                rows, alive = locate(ids_N, ids)  # a part still has what was removed since
                self._list_of_row[rows[alive]] = number
        self._counts: WeakKeyDictionary[Selection, NDArray[np.int64]] = WeakKeyDictionary()

    @classmethod
    def of(cls, parts: Sequence[Part], ids_N: Ids) -> Lists | None:
        """The lists of an index; None if it has none, or its parts have lists of their own."""
        centroids = [part.centroids() for part in parts]
        first = centroids[0]
        if first is None or not all(
            other is not None and np.array_equal(first, other) for other in centroids
        ):
            return None
        return cls(first, parts, ids_N)

    def counts(self, selection: Selection) -> NDArray[np.int64]:
        """How many of the selected pictures lie in each list, [L]; counted once a selection."""
        counts = self._counts.get(selection)
        if counts is None:
            counts = np.bincount(self._list_of_row[selection.rows], minlength=len(self.centroids))
            self._counts[selection] = counts
        return counts

    def nearest_first(self, queries_QD: Floats, lists: Ids) -> tuple[Ids, Floats]:
        """Some lists in the order in which each query would visit them.

        Args:
            queries_QD: unit vectors float32.
            lists: numbers of lists.

        Returns:
            Their numbers and the inner products with their centroids, both [Q, len(lists)].
        """
        closeness = queries_QD @ self.centroids[lists].T
        order = np.argsort(-closeness, axis=1)
        return lists[order], np.take_along_axis(closeness, order, axis=1)
