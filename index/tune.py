"""Find the least effort that reaches the target recall.

Choosing and judging take different queries. The choosing half looks at as many settings as it
likes; its lower bound only says which to try. What won is judged by `index.judge`.
"""

from __future__ import annotations

from index.candidate import MORE_REFINES, Candidate, Tuned
from index.judge import CERTAIN, hits_of
from index.measure import Proportion
from index.queries import QuerySet

__all__ = ["tune"]

FALLEN = 2
"""Rungs in a row below the best recall so far, after which no larger effort is tried."""


def tune(candidate: Candidate, choosing: QuerySet, target: float) -> Tuned:
    """The setting that reaches the target at the least latency, or exact search.

    Cost: for each number of candidates a result, searches with all queries that visit about three
    times the lists of the last one.
    """
    tried: list[dict[str, float]] = []
    found: list[Tuned] = []
    refines = candidate.refines if choosing.k and len(choosing.ids) else []
    for refine in refines:
        if refine in MORE_REFINES and found:
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
                latency=candidate.latency(choosing, nprobe, refine),
                tried=tried,
            )
        )
    if found:
        return min(found, key=lambda tuned: tuned.latency.p50 if tuned.latency else 0.0)
    latency = candidate.latency(choosing, candidate.most, 1)
    return Tuned(
        nprobe=candidate.most, refine=1, exact=True, recall=CERTAIN, latency=latency, tried=tried
    )


def _least_effort(
    candidate: Candidate,
    choosing: QuerySet,
    refine: int,
    target: float,
    tried: list[dict[str, float]],
) -> tuple[int, Proportion] | None:
    """From below, at every second rung; then the one between.

    More lists can find less where codes are short, since the same number of candidates is spread
    over more rows: so no rung says anything of those above it, but where recall has fallen twice.
    """
    ladder = candidate.ladder()

    def look(rung: int) -> Proportion:
        hits, n = hits_of(candidate, choosing, ladder[rung], refine)
        tried.append({"nprobe": ladder[rung], "refine": refine, "recall": round(hits / n, 6)})
        return CERTAIN if ladder[rung] == candidate.most else Proportion.exact(hits, n)

    rungs = sorted({*range(0, len(ladder), 2), len(ladder) - 1})
    best, fallen = 0.0, 0
    for rung in rungs:
        recall = look(rung)
        if recall.low >= target:
            between = look(rung - 1) if rung and rung - 1 not in rungs else recall
            less = between is not recall and between.low >= target
            return (ladder[rung - 1], between) if less else (ladder[rung], recall)
        fallen = fallen + 1 if recall.value < best else 0
        best = max(best, recall.value)
        if fallen == FALLEN:
            break
    return None
