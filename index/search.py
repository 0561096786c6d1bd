"""Search a published index: exact cosines, explicit flags, one pinned version.

Errors (both are ``ValueError``):

* EncoderMismatchError   vectors of another encoder or layer than the index was built from
* ValueError             a query that cannot be answered: wrong shape, not finite, k below 1

Shapes: Q queries, D embedding, K results, N corpus rows, M ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike

from index.artifact import Proven, Verify, proven_files
from index.best import as_cosines
from index.exact_scores import ExactScores
from index.folder import Folder
from index.hits import Hits
from index.id_file import NO_IDS
from index.layers import open_layers
from index.live import LiveVectors
from index.planner import Plan
from index.ranking import Ranking
from index.reach import Matches, within_reach
from index.same_encoder import require_same_encoder
from index.selection import Selection
from index.vector_sets import iter_rows
from index.vectors import Floats, Ids, as_ids, rising, scaled
from index.versions import open_current, while_current

__all__ = ["Searcher"]

TINY, HUGE = 1e-140, 1e140
"""Norms between which squares of float64 are neither too small nor too large."""
WIDER = 8
"""Times the tuned effort, where a graph is to look wider."""


def _require_count(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}; ask for at least 1 result")


class Searcher:
    """An open index version. All methods are safe to call from many threads.

    Attributes:
        folder: the version's own folder, where what is made from it lies beside it.
        version: the version's name; a later build does not change an open searcher.
        id: identity of the index.
        encoder_id: the encoder that made the vectors.
        layer: the layer of it.
        door: the whole card, with recall and its interval.
        mean: mean vector float32 [D] of the corpus.
        ids: all picture ids int64 [N], rising; without those that were removed.
        proven: its files, if all were verified when it was opened.
    """

    def __init__(
        self, folder: Folder, version: str, door: dict[str, Any], *, threads: int | None = None
    ) -> None:
        opened = open_layers(folder, door)
        self.folder = folder
        self.version = version
        self.door = door
        self.id = str(door["id"])
        self.parents: dict[str, str] = dict(door["parents"])
        self.encoder_id: str = self.parents["encoder_id"]
        self.layer: str = door["layer"]
        self.dim: int = door["dim"]
        self.mean: Floats = np.array(door["mean"], np.float32)
        self.ids = opened.vectors.ids
        self._vectors = opened.vectors
        self._ranker, self._planner = opened.ranker, opened.planner
        self._nprobe: int = door["parameters"]["nprobe"]
        self._k: int = door["recall"]["k"]
        self._usual: list[float] = door["recall"].get("usual", [])  # of before, there was none
        self._threads = threads
        self.proven: frozenset[Proven] = frozenset()

    @classmethod
    def open(
        cls,
        folder: Folder | str | Path,
        *,
        verify: Verify = "full",
        threads: int | None = None,
        like: Searcher | None = None,
    ) -> Searcher:
        """Open the version in service and pin it.

        Args:
            folder: the index's folder, on a local or shared disk.
            verify: see ``artifact.open_door``.
            threads: FAISS threads a search may use; None leaves the process's setting.
            like: an open version whose files, where this one shares them, are not read again.

        Raises:
            MissingArtifactError: no index is published here.
            CorruptArtifactError: a file is not what was published.
        """
        folder = folder if isinstance(folder, Folder) else Folder.at(folder)
        known = frozenset() if like is None else like.proven

        def open_it() -> Searcher:
            version, door = open_current(folder, verify=verify, proven=known)
            searcher = cls(folder / version, version, door, threads=threads)
            if verify == "full":
                searcher.proven = proven_files(searcher.folder, door)
            return searcher

        return while_current(folder, open_it)

    def __len__(self) -> int:
        return len(self.ids)

    def search(  # noqa: PLR0913 - four have defaults, and notebooks call it
        self,
        queries_QD: ArrayLike,
        k: int,
        *,
        exclude_ids: Sequence[int] | Ids | None = None,
        exact: bool = False,
        within: Selection | None = None,
        ranking: Ranking | None = None,
        thorough: bool | None = None,
    ) -> Hits:
        """The k nearest pictures of every query.

        The tuned search visits as many lists as pictures need for the card's k. Where more results
        are asked for, or a query is no picture, lists are visited until that brings nothing new.

        Args:
            queries_QD: numbers [Q, D] of any norm; they are normalised here.
            k: at least 1. More than there are pictures gives a short, flagged answer.
            exclude_ids: pictures that are no results, such as the query itself.
            exact: compare with every picture instead of the tuned share.
            within: pictures that alone may be results, from `select`.
            ranking: near-duplicates shown once, different pictures preferred, or one answer to
                all queries; None for the nearest as they are.
            thorough: go on until nothing new comes, as for the mean of several pictures; None where
                k exceeds the card's by over 1, or results lie farther than for any of its queries.

        Raises:
            ValueError: wrong shape or dimension, a query that is zero or not finite, k below 1, a
                selection of another version.
        """
        _require_count(k)
        queries = self._checked(queries_QD)
        exclude = NO_IDS if exclude_ids is None else rising(as_ids(exclude_ids))
        if self._threads is not None:
            faiss.omp_set_num_threads(self._threads)  # OpenMP keeps it per calling thread

        if within is not None:
            within.require_of(self.ids)
            # What leaves everything is no filter, and the tuned search the cheapest.
            within = None if len(within) == len(self) else within

        plans: list[Plan] = []

        def nearest(count: int, copies: Ids, asked: int | None) -> tuple[Ids, Floats, Plan]:
            some = queries if asked is None else queries[asked : asked + 1]
            left_out = rising(exclude, copies) if len(copies) else exclude
            # Lists near a query may hold nothing but its copies.
            further = True if len(copies) and thorough is None else thorough
            ids, scores, plan = self._nearest(some, count, left_out, exact, further, within)
            plans[:] = [*plans, plan] if len(copies) else [plan]
            return *as_cosines(ids, scores), plan

        if ranking is None:
            ids, scores, _ = nearest(int(k), NO_IDS, None)
        else:
            ids, scores, _ = ranking.answer(int(k), nearest, self.vectors_of)
        return Hits.of(ids, scores, int(k), plans)

    def _nearest(
        self,
        queries: Floats,
        k: int,
        exclude: Ids,
        exact: bool,
        thorough: bool | None,
        within: Selection | None,
    ) -> tuple[Ids, Floats, Plan]:
        """Within a selection; without one the tuned search, a thorough one, or all of the index."""
        if within is not None:
            return self._planner.top(queries, k, within, exclude, exact=exact)
        nprobe = self._ranker.nlist if exact else self._nprobe
        is_exact = nprobe >= self._ranker.nlist
        if not is_exact and (thorough or (thorough is None and k > self._k + 1)):
            return self._thorough(queries, k, exclude)
        ids, scores = self._ranker.top(queries, k, nprobe=nprobe, exclude=exclude)
        if not is_exact and thorough is None and ids.size and self._usual:
            usual = self._usual[min(scores.shape[1], len(self._usual)) - 1]
            # In Python's numbers: numpy's would take a tenth of a single search.
            far = [number for number, last in enumerate(scores[:, -1].tolist()) if last < usual]
            if len(far) == len(scores):
                return self._thorough(queries, k, exclude)
            if far:
                ids[far], scores[far], _ = self._thorough(queries[far], k, exclude)
        num_searched = self._ranker.num_available(exclude)
        compared = float(len(self)) if is_exact else None
        return ids, scores, Plan("exact" if is_exact else "tuned", is_exact, num_searched, compared)

    def _thorough(self, queries: Floats, k: int, exclude: Ids) -> tuple[Ids, Floats, Plan]:
        """Without a selection, until nothing new comes; a graph, without lists, looks wider."""
        if self.door["recipe"]["kind"] != "hnsw":
            return self._planner.top(queries, k, self._everything, exclude)
        nprobe, num_searched = WIDER * self._nprobe, self._ranker.num_available(exclude)
        if nprobe >= self._ranker.nlist:
            ids, scores = self._ranker.top(queries, k, nprobe=self._ranker.nlist, exclude=exclude)
            return ids, scores, Plan("exact", True, num_searched, float(len(self)))
        # Asked for twice as many, it keeps twice as many in sight.
        ids, scores = self._ranker.top(queries, 2 * k, nprobe=nprobe, exclude=exclude)
        ids, scores = np.ascontiguousarray(ids[:, :k]), np.ascontiguousarray(scores[:, :k])
        return ids, scores, Plan("tuned", False, num_searched, None)

    def range_search(
        self,
        queries_QD: ArrayLike,
        min_score: float,
        *,
        exclude_ids: Sequence[int] | Ids | None = None,
        within: Selection | None = None,
        limit: int = 10_000,
        any_of: bool = False,
    ) -> Matches:
        """Every picture whose cosine with a query is at least ``min_score``: always exact.

        Args:
            queries_QD: numbers [Q, D] of any norm.
            min_score: -1 to 1; that of a result of `search` finds this result.
            exclude_ids: pictures that are no results.
            within: pictures that alone may be results, from `select`.
            limit: results a query; the answer still counts all and says that it is limited.
            any_of: one answer to all queries, by the highest cosine with any of them.

        Raises:
            ValueError: as from `search`; a score that is no cosine; a limit below 1.

        Cost: one pass over all stored vectors, or over those selected.
        """
        if not -1 <= min_score <= 1:  # NaN as well
            raise ValueError(
                f"min_score is {min_score}; a score is a cosine, from -1 to 1. Correct it."
            )
        if limit < 1:
            raise ValueError(f"limit is {limit}; ask for at least 1 result")
        queries = self._checked(queries_QD)
        chosen = self._everything if within is None else within
        chosen.require_of(self.ids)
        if exclude_ids is not None:
            chosen = chosen.without(rising(as_ids(exclude_ids)))
        batches = iter_rows(self._vectors, chosen.rows)
        exact = self._exact_scores.of
        return within_reach(queries, min_score, limit, batches, exact, any_of=any_of)

    @cached_property
    def _exact_scores(self) -> ExactScores:
        return ExactScores(self._vectors, by_vectors=self._ranker.by_vectors)

    @cached_property
    def _everything(self) -> Selection:
        """All pictures, as a selection of them: 8 bytes each, once it was needed."""
        return Selection(self.ids, np.arange(len(self)))

    @property
    def delta_ids(self) -> Ids:
        """Ids int64 of the pictures that came, or got another vector, since the base, rising."""
        return self._vectors.delta_ids if isinstance(self._vectors, LiveVectors) else NO_IDS

    def select(self, ids: Sequence[int] | Ids) -> Selection:
        """The pictures among ``ids`` that this version has, for ``search(..., within=...)``.

        Make it once for many searches. Ids that are not in the index are left out: a corpus grows
        after its index was built.
        """
        return Selection.of_ids(self.ids, as_ids(ids))

    def vectors_of(self, ids_M: Sequence[int] | Ids) -> Floats:
        """Unit vectors float32 [M, D] of pictures.

        Raises:
            KeyError: a picture has no vector here.
        """
        ids = as_ids(ids_M)
        if len(ids) < len(ids_M):
            raise KeyError(f"picture {max(ids_M, key=abs)} has no vector in this index")
        return self._vectors.gather(self._vectors.rows_of(ids))

    def iter_batches(self, batch_rows: int = 16_384) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and unit vectors float32 [n, D] of the whole corpus, by id."""
        return self._vectors.iter_batches(batch_rows)

    def require_encoder(self, encoder_id: str, layer: str) -> None:
        """Check that queries of this encoder and layer may be asked.

        Raises:
            EncoderMismatchError: they may not.
        """
        require_same_encoder(
            f"index {self.id[:12]}",
            (self.encoder_id, self.layer),
            (encoder_id, layer),
            "Query with the encoder of the index, or build an index with this one: "
            "lookalike embed, then lookalike index.",
        )

    def _checked(self, queries_QD: ArrayLike) -> Floats:
        queries = np.asarray(queries_QD, np.float64)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"queries of shape {list(queries.shape)}; index {self.id[:12]} needs "
                f"[Q, {self.dim}]. Embed the query with the encoder of the index."
            )
        with np.errstate(over="ignore"):
            norms = np.sqrt(np.vecdot(queries, queries))
        if not all(TINY < norm < HUGE for norm in norms.tolist()):
            queries = scaled(queries)
            norms = np.sqrt(np.vecdot(queries, queries))
        if not all(0 < norm < math.inf for norm in norms.tolist()):  # NaN is neither
            raise ValueError(
                "a query vector is zero or not finite, so no cosine is defined. "
                "Check the picture and the encoder that made it."
            )
        return np.ascontiguousarray(queries / norms[:, None], np.float32)
