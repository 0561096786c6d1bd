"""The centroids of inverted lists, and which of them lie nearest to a query.

Few are compared one by one. Many lie in cells, of which a query looks through the nearest: one
by one they would take longer than the lists themselves. Looking for all lists looks through all
cells, so that visiting all lists stays exact.

Shapes: Q queries, D embedding, K lists, C cells.
"""

from __future__ import annotations

import math
from typing import Any

import faiss as faiss_library
import numpy as np

from index.kmeans import train_centroids
from index.vectors import Floats, Ids

__all__ = ["Coarse", "put_centroids"]

faiss: Any = faiss_library  # its type stubs know neither index attributes nor search parameters

MIN_CELLS = 8
"""Cells looked through for a single list, and when a row is put into one."""

CELLS_APART = 3
"""Cells looked through, as a multiple of those that as many lists would fill."""


def put_centroids(quantizer: Any, centroids_KD: Floats) -> None:
    """Fill the empty quantizer that ``faiss.index_factory`` has made for an index of lists."""
    rows = np.ascontiguousarray(centroids_KD)
    cells = faiss.downcast_index(quantizer)
    if isinstance(cells, faiss.IndexIVFFlat):
        cells.quantizer.add(train_centroids(rows, cells.nlist, seed=0))
        cells.is_trained = True
        cells.nprobe = min(MIN_CELLS, cells.nlist)
    quantizer.add(rows)


class Coarse:
    """The quantizer of a filled index. Thread-safe.

    Args:
        quantizer: FAISS's index of the centroids, which has to outlive this.
    """

    def __init__(self, quantizer: Any) -> None:
        self._quantizer = faiss.downcast_index(quantizer)
        self._num_lists = int(self._quantizer.ntotal)
        has_cells = isinstance(self._quantizer, faiss.IndexIVFFlat)
        self._num_cells = int(self._quantizer.nlist) if has_cells else 0
        self._parameters: dict[int, Any] = {}

    def parameters(self, num_lists: int) -> Any:
        """FAISS's parameters to look for the nearest of so many lists; None where all are seen."""
        if not self._num_cells:
            return None
        filled = num_lists * self._num_cells / self._num_lists
        cells = min(self._num_cells, MIN_CELLS + math.ceil(CELLS_APART * filled))
        kept = self._parameters.get(cells)
        if kept is None:
            self._parameters[cells] = kept = faiss.SearchParametersIVF(nprobe=cells)
        return kept

    def centroids(self) -> Floats:
        """All centroids, float32 [K, D]."""
        if not self._num_cells:
            found: Floats = self._quantizer.reconstruct_n(0, self._num_lists)
            return found
        centroids = np.empty((self._num_lists, self._quantizer.d), np.float32)
        lists = self._quantizer.invlists
        for number in range(self._num_cells):
            if size := int(lists.list_size(number)):
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
                centroids[ids] = codes.view(np.float32).reshape(size, -1)
        return centroids

    def nearest(self, queries_QD: Floats, count: int) -> tuple[Floats, Ids]:
        """Inner products with the nearest centroids, and their lists, [Q, count], nearest first.

        A list of -1 is none: so many were not in the cells looked through.
        """
        found: tuple[Floats, Ids] = self._quantizer.search(
            queries_QD, count, params=self.parameters(count)
        )
        return found
