"""A graph of rows, each linked to near ones, which a search walks from neighbour to neighbour.

Source: Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using
Hierarchical Navigable Small World graphs"; FAISS's, over float16 vectors.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import math
import time
from typing import Any

import faiss as faiss_library
import numpy as np

from index.choose import HNSW_LINKS
from index.faiss_search import FaissSearch
from index.vectors import Floats, Ids

__all__ = ["Graph", "empty_graph", "hnsw_seconds"]

faiss: Any = faiss_library  # its type stubs know neither index attributes nor search parameters

UPPER_LINKS = 8
"""In the layers above the lowest, which only lead there: with half as many as other libraries have
a search compares a fourteenth less and finds the same."""

BUILD_EFFORT = 56
"""What a row keeps in sight as it is linked (efConstruction). With 64 a build takes a twelfth more
time, for 0.2 % of recall at the same effort."""

MAX_EFFORT = 512
"""Most that a search keeps in sight (efSearch); instead of more, all rows are compared."""

LINKS_BEFORE, SPARE_BEFORE = 32, 8
"""Graphs of before have so many links. They kept twice as much in sight as was asked for, and eight
more were asked for than wanted; what their cards state is of that."""

TRIAL_ROWS = 2000


def empty_graph(dim: int) -> Any:
    """FAISS's index of a graph without rows, by ids."""
    codes, inner = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    graph = faiss.IndexHNSWSQ(dim, codes, HNSW_LINKS, inner)
    graph.is_trained = True
    graph.hnsw.efConstruction = BUILD_EFFORT
    for layer in range(1, graph.hnsw.cum_nneighbor_per_level.size() - 1):
        graph.hnsw.set_nb_neighbors(layer, UPPER_LINKS)
    return faiss.IndexIDMap(graph)


def hnsw_seconds(sample_ND: Floats, num_rows: int) -> float:
    """About how long a graph over so many rows takes to build, by a small one of the sample."""
    rows = np.ascontiguousarray(sample_ND[:TRIAL_ROWS])
    graph = empty_graph(rows.shape[1])
    start = time.perf_counter()
    graph.add_with_ids(rows, np.arange(len(rows)))
    each = (time.perf_counter() - start) / len(rows)
    return each * num_rows * math.log(num_rows) / math.log(len(rows))


class Graph:
    """Searches a graph. Thread-safe.

    Attributes:
        most: the effort that is a comparison with all rows.

    Args:
        faiss_index: as of `empty_graph`, filled.
    """

    most = MAX_EFFORT + 1

    def __init__(self, faiss_index: Any) -> None:
        self._owner = faiss_index  # what FAISS's casts refer to, and do not keep
        self._walked = graph = faiss.downcast_index(faiss_index.index)
        # On its way FAISS adds up products four at a time or one by one, so that the same vector
        # has scores that differ in their last bit. What is found is compared again, one by one.
        self._rows = faiss.downcast_index(graph.storage)
        self._exact = faiss.IndexRefine(graph, self._rows)
        self._is_old = graph.hnsw.nb_neighbors(0) == 2 * LINKS_BEFORE
        self._ids: Ids = faiss.rev_swig_ptr(faiss_index.id_map.data(), faiss_index.id_map.size())

    def lay_out(self, places_N: Ids) -> None:
        """As `Part.lay_out`."""
        ids = self._ids[places_N]
        self._walked.permute_entries(places_N)
        faiss.copy_array_to_vector(ids, self._owner.id_map)

    def prepared(self, k: int, effort: int, selector: Any = None) -> FaissSearch:
        """As `Part.prepared`; ``effort`` is what it keeps in sight (efSearch), at least k."""
        selected = selector and faiss.IDSelectorTranslated(self._owner.id_map, selector)
        if effort >= self.most:
            whole = selected and faiss.SearchParameters(sel=selected)
            return FaissSearch(self._rows, k, whole, self._ids)
        least = 2 * (k + SPARE_BEFORE) if self._is_old else k
        walk = faiss.SearchParametersHNSW(sel=selected, efSearch=max(effort, least))
        exact = faiss.IndexRefineSearchParameters(k_factor=1.0, base_index_params=walk)
        return FaissSearch(self._exact, k, exact, self._ids)
