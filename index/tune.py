"""Find the least effort that reaches the target recall, measure what it costs, and judge it.

Choosing and judging take different queries. The choosing half looks at as many settings as it
likes; its lower bound only says which to try. The judging half then looks at the one that won. If
it is not convinced, the next larger effort is looked at, and every look has its own share of the
5 % that the interval may be wrong: so the interval covers the true recall at least as often as it
says, however often was looked, and whichever candidate won.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.choose import Kind, Recipe
from index.measure import TIE, Proportion, recall_at_k
from index.part import one_thread
from index.queries import QuerySet
from index.rank import Ranker
from index.shelf import ShelvedPart
from index.vectors import Floats, Ids, VectorFile

__all__ = [
    "LATENCY_QUERIES",
    "Candidate",
    "Judgement",
    "Latency",
    "Searches",
    "Tuned",
    "efforts",
    "judge",
    "time_each",
    "tune",
]

REFINES = (4, 16, 64)
"""Candidates a result where codes are 4-bit: more candidates, or more lists, reach the target."""

MORE_REFINES = (128, 256, 512, 1024)
"""Tried in turn where those do not reach it: short codes cannot tell apart what lies close together
in large clusters, and to compare some thousands is still far less than to compare all."""
MORE_SHARE = 8
"""So many times more rows there have to be: below, to compare all of them takes little longer."""

FIRST_EFFORT = 16
"""Least effort of a graph that is tried."""

FIRST_LOOK, OTHER_LOOKS = 0.04, 0.01
"""Of the 5 % that an interval may be wrong: the first look's share, and that of all others."""

LATENCY_QUERIES = 200
LATENCY_S = 4.0
"""Timing ends early after so many seconds, once there are a few queries."""
MIN_TIMED = 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index that is built and can be searched.

    Args:
        recipe: what it is.
        parts: its files; only one at a time is in memory.
        vectors: the stored vectors.
    """

    recipe: Recipe
    parts: Sequence[ShelvedPart]
    vectors: VectorFile

    def ranker(self, refine: int) -> Ranker:
        """What searches it."""
        return Ranker(self.parts, self.vectors, refine=refine)

    @property
    def most(self) -> int:
        """The effort that is exact search."""
        return self.ranker(1).nlist

    def ladder(self) -> list[int]:
        """Efforts to try, rising; without a lossy recipe's exact one."""
        return efforts(self.recipe.kind, max(part.nlist for part in self.parts))

    def latency(self, queries: QuerySet, nprobe: int, refine: int) -> Latency | None:
        """Time single queries on one thread: part after part, as a search goes through them."""
        return _latency(self, queries, nprobe, refine)


