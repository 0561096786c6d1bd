"""The centroids of inverted lists, and which of them lie nearest to a query.

Many centroids are compared in two steps: codes of two bits a dimension, scanned in registers,
propose, and inner products decide. One by one they would take longer than the rows of the lists
do, and push all else out of the processor's cache. In cells of their own, a query would look
through fewer, and miss those whose cell says nothing of them (docs/log.md).

Shapes: Q queries, D embedding, K lists, P of them wanted.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import faiss as faiss_library
import numpy as np

from index.faiss_search import search_faiss
from index.vectors import Floats, Ids

__all__ = ["Coarse"]

faiss: Any = faiss_library  # its type stubs do not know what is behind its wrappers

CODED_FROM, CODED_DIM = 1024, 64
"""Lists and dimensions from which on codes propose: to compare fewer takes no longer, and codes of
few dimensions tell lists badly apart."""
PROPOSED, PROPOSED_AT_LEAST = 8, 20
"""Lists that codes propose for each one wanted, and at least: FAISS keeps up to 20 in a heap."""
WORTH = 8
"""Codes propose as long as that is at most one list in so many: to look a proposed one up takes as
long as to compare some in a row."""

LEVELS = np.array([-1.5104, -0.4528, 0.4528, 1.5104], np.float32)
"""The four values that stand for a normal distribution with the least squared error.

Source: Max 1960, "Quantizing for minimum distortion", table I, N = 4."""


class Coarse:
    """The centroids of inverted lists, which parts may share. Thread-safe.

    Attributes:
        may_code: whether codes may propose.

    Args:
        quantizer: FAISS's flat index of them.
        owner: the index that the quantizer is a part of, and would go with; None if of none.

    Memory: D / 4 bytes a list for the codes. Cost: some 4 us a list to make them, on first use.
    """

    def __init__(self, quantizer: Any, owner: Any = None) -> None:
        self._owners = quantizer, owner  # what FAISS's casts refer to, and do not keep
        self._quantizer = faiss.downcast_index(quantizer)
        self._num_lists, dim = int(quantizer.ntotal), int(quantizer.d)
        self.may_code = self._num_lists >= CODED_FROM and dim >= CODED_DIM and dim % 2 == 0
        self._kept: dict[int, Any] = {}

    def apart(self) -> Coarse:
        """A copy that needs no index."""
        return Coarse(faiss.clone_index(self._quantizer))

    def is_like(self, other: Coarse) -> bool:
        """Whether both have the same centroids."""
        return np.array_equal(self.centroids(), other.centroids())

    def centroids(self) -> Floats:
        """All centroids, float32 [K, D]."""
        found: Floats = self._quantizer.reconstruct_n(0, self._num_lists)
        return found

    def proposed(self, queries_QD: Floats, count: int) -> tuple[Floats, Ids] | None:
        """As `nearest`; None where codes do not propose, since too few lists are there."""
        count = min(count, self._num_lists)
        return self.nearest(queries_QD, count) if self.is_coded(count) else None

    def nearest(self, queries_QD: Floats, count: int) -> tuple[Floats, Ids]:
        """Inner products with the nearest centroids, and their lists, [Q, P], nearest first.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            count: P, at most as many as there are.
        """
        if self.is_coded(count):
            return search_faiss(self.coded, queries_QD, count, self.parameters(count))
        return search_faiss(self._quantizer, queries_QD, count)

    def closeness(self, queries_QD: Floats, lists_QP: Ids) -> Floats:
        """Inner products float32 [Q, P] with the centroids of some lists; any for a list of -1.

        Args:
            queries_QD: float32.
            lists_QP: int64 numbers of lists.
        """
        found, stored_KD = np.empty(lists_QP.shape, np.float32), self._stored
        for query_D, lists_P, found_P in zip(queries_QD, lists_QP, found, strict=True):
            np.matmul(stored_KD[lists_P], query_D, out=found_P)
        return found

    def lists_of(self, vectors_ND: Floats) -> Ids:
        """The list that each vector belongs to, int64 [N]: the nearest, by a comparison with all.

        Args:
            vectors_ND: float32, C-contiguous.
        """
        return search_faiss(self._quantizer, vectors_ND, 1)[1][:, 0]

    def is_coded(self, count: int) -> bool:
        """Whether codes propose the nearest so many."""
        return self.may_code and _proposed(count) * WORTH <= self._num_lists

    @cached_property
    def coded(self) -> Any:
        """FAISS's search by codes, refined by the centroids themselves."""
        return faiss.IndexRefine(_codes(self._stored), self._quantizer)

    @property
    def _stored(self) -> Floats:
        """The centroids where FAISS has them, float32 [K, D]."""
        flat = self._quantizer
        stored: Floats = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
        return stored.reshape(flat.ntotal, flat.d)

    def parameters(self, count: int) -> Any:
        """What `coded` is to be told to find the nearest so many; None where codes do not propose.

        FAISS only reads it, so that threads may share it.
        """
        kept = self._kept.get(count)
        if kept is None and self.is_coded(count):
            made = faiss.IndexRefineSearchParameters(k_factor=_proposed(count) / count)
            kept = self._kept.setdefault(count, made)  # the same for all threads
        return kept


def _proposed(count: int) -> int:
    return max(PROPOSED_AT_LEAST, PROPOSED * count)


def _codes(centroids_KD: Floats) -> Any:
    """FAISS's index of the centroids as codes of 4 bits for two dimensions each.

    Every dimension has its four levels, of a normal distribution with its mean and its deviation.
    So nothing is learnt: that would take a second for 8,000 lists whenever an index is opened, and
    what it saves of the error is little.
    """
    dim = centroids_KD.shape[1]
    codes = faiss.IndexPQFastScan(dim, dim // 2, 4, faiss.METRIC_INNER_PRODUCT)
    # Without copies of them, which would stay on the heap as long as the process lives.
    mean_D = centroids_KD.mean(axis=0, dtype=np.float64)
    squares_D = np.einsum("kd,kd->d", centroids_KD, centroids_KD, dtype=np.float64)
    deviation_D = np.sqrt(np.maximum(squares_D / len(centroids_KD) - mean_D**2, 0))
    levels_D4 = mean_D[:, None] + deviation_D[:, None] * LEVELS
    book = np.empty((dim // 2, 16, 2), np.float32)
    book[:, :, 0] = np.repeat(levels_D4[0::2], 4, axis=1)
    book[:, :, 1] = np.tile(levels_D4[1::2], (1, 4))
    faiss.copy_array_to_vector(book.reshape(-1), codes.pq.centroids)
    codes.is_trained = True
    codes.add(centroids_KD)
    return codes
