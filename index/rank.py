"""The one way from queries to ranked ids, used by search and by the tuning that vouches for it.

Where FAISS's codes are the stored vectors, its scores are their cosines. Short codes and graphs
only propose, and cosines with the stored vectors decide. Where the lists visited cannot fill a
query's answer, more are visited until they do.

Shapes: Q queries, D embedding, K results, M candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import gt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.measure import exact_top_k
from index.selection import Living, not_any_of
from index.shelf import AnyPart
from index.vectors import Floats, Ids, VectorFile

__all__ = ["MAX_CANDIDATE_BYTES", "MAX_DROPPED", "NONE", "SPARE", "Ranker", "best_first"]

SPARE = 8
"""Candidates beyond k: which of equal ones FAISS keeps is chance, and with short codes which of
nearly equal ones."""

MAX_DROPPED = 64
"""Excluded pictures that are searched for and dropped, which leaves FAISS's loops as they are."""

MAX_CANDIDATE_BYTES = 1 << 23
"""Candidates proposed at once, and vectors of candidates compared at once; bounds memory."""

SCAN_ROWS = 4096

NONE = np.int64(-1)

FEW = 128
"""Candidates of one query that are looked at as Python's numbers. After FAISS has gone through its
lists, each of numpy's functions has to be fetched anew: some 8 us, a sixth of a search."""


