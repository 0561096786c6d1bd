"""The centroids of inverted lists, and which of them lie nearest to a query.

They are compared one by one. In cells of their own, a query would look through fewer, and miss
those whose cell says nothing of them (docs/log.md).

Shapes: Q queries, D embedding, K lists.
"""

from __future__ import annotations

from typing import Any

import faiss as faiss_library
import numpy as np

from index.vectors import Floats, Ids

__all__ = ["Coarse"]

faiss: Any = faiss_library  # its type stubs do not know what is behind its wrappers


class Coarse:
    """The quantizer of a filled index. Thread-safe.

    Args:
        quantizer: FAISS's flat index of the centroids, which has to outlive this.
    """

    def __init__(self, quantizer: Any) -> None:
        self._quantizer = quantizer

    def centroids(self) -> Floats:
        """All centroids, float32 [K, D]."""
        found: Floats = self._quantizer.reconstruct_n(0, self._quantizer.ntotal)
        return found

    def nearest(self, queries_QD: Floats, count: int) -> tuple[Floats, Ids]:
        """Inner products with the nearest centroids, and their lists, [Q, count], nearest first.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            count: at most as many as there are.
        """
        closeness = np.empty((len(queries_QD), count), np.float32)
        lists = np.empty((len(queries_QD), count), np.int64)
        queries, *found = (faiss.swig_ptr(a) for a in (queries_QD, closeness, lists))
        # FAISS's wrapper for arrays takes as long as to compare with a few hundred centroids.
        self._quantizer.search_c(len(queries_QD), queries, count, *found)
        return closeness, lists
