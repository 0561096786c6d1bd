"""Judge a setting on queries that had no part in choosing it.

The judging half looks at the setting that won. If it is not convinced, the next larger one is
looked at, and every look has its own share of the 5 % that the interval may be wrong: so the
interval covers the true recall at least as often as it says, however often was looked, and
whichever candidate won.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from index.candidate import Tuned
from index.latency import Latency, Searches
from index.measure import TIE, Proportion, recall_at_k
from index.queries import QuerySet
from index.unseen import top_unseen
from index.vectors import Floats, Ids

__all__ = ["CERTAIN", "Judged", "Judgement", "hits_of", "judge"]

FIRST_LOOK, OTHER_LOOKS = 0.04, 0.01
"""Of the 5 % that an interval may be wrong: the first look's share, and that of all others."""

CERTAIN = Proportion(value=1.0, low=1.0, high=1.0, n=1)


class Judged(Protocol):
    """What `judge` looks at: a `Candidate`, or a version in service."""

    @property
    def most(self) -> int:
        """The effort that is exact search."""

    def ranker(self, refine: int) -> Searches:
        """What searches it."""

    def steps(self, nprobe: int, refine: int) -> list[tuple[int, int]]:
        """Settings to look at in turn, from one on; without the exact one."""

    def latency(self, queries: QuerySet, nprobe: int, refine: int) -> Latency | None:
        """Time single queries on one thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the judging half says.

    Args:
        nprobe: the effort that convinced it.
        refine: with so many candidates a result.
        recall: with an interval of 95 %.
        looks: settings looked at.
        latency: of that effort; None without queries.
        usual: lowest cosines of the first, second, ... true result of any query: whose results lie
            farther is unlike the queries of this judgement, which says nothing of it.
    """

    nprobe: int
    refine: int
    recall: Proportion
    looks: int
    latency: Latency | None
    usual: list[float]


def judge(
    candidate: Judged, tuned: Tuned, judging: QuerySet, target: float, *, looked: int = 0
) -> Judgement:
    """Raise the setting until the judging half's lower bound reaches the target, or it is exact.

    Args:
        candidate: what is judged.
        tuned: its setting; the first to be looked at.
        judging: the queries that judge.
        target: of the lower bound.
        looked: settings that these queries were shown before this one.
    """
    if not judging.k:
        return Judgement(
            nprobe=tuned.nprobe,
            refine=tuned.refine,
            recall=CERTAIN,
            looks=0,
            latency=tuned.latency,
            usual=[],
        )
    exact = candidate.most, 1
    (nprobe, refine), recall, looks = exact, CERTAIN, looked
    for nprobe, refine in [*candidate.steps(tuned.nprobe, tuned.refine), exact]:
        hits, n = hits_of(candidate, judging, nprobe, refine)
        wrong = FIRST_LOOK if looks == 0 else OTHER_LOOKS / 2**looks
        recall, looks = Proportion.exact(hits, n, confidence=1 - wrong), looks + 1
        if recall.low >= target:
            break
    if nprobe == candidate.most:  # every row was compared: that is exact, not an estimate
        assert recall.value > 1 - TIE, "visiting all lists has to agree with brute force"
        recall = Proportion(value=1.0, low=1.0, high=1.0, n=recall.n)
    latency = tuned.latency
    if (nprobe, refine) != (tuned.nprobe, tuned.refine):
        latency = candidate.latency(judging, nprobe, refine)
    usual = judging.true_scores.min(axis=0).astype(float).round(6).tolist()
    return Judgement(
        nprobe=nprobe, refine=refine, recall=recall, looks=looks, latency=latency, usual=usual
    )


def hits_of(candidate: Judged, queries: QuerySet, nprobe: int, refine: int) -> tuple[float, int]:
    """Sum of recall@k over the queries, and how many there are."""
    ranker = candidate.ranker(refine)
    found = _scores_without_self(ranker, queries.vectors, queries.ids, queries.k, nprobe)
    return float(recall_at_k(found, queries.true_scores).sum()), len(queries.ids)


def _scores_without_self(
    ranker: Searches, queries: Floats, query_ids: Ids, k: int, nprobe: int
) -> Floats:
    """Exact cosines of the k best results that are not the query itself, dropped by id."""
    ids, scores = top_unseen(ranker, queries, query_ids, k + 1, nprobe=nprobe)
    scores = np.where(ids == query_ids[:, None], -np.inf, scores)
    return np.asarray(-np.sort(-scores, axis=1)[:, :k], np.float32)
