"""A graph asked for pictures that are in it as if they were not: a new picture is not there either.

The walk to a picture of a graph ends at that picture, whose links are the nearest to it. Measured
so, recall would be that of pictures already in the index: 0.96 where that of new ones is 0.74. So
nothing leads to a picture while it is the query.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.best import NONE, beside
from index.faiss_file import read_faiss
from index.latency import Searches
from index.layers import LayeredRanker, best_of
from index.part import Part, one_thread
from index.rank import Ranker
from index.vectors import Floats, Ids

__all__ = ["top_unseen"]

faiss: Any = faiss_library  # its type stubs do not know what is behind its wrappers


def top_unseen(
    searches: Searches, queries_QD: Floats, ids_Q: Ids, k: int, *, nprobe: int
) -> tuple[Ids, Floats]:
    """As `Ranker.top`, but that a graph does not know the queries. Others find themselves as ever.

    Args:
        searches: what ranks.
        queries_QD: unit vectors float32, C-contiguous.
        ids_Q: int64, the picture that each query is; -1 for none.
        k: at least 1.
        nprobe: the effort.

    Cost: queries of a graph go one by one. Memory: one part of it.
    """
    if isinstance(searches, LayeredRanker):
        layers = [
            top_unseen(layer, queries_QD, ids_Q, k, nprobe=min(nprobe, layer.nlist))
            for layer in searches.layers
        ]
        return best_of(layers, k)
    is_own = (ids_Q >= 0).any()
    if isinstance(searches, Ranker) and searches.is_graph and is_own and nprobe < searches.nlist:
        return _of_graph(searches, queries_QD, ids_Q, k, nprobe)
    return searches.top(queries_QD, k, nprobe=nprobe)


def _of_graph(
    ranker: Ranker, queries_QD: Floats, ids_Q: Ids, k: int, nprobe: int
) -> tuple[Ids, Floats]:
    found = []
    for part in ranker.parts:
        assert part.path is not None, "only what was built is measured"
        unseen = _Unseen(part.path, ids_Q)
        alone = replace(ranker, parts=[unseen.part])
        found.append(unseen.propose(alone, queries_QD, k, nprobe))
        del unseen, alone
    scores, proposed = beside(found)
    ids, cosines = ranker.rank(queries_QD, proposed, scores, k)
    short = np.flatnonzero((ids == NONE).any(axis=1))
    if len(short):  # parts of the graph that nothing else leads to
        more_ids, more = ranker.top(queries_QD[short], k, nprobe=nprobe)
        width = min(more.shape[1], cosines.shape[1])
        ids[short, :width], cosines[short, :width] = more_ids[:, :width], more[:, :width]
    return ids, cosines


class _Unseen:
    """A graph in memory, and where in it the links to some pictures are.

    Args:
        path: of the part's file.
        ids_Q: the pictures; those that the part does not have are not hidden.
    """

    def __init__(self, path: Path, ids_Q: Ids) -> None:
        owner = read_faiss(path)
        self.part = Part(owner)
        graph = faiss.downcast_index(owner.index).hnsw
        self._links = _array(graph.neighbors)
        self._first = _array(graph.offsets).astype(np.int64)  # link of each row
        self._num_lowest = graph.nb_neighbors(0)
        own_ids = _array(owner.id_map)
        order = np.argsort(own_ids)
        places = np.minimum(np.searchsorted(own_ids, ids_Q, sorter=order), len(order) - 1)
        rows = order[places]
        self._rows = np.where(own_ids[rows] == ids_Q, rows, -1)
        is_asked = np.zeros(len(own_ids) + 1, bool)  # the last one is where -1, no link, leads to
        is_asked[self._rows[self._rows >= 0]] = True
        at = np.flatnonzero(is_asked[self._links])
        at = at[np.argsort(self._links[at], kind="stable")]
        self._at, self._owners = at, np.searchsorted(self._first, at, side="right") - 1
        self._begins = np.searchsorted(self._links[at], self._rows)
        self._ends = np.searchsorted(self._links[at], self._rows, side="right")

    def propose(self, alone: Ranker, queries_QD: Floats, k: int, nprobe: int) -> tuple[Floats, Ids]:
        """Scores and ids [Q, M] of what the part proposes to each while it is hidden."""
        found = []
        with one_thread():
            for number, row in enumerate(self._rows.tolist()):
                here = slice(self._begins[number], self._ends[number])
                self._links[self._at[here]] = self._instead_of(row, here)
                found.append(alone.propose(queries_QD[number : number + 1], k, nprobe=nprobe))
                self._links[self._at[here]] = row
        scores, ids = zip(*found, strict=True)
        return np.concatenate(scores), np.concatenate(ids)

    def _instead_of(self, row: int, here: slice) -> NDArray[np.int32]:
        """Where what leads to a row leads without it: to those that it leads to, in turn.

        In the layers above the lowest nowhere, which is where it comes from: -1 would end the list.
        """
        owners = self._owners[here].astype(np.int32)
        near = self._links[self._first[row] : self._first[row] + self._num_lowest]
        near = near[near >= 0]
        if not len(near):
            return owners
        turn = np.resize(near, len(owners) + 1)
        others = np.where(turn[:-1] == owners, turn[1:], turn[:-1])
        is_lowest = self._at[here] - self._first[owners] < self._num_lowest
        return np.where(is_lowest, others, owners)


def _array(vector: Any) -> NDArray[Any]:
    """What a vector of FAISS's holds, uncopied."""
    found: NDArray[Any] = faiss.rev_swig_ptr(vector.data(), vector.size())
    return found
