"""FAISS's search without its wrapper for arrays, which takes as long as a few hundred comparisons.

Shapes: Q queries, D embedding, K results a query.
"""

from __future__ import annotations

from typing import Any

import faiss as faiss_library
import numpy as np

from index.vectors import Floats, Ids

__all__ = ["FaissSearch", "search_faiss"]

faiss: Any = faiss_library  # its type stubs do not know what is behind its wrappers


class FaissSearch:
    """A search of which all but the queries is settled. Safe from many threads.

    Every step of a single search counts: each takes as long as several comparisons.

    Args:
        faiss_index: of any kind.
        count: K.
        parameters: FAISS's; None for none.
        ids: of the rows, where those are what FAISS finds; None where it finds ids.
    """

    __slots__ = ("_count", "_ids", "_index", "_owners", "_parameters", "_run")

    def __init__(
        self, faiss_index: Any, count: int, parameters: Any = None, ids: Ids | None = None
    ) -> None:
        self._owners = faiss_index, parameters
        self._run = type(faiss_index).search_c
        # SWIG takes twice as long to find what is behind its proxies as to be told.
        self._index = faiss_index.this
        self._parameters = None if parameters is None else parameters.this
        self._count, self._ids = count, ids

    def __call__(self, queries_QD: Floats) -> tuple[Floats, Ids]:
        """Scores float32 and ids int64, [Q, K], best first; an id of -1 is none.

        Args:
            queries_QD: float32, C-contiguous.
        """
        num, count, pointer = len(queries_QD), self._count, faiss.swig_ptr
        scores, found = np.empty((num, count), np.float32), np.empty((num, count), np.int64)
        arrays = pointer(queries_QD), count, pointer(scores), pointer(found)
        self._run(self._index, num, *arrays, self._parameters)
        if self._ids is None:
            return scores, found
        ids = self._ids[found]
        if num != 1 or found[0, -1] < 0:  # of one answer, what there is none of comes last
            ids[found < 0] = -1
        return scores, ids


def search_faiss(
    faiss_index: Any, queries_QD: Floats, count: int, parameters: Any = None
) -> tuple[Floats, Ids]:
    """As `FaissSearch`, once."""
    return FaissSearch(faiss_index, count, parameters)(queries_QD)
