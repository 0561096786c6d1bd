"""The score of a query and a picture, to the last bit as every search has it.

Products of many vectors at once differ from it in their last bits: equal pictures would not come by
id, and a score would not find the picture that has it.

Shapes: D embedding, M ids.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from index.choose import exact_recipe
from index.part import Part
from index.rank import MAX_CANDIDATE_BYTES
from index.template import train_template
from index.vector_sets import StoredVectors
from index.vectors import Floats, Ids

__all__ = ["ExactScores"]


class ExactScores:
    """Compares a query with some pictures one by one. Thread-safe.

    Args:
        vectors: of the pictures.
        by_vectors: as of the `Ranker` of the same rows: whether scores are products with the stored
            vectors, or those that FAISS has of its codes.
    """

    def __init__(self, vectors: StoredVectors, *, by_vectors: bool) -> None:
        self._vectors = vectors
        self._by_vectors = by_vectors
        empty = np.empty((0, vectors.dim), np.float32)
        self._template = train_template(exact_recipe("some pictures"), vectors.dim, empty)

    def of(self, query_D: Floats, ids_M: Ids) -> Floats:
        """Cosines float32 [M], which rounding may take a hair over 1.

        Args:
            query_D: a unit vector float32.
            ids_M: int64, at least one.
        """
        return np.concatenate([*self._blocks(query_D, ids_M)])

    def _blocks(self, query_D: Floats, ids_M: Ids) -> Iterator[Floats]:
        step = max(1, MAX_CANDIDATE_BYTES // (4 * self._vectors.dim))
        for start in range(0, len(ids_M), step):
            some = ids_M[start : start + step]
            vectors = self._vectors.gather(self._vectors.rows_of(some))
            if self._by_vectors:
                yield np.vecdot(vectors, query_D)
                continue
            part = Part.fill(self._template, [(np.arange(len(some)), vectors)])
            found, places = part.search(query_D[None], len(some), nprobe=1)
            yield found[0, np.argsort(places[0])]
