"""The one way from queries to ranked ids, used by search and by the tuning that vouches for it.

Where FAISS's codes are the stored vectors, its scores are their cosines. Short codes only propose,
and cosines with the stored vectors decide. Where the lists visited, or what a graph looked at,
cannot fill a query's answer, more are visited until they do.

Shapes: Q queries, D embedding, K results, M candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.best import FEW, NONE, beside, best_first, falls, first_of, has_none, most_promising
from index.measure import exact_top_k
from index.part import Part
from index.selection import Living, not_any_of
from index.shelf import AnyPart
from index.vectors import Floats, Ids, VectorFile

__all__ = ["MAX_CANDIDATE_BYTES", "MAX_DROPPED", "SPARE", "Ranker"]

SPARE = 8
"""Candidates beyond k: which of equal ones FAISS keeps is chance, and with short codes which of
nearly equal ones."""

MAX_DROPPED = 64
"""Excluded pictures that are searched for and dropped, which leaves FAISS's loops as they are."""

MAX_CANDIDATE_BYTES = 1 << 23
"""Candidates proposed at once, and vectors of candidates compared at once; bounds memory."""

PAIR_BYTES = 36
"""Of a query and a list that it visits, while it does: the list's number and nearness, and what
FAISS keeps. Measured with short codes; 500 queries that visit 18,000 lists would take 300 MB."""

