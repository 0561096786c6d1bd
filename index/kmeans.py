"""Centroids of inverted lists: k-means in one level, or in two where one would not end.

The cost of one level is N K D, and N grows with K: 65,536 lists would take hours. Two levels first
divide the sample into sqrt(K) cells, and then each cell by itself, for N sqrt(K) D.

Shapes: N sample rows, D embedding, K centroids.
"""

from __future__ import annotations

import math
from typing import Any

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.vectors import Floats

__all__ = ["allot", "train_centroids"]

faiss: Any = faiss_library  # its type stubs know no clustering parameters

ONE_LEVEL = 4096
"""Lists that one level trains in minutes on two cores."""


def train_centroids(sample_ND: Floats, num_lists: int, *, seed: int) -> Floats:
    """Unit centroids float32 [K, D] of a random sample of unit vectors; K is at most N.

    The same sample and seed give the same centroids.
    """
    if num_lists <= ONE_LEVEL:
        return _kmeans(sample_ND, num_lists, seed)
    cells_CD = _kmeans(sample_ND, round(math.sqrt(num_lists)), seed)
    cell_N = _nearest(cells_CD, sample_ND)
    shares = allot(num_lists, np.bincount(cell_N, minlength=len(cells_CD)))
    order_N = np.argsort(cell_N, kind="stable")
    ends = np.cumsum(np.bincount(cell_N, minlength=len(cells_CD)))
    found, start = [], 0
    for number, (share, end) in enumerate(zip(shares, ends, strict=True)):
        if share:
            found.append(_kmeans(sample_ND[order_N[start:end]], int(share), seed + 1 + number))
        start = end
    return np.concatenate(found)


def allot(total: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide ``total`` in proportion to ``counts``, none getting more than its count.

    >>> allot(5, np.array([60, 30, 10, 0])).tolist()
    [3, 2, 0, 0]
    """
    exact = total * counts / counts.sum()
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = total - int(shares.sum())
    first = np.argsort(shares - exact, kind="stable")[:left]
    shares[first] += 1
    return shares


def _kmeans(sample_ND: Floats, num_lists: int, seed: int) -> Floats:
    parameters = faiss.ClusteringParameters()
    parameters.niter = 10
    parameters.seed = seed + 1  # 0 would mean a random seed
    parameters.spherical = True
    parameters.min_points_per_centroid = 1  # recipes keep to FAISS's minimum; tests may not
    dim = sample_ND.shape[1]
    clustering = faiss.Clustering(dim, num_lists, parameters)
    clustering.train(np.ascontiguousarray(sample_ND), faiss.IndexFlatIP(dim))
    centroids: Floats = faiss.vector_to_array(clustering.centroids).reshape(num_lists, dim)
    return centroids


def _nearest(centroids_KD: Floats, sample_ND: Floats) -> NDArray[np.int64]:
    flat = faiss.IndexFlatIP(centroids_KD.shape[1])
    flat.add(centroids_KD)
    _, nearest_N1 = flat.search(sample_ND, 1)
    found: NDArray[np.int64] = np.ravel(nearest_N1)
    return found
