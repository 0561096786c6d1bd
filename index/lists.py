"""The inverted lists of an index: where they lie, and which of them hold selected pictures.

Shapes: Q queries, D embedding, L lists, P lists visited, N rows of the index, M of them selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.part import Part
from index.selection import Selection, selector_of
from index.vectors import Floats, Ids

__all__ = ["Held", "Lists"]

faiss: Any = faiss_library  # its type stubs know no search parameters


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The lists that hold selected pictures.

    Args:
        counts: selected pictures in each list, [L].
        num_lists: lists with at least one.
        num_unlisted: selected pictures in parts without lists.
        selector: FAISS's selector of these lists; None if all are.
    """

    counts: NDArray[np.int64]
    num_lists: int
    num_unlisted: int
    selector: Any


class Lists:
    """What a filtered search knows of the lists of an index's parts, which share their centroids.

    Attributes:
        num_lists: L.
        parts: those with lists.
        others: those without, which are searched as a whole.
        of_row: the list of each row, int32 [N]; L for a row of a part without lists.

    Memory: 4 bytes a picture. Cost: one pass over the ids.
    """

    def __init__(
        self, centroids_LD: Floats, parts: Sequence[Part], others: Sequence[Part], ids_N: Ids
    ) -> None:
        self.num_lists = len(centroids_LD)
        self.parts = parts
        self.others = others
        self._centroids = faiss.IndexFlatIP(centroids_LD.shape[1])
        self._centroids.add(centroids_LD)
        self.of_row = np.full(len(ids_N), self.num_lists, np.int32)
        for part in parts:
            for number, ids in enumerate(part.ids_by_list()):
                self.of_row[np.searchsorted(ids_N, ids)] = number
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
            lists = np.flatnonzero(counts[:-1])
            selector = None if len(lists) == self.num_lists else selector_of(lists, self.num_lists)
            held = Held(counts[:-1], len(lists), int(counts[-1]), selector)
            self._held[selection] = held
        return held

    def nearest(self, queries_QD: Floats, count: int, held: Held) -> tuple[Ids, Floats]:
        """The lists with selected pictures that each query would visit first.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            count: how many, at most as many as there are.
            held: the lists to choose from.

        Returns:
            Their numbers and the inner products with their centroids, [Q, count], nearest first.
        """
        coarse = self.parts[0].coarse
        if held.selector is None and coarse is not None:
            closeness, lists = coarse.nearest(queries_QD, count)
            if lists.min() >= 0:
                return lists, closeness
        parameters = faiss.SearchParameters(sel=held.selector)
        closeness, lists = self._centroids.search(queries_QD, count, params=parameters)
        return lists, closeness