SCAN_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Ranker:
    """Searches all parts of an index version and ranks exactly. Thread-safe.

    Args:
        parts: the FAISS files.
        vectors: the stored vectors of the same rows.
        refine: candidates a result that parts propose; more make up for codes that are short.
        least: results for which short codes propose, where fewer are wanted: those that recall was
            measured with. Fewer candidates would find less of the nearest than the card says.
        live: the rows that may be results at all; None for all of them, which costs nothing.
        by_vectors: whether scores are products with the stored vectors even where FAISS's codes are
            these: the two differ in the last bit, and layers searched as one have to agree. Where
            codes are lossy they always are.

    Attributes:
        lossy: whether FAISS's codes only propose: visiting all may miss a neighbour.
        nlist: the most effort of a part, which is exact search. Where codes are lossy no effort is:
            one more than the most then stands for a scan of the stored vectors.
        is_graph: whether effort is what a graph keeps in sight.
    """

    parts: Sequence[AnyPart]
    vectors: VectorFile
    refine: int = 1
    least: int = 1
    live: Living | None = None
    by_vectors: bool = False
    lossy: bool = field(init=False)
    nlist: int = field(init=False)
    is_graph: bool = field(init=False)
    _ready: dict[tuple[int, int], tuple[Callable[[Floats], tuple[Floats, Ids]], _Ask]] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )
    _alone: Part | None = field(init=False, repr=False, compare=False)
    _asks: dict[tuple[int, int], _Ask] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "lossy", any(part.lossy for part in self.parts))
        object.__setattr__(self, "by_vectors", self.by_vectors or self.lossy)
        alone = self.parts[0] if len(self.parts) == 1 and not self.by_vectors else None
        object.__setattr__(self, "_alone", alone if isinstance(alone, Part) else None)
        object.__setattr__(self, "is_graph", any(part.is_graph for part in self.parts))
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
            nprobe: lists to visit in every part at first; what a graph is to keep in sight, which
                is at least the results.
            exclude: ids that are no results, rising, without repetition.

        Returns:
            ids int64 [Q, K'] and scores float32 [Q, K'], best first, equal scores by id: inner
            products with the stored vectors, which rounding may take a hair over 1.
            K' = min(k, number of rows that are not excluded). Never an id of -1.
        """
        exclude = exclude if exclude is not None and len(exclude) else None
        if self._alone is not None and exclude is None and len(queries_QD) == 1 and k <= FEW:
            return self._top_alone(queries_QD, k, nprobe)
        ask = self._ask(k, self._spare(k, nprobe), exclude)
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

    def _top_alone(self, query_1D: Floats, k: int, nprobe: int) -> tuple[Ids, Floats]:
        """A single query of a single part, in few steps: each takes as long as some comparisons."""
        assert self._alone is not None, "there is more than one part"
        ready = self._ready.get((k, nprobe))
        if ready is None:
            ask = self._ask(k, self._spare(k, nprobe), None)
            search = self._alone.prepared(ask.width, nprobe=nprobe, selector=ask.selector)
            self._ready[k, nprobe] = ready = search, ask
        search, ask = ready
        scores, ids = search(query_1D)
        row = scores[0, : ask.k + 1].tolist()
        if ask.k < len({*row}) == len(row):  # they fall, and so none of them is equal to another
            return ids[:, : ask.k], scores[:, : ask.k]
        return self._ranked(query_1D, (scores, ids), ask, nprobe)

    def _spare(self, k: int, nprobe: int) -> int:
        """Candidates beyond k; a graph has in sight what it gives, and would look farther."""
        return max(0, min(SPARE, nprobe - k)) if self.is_graph else SPARE

    def _ask(self, k: int, spare: int, exclude: Ids | None) -> _Ask:
        """What to ask of the parts, so that k results are left."""
        kept = self._asks.get((k, spare)) if exclude is None else None
        if kept is not None:
            return kept
        live = None if self.live is None else self.live.selector
        k_left = min(k, self.num_available(exclude))
        width = max(1, self._num_proposed(k_left) + spare)  # FAISS is asked for one at least
        if exclude is not None and len(exclude) <= MAX_DROPPED:
            width += len(exclude)
        elif exclude is not None:
            live = not_any_of(exclude, len(self.vectors), live)
        query_bytes = 12 * width * max(1, len(self.parts))  # of their scores and ids
        ask = _Ask(k_left, width, live, exclude, max(1, MAX_CANDIDATE_BYTES // query_bytes))
        if exclude is None and k <= FEW:
            self._asks[k, spare] = ask
        return ask

    def _top_block(self, queries: Floats, ask: _Ask, nprobe: int) -> tuple[Ids, Floats]:
        return self._ranked(queries, self._candidates(queries, ask, nprobe), ask, nprobe)

    def _ranked(
        self, queries: Floats, found: tuple[Floats, Ids], ask: _Ask, nprobe: int
    ) -> tuple[Ids, Floats]:
        """The best of what was found, and of what more effort finds where that is too little."""
        scores, ids = found
        if not self.by_vectors and len(self.parts) == 1 and ids.shape[1] > ask.k and falls(scores):
            return first_of(ids, scores, ask.k)  # of equal scores of none, one is there at most
        while has_none(ids) and (short := (ids != NONE).sum(axis=1) < ask.k).any():
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
        if self.by_vectors:
            ids_QM = np.sort(ids_QM, axis=1)  # in the order of the file, and equal ones by id
            scores_QM = self._cosines(queries_QD, ids_QM)
        return best_first(ids_QM, scores_QM, k)

    def propose(self, queries_QD: Floats, k: int, *, nprobe: int) -> tuple[Floats, Ids]:
        """The first half of `top`: FAISS's scores and ids [Q, M] of candidates, -1 for none."""
        return self._candidates(queries_QD, self._ask(k, self._spare(k, nprobe), None), nprobe)

    def joined(self, found: Sequence[tuple[Floats, Ids]], k: int) -> tuple[Floats, Ids]:
        """What parts of one kind proposed for k results, as one of them would have."""
        scores, ids = beside(found)
        if not self.lossy:
            return scores, ids
        return most_promising(scores, ids, self._ask(k, SPARE, None).width)

    def num_wanted(self, k: int) -> int:
        """Candidates that each part proposes for k results."""
        return self._num_proposed(k) + SPARE

    def _num_proposed(self, k: int) -> int:
        """The same without those to spare."""
        return self.refine * (max(k, self.least) if self.lossy else k)

    def _candidates(self, queries: Floats, ask: _Ask, nprobe: int) -> tuple[Floats, Ids]:
        """FAISS's scores and ids [Q, M]; what is excluded, or missing, is -1."""
        if self.lossy and nprobe >= self.nlist:
            return self._scan(queries, ask)
        most = max(1, MAX_CANDIDATE_BYTES // (PAIR_BYTES * nprobe))
        if len(queries) > most:
            starts = range(0, len(queries), most)
            blocks = [self._candidates(queries[s : s + most], ask, nprobe) for s in starts]
            return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])
        scores, ids = self._together(self._search_parts(queries, ask, nprobe), ask.width)
        if ask.exclude is not None:
            dropped = _is_any_of(ids, ask.exclude)
            ids[dropped], scores[dropped] = NONE, -np.inf
        return scores, ids

    def _together(self, found: Sequence[tuple[Floats, Ids]], width: int) -> tuple[Floats, Ids]:
        """What the parts propose, side by side."""
        if len(found) == 1:
            return found[0]
        proposed = [one for one, part in zip(found, self.parts, strict=True) if part.lossy]
        if len(proposed) > 1:
            # Of what codes propose, as many are compared as if they all lay in one part.
            known = [one for one, part in zip(found, self.parts, strict=True) if not part.lossy]
            found = [*known, most_promising(*beside(proposed), width)]
        return beside(found)

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


def _is_any_of(ids: Ids, some: Ids) -> NDArray[np.bool_]:
    """Which of the ids are among some rising ones, of which there is one at least."""
    places = np.minimum(np.searchsorted(some, ids), len(some) - 1)
    return np.asarray(some[places] == ids, np.bool_)