@dataclass(frozen=True, slots=True)
class Ranker:
    """Searches all parts of an index version and ranks exactly. Thread-safe.

    Args:
        parts: the FAISS files.
        vectors: the stored vectors of the same rows.
        refine: candidates a result that parts propose; more make up for codes that are short.
        live: the rows that may be results at all; None for all of them, which costs nothing.

    Attributes:
        lossy: whether FAISS's codes only propose: visiting all may miss a neighbour.
        nlist: lists of a part; visiting as many is exact search. Where codes are lossy no number of
            lists is: one more than there are then stands for a scan of the stored vectors.
    """

    parts: Sequence[AnyPart]
    vectors: VectorFile
    refine: int = 1
    live: Living | None = None
    lossy: bool = field(init=False)
    nlist: int = field(init=False)
    _asks: dict[int, _Ask] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lossy", any(part.lossy for part in self.parts))
        most = max((part.nlist for part in self.parts), default=1)
        object.__setattr__(self, "nlist", most + self.lossy)

    def num_available(self, exclude: Ids | None) -> int:
        """Rows that may be results when ``exclude``, without repetition, may not."""
        rows = self.vectors if self.live is None else self.live
        if exclude is None or not len(exclude):
            return len(rows)
        return len(rows) - int(rows.contains(exclude).sum())

    def top(
        self, queries_QD: Floats, k: int, *, nprobe: int, exclude: Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The k nearest rows of every query.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: at least 1.
            nprobe: lists to visit in every part at first.
            exclude: ids that are no results, rising, without repetition.

        Returns:
            ids int64 [Q, K'] and scores float32 [Q, K'], best first, equal scores by id: inner
            products with the stored vectors, which rounding may take a hair over 1.
            K' = min(k, number of rows that are not excluded). Never an id of -1.
        """
        ask = self._ask(k, exclude if exclude is not None and len(exclude) else None)
        if not ask.k or not len(queries_QD):
            shape = len(queries_QD), ask.k
            return np.empty(shape, np.int64), np.empty(shape, np.float32)
        step = ask.block
        if len(queries_QD) <= step:
            return self._top_block(queries_QD, ask, nprobe)
        blocks = [
            self._top_block(queries_QD[start : start + step], ask, nprobe)
            for start in range(0, len(queries_QD), step)
        ]
        return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])

    def _ask(self, k: int, exclude: Ids | None) -> _Ask:
        """What to ask of the parts, so that k results are left."""
        kept = self._asks.get(k) if exclude is None else None
        if kept is not None:
            return kept
        live = None if self.live is None else self.live.selector
        k_left = min(k, self.num_available(exclude))
        width = self.num_wanted(k_left)
        if exclude is not None and len(exclude) <= MAX_DROPPED:
            width += len(exclude)
        elif exclude is not None:
            live = not_any_of(exclude, len(self.vectors), live)
        query_bytes = 12 * width * max(1, len(self.parts))  # of their scores and ids
        ask = _Ask(k_left, width, live, exclude, max(1, MAX_CANDIDATE_BYTES // query_bytes))
        if exclude is None and k <= FEW:
            self._asks[k] = ask
        return ask

    def _top_block(self, queries: Floats, ask: _Ask, nprobe: int) -> tuple[Ids, Floats]:
        scores, ids = self._candidates(queries, ask, nprobe)
        if not self.lossy and len(self.parts) == 1 and ids.shape[1] > ask.k and _falls(scores):
            return _first(ids, scores, ask.k)  # of equal scores of none, one is there at most
        while _has_none(ids) and (short := (ids != NONE).sum(axis=1) < ask.k).any():
            assert nprobe < self.nlist, "visiting all lists must fill every answer"
            nprobe = min(4 * nprobe, self.nlist)
            scores[short], ids[short] = self._candidates(queries[short], ask, nprobe)
        return self.rank(queries, ids, scores, ask.k)

    def rank(
        self, queries_QD: Floats, ids_QM: Ids, scores_QM: Floats, k: int
    ) -> tuple[Ids, Floats]:
        """The k best of some candidates by exact cosine, equal ones by id.

        Args:
            queries_QD: unit vectors float32.
            ids_QM: the candidates; -1 is none, with a score below all others.
            scores_QM: FAISS's scores of them, which are the cosines unless codes are lossy.
            k: results a query.
        """
        if self.lossy:
            ids_QM = np.sort(ids_QM, axis=1)  # in the order of the file, and equal ones by id
            scores_QM = self._cosines(queries_QD, ids_QM)
        return best_first(ids_QM, scores_QM, k)

    def propose(self, queries_QD: Floats, k: int, *, nprobe: int) -> tuple[Floats, Ids]:
        """The first half of `top`: FAISS's scores and ids [Q, M] of candidates, -1 for none."""
        return self._candidates(queries_QD, self._ask(k, None), nprobe)

    def joined(self, found: Sequence[tuple[Floats, Ids]], k: int) -> tuple[Floats, Ids]:
        """What parts of one kind proposed for k results, as one of them would have."""
        scores, ids = _beside(found)
        return _best(scores, ids, self._ask(k, None).width) if self.lossy else (scores, ids)

    def num_wanted(self, k: int) -> int:
        """Candidates that each part proposes for k results."""
        return k * self.refine + SPARE

    def _candidates(self, queries: Floats, ask: _Ask, nprobe: int) -> tuple[Floats, Ids]:
        """FAISS's scores and ids [Q, M]; what is excluded, or missing, is -1."""
        if self.lossy and nprobe >= self.nlist:
            return self._scan(queries, ask)
        scores, ids = self._together(self._search_parts(queries, ask, nprobe), ask.width)
        if ask.exclude is not None:
            dropped = _is_any_of(ids, ask.exclude)
            ids[dropped], scores[dropped] = NONE, -np.inf
        return scores, ids

    def _together(self, found: Sequence[tuple[Floats, Ids]], width: int) -> tuple[Floats, Ids]:
        """What the parts propose, side by side."""
        proposed = [one for one, part in zip(found, self.parts, strict=True) if part.lossy]
        if len(proposed) > 1:
            # Of what codes propose, as many are compared as if they all lay in one part.
            known = [one for one, part in zip(found, self.parts, strict=True) if not part.lossy]
            found = [*known, _best(*_beside(proposed), width)]
        return found[0] if len(found) == 1 else _beside(found)

    def _search_parts(self, queries: Floats, ask: _Ask, nprobe: int) -> list[tuple[Floats, Ids]]:
        """What each part proposes; those of the same centroids visit lists that are found once."""
        coarse = self.parts[0].coarse if len(self.parts) > 1 else None
        nearest = None if coarse is None else coarse.proposed(queries, nprobe)
        return [
            part.search(
                queries,
                ask.width,
                nprobe=nprobe,
                selector=ask.selector,
                nearest=nearest if part.coarse is coarse else None,
            )
            for part in self.parts
        ]

    def _scan(self, queries: Floats, ask: _Ask) -> tuple[Floats, Ids]:
        """What is nearest by the stored vectors alone, as wide as what the parts propose."""
        live = self.live

        def allowed() -> Iterator[tuple[Ids, Floats]]:
            for ids, vectors in self.vectors.iter_batches(SCAN_ROWS):
                keep = np.ones(len(ids), bool) if live is None else live.contains(ids)
                if ask.exclude is not None:
                    keep &= ~_is_any_of(ids, ask.exclude)
                yield (ids, vectors) if keep.all() else (ids[keep], vectors[keep])

        of_parts = [min(ask.width, part.num_rows) for part in self.parts]
        coded = sum(w for w, part in zip(of_parts, self.parts, strict=True) if part.lossy)
        width = sum(of_parts) - coded + min(ask.width, coded)
        found, cosines = exact_top_k(queries, min(ask.k + SPARE, width), allowed())
        ids = np.full((len(queries), width), NONE)
        scores = np.full((len(queries), width), -np.inf, np.float32)
        ids[:, : found.shape[1]], scores[:, : found.shape[1]] = found, cosines
        return scores, ids

    def _cosines(self, queries_QD: Floats, ids_QM: Ids) -> Floats:
        is_none = ids_QM == NONE
        some = np.where(is_none, self.vectors.ids[0], ids_QM) if is_none.any() else ids_QM
        scores = np.empty(some.shape, np.float32)
        across = max(1, MAX_CANDIDATE_BYTES // (4 * self.vectors.dim))
        down = max(1, across // some.shape[1])
        for top, left in product(range(0, len(some), down), range(0, some.shape[1], across)):
            here = slice(top, top + down), slice(left, left + across)
            rows = self.vectors.rows_of(some[here].reshape(-1))
            vectors = self.vectors.gather(rows).reshape(*some[here].shape, -1)
            # Each cosine is a sum of its own, the same whatever else is asked.
            np.vecdot(vectors, queries_QD[here[0], None], out=scores[here])
        scores[is_none] = -np.inf
        return scores


class _Ask(NamedTuple):
    """What is asked of every part.

    Attributes:
        k: results to be left.
        width: candidates a part.
        selector: FAISS's selector of ids; None for all.
        exclude: ids that are no results, should a part propose them.
        block: queries to be answered at once.
    """

    k: int
    width: int
    selector: Any
    exclude: Ids | None
    block: int


def _beside(found: Sequence[tuple[Floats, Ids]]) -> tuple[Floats, Ids]:
    """What several parts found, as if one had."""
    scores, ids = zip(*found, strict=True)
    return np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)


def _best(scores_QM: Floats, ids_QM: Ids, width: int) -> tuple[Floats, Ids]:
    """The best of them by score, in no order."""
    if scores_QM.shape[1] <= width:
        return scores_QM, ids_QM
    places = np.argpartition(-scores_QM, width, axis=1)[:, :width]
    return np.take_along_axis(scores_QM, places, 1), np.take_along_axis(ids_QM, places, 1)


def best_first(ids_QM: Ids, scores_QM: Floats, k: int) -> tuple[Ids, Floats]:
    """The k best of each row, equal scores by id.

    >>> ids, scores = np.array([[7, -1, 4, 9]]), np.array([[0.5, -np.inf, 0.5, 0.6]], np.float32)
    >>> best_first(ids, scores, 3)[0].tolist()
    [[9, 4, 7]]
    """
    if _falls(scores_QM):  # as FAISS leaves a part without equal scores
        return _first(ids_QM, scores_QM, k)
    order = np.lexsort((ids_QM, -scores_QM), axis=-1)[:, :k]
    return np.take_along_axis(ids_QM, order, 1), np.take_along_axis(scores_QM, order, 1)


def _first(ids_QM: Ids, scores_QM: Floats, k: int) -> tuple[Ids, Floats]:
    """The first k of each row, in one piece."""
    ids, scores = ids_QM[:, :k], scores_QM[:, :k]
    return (ids, scores) if len(ids) == 1 else (ids.copy(), scores.copy())


def _falls(scores_QM: Floats) -> bool:
    """Whether the scores of every row fall strictly."""
    if scores_QM.size <= FEW and len(scores_QM) == 1:
        row = scores_QM[0].tolist()
        return all(map(gt, row, row[1:]))
    return bool((scores_QM[:, 1:] < scores_QM[:, :-1]).all())


def _has_none(ids_QM: Ids) -> bool:
    """Whether any id stands for none."""
    if ids_QM.size <= FEW and len(ids_QM) == 1:
        return -1 in ids_QM[0].tolist()
    return bool((ids_QM == NONE).any())


def _is_any_of(ids: Ids, some: Ids) -> NDArray[np.bool_]:
    """Which of the ids are among some rising ones, of which there is one at least."""
    places = np.minimum(np.searchsorted(some, ids), len(some) - 1)
    return np.asarray(some[places] == ids, np.bool_)
