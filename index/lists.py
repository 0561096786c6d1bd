"""The inverted lists of an index: where they lie, and which of them hold selected pictures.

Shapes: Q queries, D embedding, L lists, N rows of the index, M of them selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.part import Part
from index.selection import Selection
from index.vectors import Floats, Ids, locate

__all__ = ["Held", "Lists"]

faiss: Any = faiss_library  # its type stubs know no search parameters


class Held:
    """The lists that hold pictures of one selection.

    Attributes:
        counts: selected pictures in each list, [L].
        num_lists: lists with at least one.
        num_unlisted: selected pictures in parts without lists.
    """

    def __init__(self, counts: NDArray[np.int64], num_unlisted: int, selector: Any) -> None:
        self.counts = counts
        self.num_lists = int(np.count_nonzero(counts))
        self.num_unlisted = num_unlisted
        self._selector = selector
        self._parameters: dict[int, Any] = {}

    def parameters(self, num_lists: int) -> Any:
        """FAISS's parameters to visit so many lists; kept, as making them takes time."""
        kept = self._parameters.get(num_lists)
        if kept is None:
            kept = faiss.SearchParametersIVF(sel=self._selector, nprobe=num_lists)
            self._parameters[num_lists] = kept
        return kept


class Lists:
    """What a filtered search knows of the lists of an index's parts, which share their centroids.

    Attributes:
        num_lists: L.
        centroids: their centroids, float32 [L, D].
        parts: those with lists.
        others: those without, which are searched as a whole.
        of_row: the list of each row, int32 [N]; L for a row of a part without lists.

    Memory: 4 bytes a picture, and the centroids once more. Cost: one pass over the ids.
    """

    def __init__(
        self, centroids_LD: Floats, parts: Sequence[Part], others: Sequence[Part], ids_N: Ids
    ) -> None:
        self.num_lists = len(centroids_LD)
        self.centroids = centroids_LD
        self.parts = parts
        self.others = others
        self.of_row = np.full(len(ids_N), self.num_lists, np.int32)
        for part in parts:
            for number, ids in enumerate(part.ids_by_list()):
                self.of_row[locate(ids_N, ids)[0]] = number
        self._ids = ids_N
        self._held: WeakKeyDictionary[Selection, Held] = WeakKeyDictionary()

    @classmethod
    def of(cls, parts: Sequence[Part], ids_N: Ids) -> Lists | None:
        """The lists of an index; None if it has none, or its parts have lists of their own."""
        centroids = [None if part.coarse is None else part.coarse.centroids() for part in parts]
        listed = [found for found in centroids if found is not None]
        if not listed or not all(np.array_equal(listed[0], other) for other in listed[1:]):
            return None
        with_lists, without = (
            [part for part, found in zip(parts, centroids, strict=True) if (found is None) == bare]
            for bare in (False, True)
        )
        return cls(listed[0], with_lists, without, ids_N)

    def held(self, selection: Selection) -> Held:
        """The lists that hold selected pictures; looked for once a selection."""
        held = self._held.get(selection)
        if held is None:
            counts = np.bincount(self.of_row[selection.rows], minlength=self.num_lists + 1)
            # Where all are selected, to ask for each whether it is would only take time.
            selector = selection.selector if len(selection) < len(self._ids) else None
            held = Held(counts[:-1], int(counts[-1]), selector)
            self._held[selection] = held
        return held

    def nearest(self, queries_QD: Floats, count: int) -> Ids:
        """Numbers of the lists nearest to each query, int64 [Q, count], nearest first.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            count: at most as many as there are.
        """
        coarse = self.parts[0].coarse
        assert coarse is not None, "a part with lists"
        return coarse.nearest(queries_QD, count)[1]

    def of_ids(self, ids: Ids) -> NDArray[np.int32]:
        """The list that each picture lies in; ids of the index, in any shape."""
        return np.asarray(self.of_row[locate(self._ids, ids)[0]], np.int32)
