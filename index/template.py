"""Empty FAISS indexes, trained: parts are copies of them.

Shapes: N rows, D embedding, K lists.
"""

from __future__ import annotations

from typing import Any

import faiss as faiss_library
import numpy as np

from index.choose import Recipe
from index.hnsw import empty_graph
from index.part import one_thread
from index.vectors import Floats

__all__ = ["train_template"]

faiss: Any = faiss_library  # its type stubs know no index attributes


def train_template(
    recipe: Recipe, dim: int, sample_ND: Floats, centroids_KD: Floats | None = None
) -> Any:
    """An empty FAISS index, trained on a random sample of unit vectors; parts are copies of it.

    Args:
        recipe: what to build.
        dim: D.
        sample_ND: float32; what codes learn from.
        centroids_KD: float32, of the inverted lists of a recipe with several.
    """
    if recipe.nlist == 1 and recipe.kind in ("exact", "ivf", "hnsw"):
        return _flat_template(recipe, dim)
    template = faiss.index_factory(dim, recipe.factory(dim), faiss.METRIC_INNER_PRODUCT)
    # Of float16 vectors nothing is gained, and all lists visited would not be exact search.
    template.by_residual = recipe.lossy and centroids_KD is not None
    if centroids_KD is None:
        centroids_KD = sample_ND[:1]  # of a single list, which all visit
    template.quantizer.add(np.ascontiguousarray(centroids_KD))
    if recipe.lossy:
        template.pq.cp.min_points_per_centroid = 1
    with one_thread():  # many small k-means: threads would mostly wait for each other
        template.train(np.ascontiguousarray(sample_ND))
    return template


def _flat_template(recipe: Recipe, dim: int) -> Any:
    codes, inner = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    if recipe.kind == "hnsw":
        return empty_graph(dim)
    if recipe.kind == "ivf":
        template = faiss.index_factory(dim, "IVF1,SQfp16", inner)
        template.by_residual = False
        template.train(np.eye(1, dim, dtype=np.float32))
        return template
    return faiss.IndexIDMap(faiss.IndexScalarQuantizer(dim, codes, inner))
