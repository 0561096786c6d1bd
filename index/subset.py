"""Exact search of a selection: every selected picture is compared.

Shapes: Q queries, D embedding, K results, M rows selected.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from index.choose import exact_recipe
from index.exact_scores import ExactScores
from index.measure import exact_top_k
from index.part import Part
from index.rank import SPARE, Ranker
from index.selection import Selection
from index.template import train_template
from index.vector_sets import iter_rows
from index.vectors import Floats, Ids

__all__ = ["Subsets"]

KEPT_BYTES = 1 << 22
"""Vectors of one selection that are kept side by side; larger ones are fetched for each search."""

MAX_KEPT = 8
"""Selections whose vectors are kept."""


class Subsets:
    """Compares with all of a selection; keeps the vectors of small ones used last. Thread-safe.

    Args:
        ranker: of the same rows; who is compared here has the score that it has there.
    """

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker
        self._vectors = vectors = ranker.vectors
        self._template = train_template(
            exact_recipe("a selection"), vectors.dim, np.empty((0, vectors.dim), np.float32)
        )
        self._scores = ExactScores(vectors, by_vectors=ranker.by_vectors)
        self._kept: OrderedDict[Selection, Part] = OrderedDict()
        self._lock = threading.Lock()

    def keeps(self, num_rows: int) -> bool:
        """Whether a selection of so many is small enough to be kept."""
        return 2 * self._vectors.dim * num_rows <= KEPT_BYTES

    def top(self, queries_QD: Floats, k: int, selection: Selection) -> tuple[Ids, Floats]:
        """The k nearest of the selected pictures.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: at most as many as are selected.
            selection: not empty.

        Returns:
            ids int64 [Q, k] and cosines float32 [Q, k], best first, equal ones by id.
        """
        if self.keeps(len(selection)):
            scores, ids = self._part_of(selection).search(queries_QD, k + SPARE, nprobe=1)
        else:
            rows = iter_rows(self._vectors, selection.rows)
            ids, scores = exact_top_k(queries_QD, k + SPARE, rows)
            if not self._ranker.by_vectors:
                both = zip(queries_QD, ids, strict=True)
                scores = np.stack([self._scores.of(query_D, some) for query_D, some in both])
        return self._ranker.rank(queries_QD, ids, scores, k)

    def _part_of(self, selection: Selection) -> Part:
        with self._lock:
            part = self._kept.get(selection)
            if part is not None:
                self._kept.move_to_end(selection)
                return part
        # Two threads may both do it: the same comes of it, and neither waits for the other.
        part = Part.fill(self._template, iter_rows(self._vectors, selection.rows))
        with self._lock:
            self._kept[selection] = part
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return part
