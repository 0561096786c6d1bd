"""The one way from queries to ranked ids, used by search and by the tuning that vouches for it.

FAISS proposes candidates; exact cosines on the stored vectors decide. Where the lists visited
cannot fill a query's answer, more are visited until they do.

Shapes: Q queries, D embedding, K results, M candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index.measure import exact_top_k
from index.part import Part, ShelvedPart
from index.vectors import Floats, Ids, StoredVectors

__all__ = ["Ranker"]

SPARE = 8
"""Candidates beyond k: FAISS sums in another order, so near ties may change places."""

MAX_CANDIDATE_BYTES = 1 << 23
"""Vectors of candidates re-ranked at once; bounds memory for many queries."""

SCAN_ROWS = 4096

NONE = np.int64(-1)


@dataclass(frozen=True, slots=True)
class Ranker:
    """Searches all parts of an index version and ranks exactly.

    Args:
        parts: the FAISS files.
        vectors: the stored vectors of the same rows.
        refine: candidates a result that each part proposes; more make up for codes that are short.
    """

    parts: Sequence[Part | ShelvedPart]
    vectors: StoredVectors
    refine: int = 1

    @property
    def nlist(self) -> int:
        """Lists of a part; visiting as many is exact search.

        Where codes are lossy no number of lists is: one more than there are then stands for a scan
        of the stored vectors.
        """
        return max(part.nlist for part in self.parts) + self.lossy

    @property
    def lossy(self) -> bool:
        """Whether FAISS's codes only propose: visiting all of them may miss a neighbour."""
        return any(part.lossy for part in self.parts)

    def num_available(self, exclude: Ids | None) -> int:
        """Rows that may be results when ``exclude``, without repetition, may not."""
        excluded = 0 if exclude is None else int(self.vectors.contains(exclude).sum())
        return len(self.vectors) - excluded

    def top(
        self, queries_QD: Floats, k: int, *, nprobe: int, exclude: Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The k nearest rows of every query.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: at least 1.
            nprobe: lists to visit in every part at first.
            exclude: ids that are no results, without repetition.

        Returns:
            ids int64 [Q, K'] and scores float32 [Q, K'], best first, equal scores by id: inner
            products with the stored vectors, which rounding may take a hair over 1.
            K' = min(k, number of rows that are not excluded). Never an id of -1.
        """
        k = min(k, self.num_available(exclude))
        if not k or not len(queries_QD):
            return np.empty((len(queries_QD), k), np.int64), np.empty((len(queries_QD), k), "f4")
        query_bytes = 4 * self.vectors.dim * self.num_wanted(k) * len(self.parts)
        step = max(1, MAX_CANDIDATE_BYTES // query_bytes)
        blocks = [
            self._top_block(queries_QD[start : start + step], k, nprobe, exclude)
            for start in range(0, len(queries_QD), step)
        ]
        return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])

    def _top_block(
        self, queries: Floats, k: int, nprobe: int, exclude: Ids | None
    ) -> tuple[Ids, Floats]:
        candidates = self._candidates(queries, self.num_wanted(k), nprobe, exclude)
        short = (candidates != NONE).sum(axis=1) < k
        while short.any():
            assert nprobe < self.nlist, "visiting all lists must fill every answer"
            nprobe = min(4 * nprobe, self.nlist)
            candidates[short] = self._candidates(
                queries[short], self.num_wanted(k), nprobe, exclude
            )
            short = (candidates != NONE).sum(axis=1) < k
        return self.rank(queries, candidates, k)

    def rank(self, queries_QD: Floats, candidates_QM: Ids, k: int) -> tuple[Ids, Floats]:
        """The k best of the candidates by exact cosine, equal ones by id; -1 and -inf are none."""
        scores = self._cosines(queries_QD, candidates_QM)
        order = np.lexsort((candidates_QM, -scores), axis=-1)[:, :k]
        return np.take_along_axis(candidates_QM, order, 1), np.take_along_axis(scores, order, 1)

    def num_wanted(self, k: int) -> int:
        """Candidates that each part proposes for k results."""
        return k * self.refine + SPARE

    def _candidates(self, queries: Floats, count: int, nprobe: int, exclude: Ids | None) -> Ids:
        if self.lossy and nprobe >= self.nlist:
            return self._scan(queries, count, exclude)
        found = [part.search(queries, count, nprobe=nprobe, exclude=exclude) for part in self.parts]
        return np.concatenate([ids for _, ids in found], axis=1)

    def _scan(self, queries: Floats, count: int, exclude: Ids | None) -> Ids:
        """What is nearest by the stored vectors alone, as wide as what the parts propose."""

        def allowed() -> Iterator[tuple[Ids, Floats]]:
            for ids, vectors in self.vectors.iter_batches(SCAN_ROWS):
                keep = slice(None) if exclude is None else ~np.isin(ids, exclude)
                yield ids[keep], vectors[keep]

        width = sum(min(count, part.num_rows) for part in self.parts)
        found, _ = exact_top_k(queries, min(count, width), allowed())
        wide = np.full((len(queries), width), NONE)
        wide[:, : found.shape[1]] = found
        return wide

    def _cosines(self, queries_QD: Floats, candidates_QM: Ids) -> Floats:
        scores = np.full(candidates_QM.shape, -np.inf, np.float32)
        query, place = np.nonzero(candidates_QM != NONE)
        vectors = self.vectors.gather(self.vectors.rows_of(candidates_QM[query, place]))
        scores[query, place] = np.einsum("md,md->m", queries_QD[query], vectors)
        return scores
