"""An order of rows in which those that lie close to each other follow each other.

A graph is walked from neighbour to neighbour. Where these lie side by side in memory too, the walk
finds most of them in the processor's cache.

Shapes: N rows, D embedding, C cells.
"""

from __future__ import annotations

from typing import Any

import faiss as faiss_library
import numpy as np

from index.kmeans import train_centroids
from index.vectors import Ids, VectorFile

__all__ = ["rows_by_nearness"]

faiss: Any = faiss_library  # its type stubs do not know the arguments of its wrappers

CELL_ROWS = 1024
"""Rows of a cell: their float16 vectors fit into the cache of a core."""
MAX_CELLS = 1024
TRAIN_ROWS = 64
"""Rows for each cell that cells learn from; they need not be good, only near."""


def rows_by_nearness(vectors: VectorFile, start: int, stop: int, batch_rows: int) -> Ids:
    """The rows from ``start`` to before ``stop``, int64 [N], cell by cell, in each by number.

    Memory: 18 bytes a row, and a batch. Cost: N C D, a small part of building a graph.
    """
    num_rows = stop - start
    num_cells = min(num_rows // CELL_ROWS, MAX_CELLS)
    if num_cells < 2:
        return np.arange(start, stop)
    num_sampled = min(num_rows, TRAIN_ROWS * num_cells)
    sample_rows = start + np.arange(num_sampled) * num_rows // num_sampled
    cells = faiss.IndexFlatIP(vectors.dim)
    cells.add(train_centroids(vectors.gather(sample_rows), num_cells, seed=0))
    cell_N = np.empty(num_rows, np.int16)
    done = 0
    for _, batch in vectors.iter_batches(batch_rows, start=start, stop=stop):
        cell_N[done : done + len(batch)] = cells.search(batch, 1)[1][:, 0]
        done += len(batch)
    order_N: Ids = np.argsort(cell_N, kind="stable")
    order_N += start
    return order_N
