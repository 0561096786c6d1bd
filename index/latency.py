"""How long single queries take, one by one on one thread.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.part import one_thread
from index.queries import QuerySet
from index.rank import Ranker
from index.shelf import ShelvedPart
from index.vectors import Floats, Ids, VectorFile

__all__ = ["Latency", "Searches", "latency_in_parts", "latency_of"]

TIMED_QUERIES = 200
TIMED_S = 4.0
"""Timing ends early after so many seconds, once there are a few queries."""
MIN_TIMED = 20
Proposal = tuple[Floats, Ids]
"""FAISS's scores and ids [1, M] of candidates."""
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Searches(Protocol):
    """What ranks; see `Ranker`."""

    @property
    def nlist(self) -> int:
        """The effort that is exact search."""

    def top(
        self, queries_QD: Floats, k: int, *, nprobe: int, exclude: Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The k nearest rows of every query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Single queries, one by one, on one thread.

    Args:
        p50: milliseconds that half of them take at most.
        p95: the same for 95 %.
        p99: the same for 99 %.
        queries_per_s: in a row.
        n: how many were timed.
    """

    p50: float
    p95: float
    p99: float
    queries_per_s: float
    n: int

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latency:
        """From the seconds of single queries."""
        p50, p95, p99 = (round(1e3 * float(x), 3) for x in np.percentile(seconds, [50, 95, 99]))
        mean = float(np.mean(seconds))
        return cls(
            p50=p50, p95=p95, p99=p99, queries_per_s=round(1 / max(mean, 1e-9), 1), n=len(seconds)
        )


def latency_of(searches: Searches, queries: QuerySet, nprobe: int) -> Latency | None:
    """Time what is open; None without queries."""
    asked = queries.some(TIMED_QUERIES).vectors
    if not len(asked):
        return None
    nprobe, k = min(nprobe, searches.nlist), max(1, queries.k)
    with one_thread():
        searches.top(asked[:MIN_TIMED], k, nprobe=nprobe)  # so that pages are mapped
        one_by_one = [query[None] for query in asked]
        seconds, _ = _time_each(lambda query: searches.top(query, k, nprobe=nprobe), one_by_one)
    return Latency.of(seconds)


def latency_in_parts(
    parts: Sequence[ShelvedPart], vectors: VectorFile, queries: QuerySet, nprobe: int, refine: int
) -> Latency | None:
    """Time the search of several parts of which one at a time is in memory; None without queries.

    What each part takes to propose candidates, and what it takes to rank those of all parts. It is
    a little more than a search takes, which finds lists once where parts have them in common.

    Args:
        parts: the files.
        vectors: the stored vectors of the same rows.
        queries: who asks.
        nprobe: lists to visit in every part.
        refine: candidates a result.
    """
    asked = [query[None] for query in queries.some(TIMED_QUERIES).vectors]
    if not asked:
        return None
    search = _PartByPart(Ranker(parts, vectors, refine=refine), nprobe, max(1, queries.k))
    total, proposed = np.zeros(len(asked)), None
    with one_thread():
        for part in parts:
            seconds, proposed = search.propose(part, asked[: len(total)], proposed)
            total = total[: len(seconds)] + seconds
        seconds = search.rank(asked[: len(total)], proposed or [])
    return Latency.of(total[: len(seconds)] + seconds)


@dataclass(frozen=True, slots=True)
class _PartByPart:
    """A search whose steps are timed: it keeps no part in memory.

    Args:
        whole: ranks what all parts propose.
        nprobe: lists to visit in every part.
        k: results.
    """

    whole: Ranker
    nprobe: int
    k: int

    def propose(
        self, part: ShelvedPart, asked: Sequence[Floats], before: Sequence[Proposal] | None
    ) -> tuple[NDArray[np.float64], list[Proposal]]:
        """Seconds that a part takes, and what it and those before it have proposed."""
        alone = Ranker([part.open()], self.whole.vectors, refine=self.whole.refine)
        nprobe = min(self.nprobe, alone.nlist)

        def ask(place: int) -> Proposal:
            found = alone.propose(asked[place], self.k, nprobe=nprobe)
            return found if before is None else self.whole.joined([before[place], found], self.k)

        alone.propose(np.concatenate(asked[:MIN_TIMED]), self.k, nprobe=nprobe)
        return _time_each(ask, range(len(asked)))

    def rank(self, asked: Sequence[Floats], proposed: Sequence[Proposal]) -> NDArray[np.float64]:
        """Seconds to rank what all have proposed."""

        def ask(place: int) -> tuple[Ids, Floats]:
            scores, ids = proposed[place]
            return self.whole.rank(asked[place], ids, scores, self.k)

        return _time_each(ask, range(len(asked)))[0]


def _time_each(
    ask: Callable[[Asked], Answer], asked: Sequence[Asked]
) -> tuple[NDArray[np.float64], list[Answer]]:
    """Seconds of each by itself, and what came of it."""
    seconds: list[float] = []
    answers = []
    began = time.perf_counter()
    for one in asked:
        start = time.perf_counter()
        answers.append(ask(one))
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= MIN_TIMED and time.perf_counter() - began > TIMED_S:
            break
    return np.array(seconds), answers