class Searches(Protocol):
    """What ranks; see `Ranker`."""

    @property
    def nlist(self) -> int:
        """The effort that is exact search."""

    def top(
        self, queries_QD: Floats, k: int, *, nprobe: int, exclude: Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The k nearest rows of every query."""


class Judged(Protocol):
    """What `judge` looks at: a `Candidate`, or a version in service."""

    @property
    def most(self) -> int:
        """The effort that is exact search."""

    def ranker(self, refine: int) -> Searches:
        """What searches it."""

    def ladder(self) -> list[int]:
        """Efforts to try, rising."""

    def latency(self, queries: QuerySet, nprobe: int, refine: int) -> Latency | None:
        """Time single queries on one thread."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """A candidate's cheapest setting, by the choosing half.

    Args:
        nprobe: effort: lists to visit.
        refine: candidates a result.
        exact: whether nothing less than exact search reached the target.
        recall: on the choosing half.
        latency: of that setting; None without queries.
        tried: what was tried, with recall.
    """

    nprobe: int
    refine: int
    exact: bool
    recall: Proportion
    latency: Latency | None
    tried: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the judging half says.

    Args:
        nprobe: the effort that convinced it.
        recall: with an interval of 95 %.
        looks: settings looked at.
        latency: of that effort; None without queries.
    """

    nprobe: int
    recall: Proportion
    looks: int
    latency: Latency | None


CERTAIN = Proportion(value=1.0, low=1.0, high=1.0, n=1)


def tune(candidate: Candidate, choosing: QuerySet, target: float) -> Tuned:
    """The setting that reaches the target at the least latency, or exact search.

    Cost: for each number of candidates a result, about log2 of the number of efforts searches with
    all queries.
    """
    tried: list[dict[str, float]] = []
    found: list[Tuned] = []
    coded = candidate.recipe.kind in ("pq", "ivf-pq")
    refines = (*REFINES, *MORE_REFINES) if coded else (1,)
    for refine in refines if choosing.k and len(choosing.ids) else ():
        is_more = refine in MORE_REFINES
        if is_more and (found or refine * choosing.k > len(candidate.vectors) // MORE_SHARE):
            break
        step = _least_effort(candidate, choosing, refine, target, tried)
        if step is None:
            continue
        nprobe, recall = step
        found.append(
            Tuned(
                nprobe=nprobe,
                refine=refine,
                exact=nprobe == candidate.most,
                recall=recall,
                latency=_latency(candidate, choosing, nprobe, refine),
                tried=tried,
            )
        )
    if found:
        return min(found, key=lambda tuned: tuned.latency.p50 if tuned.latency else 0.0)
    latency = _latency(candidate, choosing, candidate.most, 1)
    return Tuned(
        nprobe=candidate.most, refine=1, exact=True, recall=CERTAIN, latency=latency, tried=tried
    )


def judge(
    candidate: Judged, tuned: Tuned, judging: QuerySet, target: float, *, looked: int = 0
) -> Judgement:
    """Raise the effort until the judging half's lower bound reaches the target, or is exact.

    Args:
        candidate: what is judged.
        tuned: its setting; the first to be looked at.
        judging: the queries that judge.
        target: of the lower bound.
        looked: settings that these queries were shown before this one.
    """
    if not judging.k:
        return Judgement(nprobe=tuned.nprobe, recall=CERTAIN, looks=0, latency=tuned.latency)
    steps = [nprobe for nprobe in candidate.ladder() if tuned.nprobe <= nprobe < candidate.most]
    recall, nprobe, looks = CERTAIN, candidate.most, looked
    for nprobe in [*steps, candidate.most]:
        hits, n = _hits(candidate, judging, nprobe, tuned.refine)
        wrong = FIRST_LOOK if looks == 0 else OTHER_LOOKS / 2**looks
        recall, looks = Proportion.exact(hits, n, confidence=1 - wrong), looks + 1
        if recall.low >= target:
            break
    if nprobe == candidate.most:  # every row was compared: that is exact, not an estimate
        assert recall.value > 1 - TIE, "visiting all lists has to agree with brute force"
        recall = Proportion(value=1.0, low=1.0, high=1.0, n=recall.n)
    latency = tuned.latency
    if nprobe != tuned.nprobe:
        latency = candidate.latency(judging, nprobe, tuned.refine)
    return Judgement(nprobe=nprobe, recall=recall, looks=looks, latency=latency)


def _least_effort(
    candidate: Candidate,
    choosing: QuerySet,
    refine: int,
    target: float,
    tried: list[dict[str, float]],
) -> tuple[int, Proportion] | None:
    """By bisection: more effort never finds less."""
    ladder, reached = candidate.ladder(), None
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        hits, n = _hits(candidate, choosing, ladder[middle], refine)
        recall = CERTAIN if ladder[middle] == candidate.most else Proportion.exact(hits, n)
        tried.append({"nprobe": ladder[middle], "refine": refine, "recall": round(hits / n, 6)})
        if recall.low >= target:
            reached, high = (ladder[middle], recall), middle
        else:
            low = middle + 1
    return reached


def efforts(kind: Kind, nlist: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to and with nlist; a graph's begin at 16."""
    steps = {1, nlist}
    power = 2
    while power < nlist:
        steps |= {power, min(power * 3 // 2, nlist)}
        power *= 2
    least = FIRST_EFFORT if kind == "hnsw" else 1
    return sorted(step for step in steps if step >= least)


def _hits(candidate: Judged, queries: QuerySet, nprobe: int, refine: int) -> tuple[float, int]:
    """Sum of recall@k over the queries, and how many there are."""
    ranker = candidate.ranker(refine)
    found = _scores_without_self(ranker, queries.vectors, queries.ids, queries.k, nprobe)
    return float(recall_at_k(found, queries.true_scores).sum()), len(queries.ids)


def _scores_without_self(
    ranker: Searches, queries: Floats, query_ids: Ids, k: int, nprobe: int
) -> Floats:
    """Exact cosines of the k best results that are not the query itself, dropped by id."""
    ids, scores = ranker.top(queries, k + 1, nprobe=nprobe)
    scores = np.where(ids == query_ids[:, None], -np.inf, scores)
    return np.asarray(-np.sort(-scores, axis=1)[:, :k], np.float32)


def _latency(candidate: Candidate, queries: QuerySet, nprobe: int, refine: int) -> Latency | None:
    asked = queries.first(LATENCY_QUERIES).vectors
    k = max(1, queries.k)
    if not len(asked):
        return None
    total = np.zeros(len(asked))
    exact_scan = candidate.recipe.lossy and nprobe == candidate.most
    groups = [candidate.parts] if exact_scan else [[part] for part in candidate.parts]
    with one_thread():
        for group in groups:
            parts = group if exact_scan else [part.open() for part in group]
            ranker = Ranker(parts, candidate.vectors, refine=refine)
            most = min(k, sum(part.num_rows for part in parts))
            seconds = time_each(ranker, asked[: len(total)], most, nprobe)
            total = total[: len(seconds)] + seconds
    return Latency.of(total)


def time_each(ranker: Searches, queries: Floats, k: int, nprobe: int) -> NDArray[np.float64]:
    """Seconds of each query by itself, after all have been asked once, so that pages are mapped."""
    nprobe = min(nprobe, ranker.nlist)
    ranker.top(queries[:MIN_TIMED], k, nprobe=nprobe)
    seconds: list[float] = []
    began = time.perf_counter()
    for query in queries:
        start = time.perf_counter()
        ranker.top(query[None], k, nprobe=nprobe)
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= MIN_TIMED and time.perf_counter() - began > LATENCY_S:
            break
    return np.array(seconds)
