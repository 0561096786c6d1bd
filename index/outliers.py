"""How far each picture lies from all others: what a corpus holds only once, or by mistake."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from index.graph import NeighbourGraph

__all__ = ["outlier_table"]


def outlier_table(graph: NeighbourGraph) -> pa.Table:
    """Every picture's outlier score, the highest first.

    Returns:
        Columns ``id`` int64; ``distance`` float32, the mean of ``1 - cosine`` to its k nearest,
        0 to 2; ``percentile`` float32, the share of pictures in % with a smaller distance, ties
        counting half.

    Source: Ramaswamy et al. 2000, "Efficient algorithms for mining outliers from large data sets";
    the mean over the k nearest is that of Angiulli and Pizzuti 2002.

    Memory: 16 bytes a picture.
    """
    pieces = [(ids, 1 - scores.mean(axis=1)) for ids, _, scores in graph.iter_pieces()]
    ids = np.concatenate([ids for ids, _ in pieces])
    distances = np.concatenate([distances for _, distances in pieces]).astype(np.float32)
    ordered = np.sort(distances)
    below = np.searchsorted(ordered, distances, side="left")
    upto = np.searchsorted(ordered, distances, side="right")
    percentiles = (100 * (below + upto) / (2 * len(ids))).astype(np.float32)
    order = np.lexsort((ids, -distances))
    return pa.table(
        {
            "id": ids[order],
            "distance": distances[order],
            "percentile": percentiles[order],
        }
    )
