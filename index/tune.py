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


def tune(candidate: Candidate, choosing: QuerySet, target: float) -> Tuned:
    """The setting that reaches the target at the least latency, or exact search.

    Cost: for each number of candidates a result, about log2 of the number of efforts searches with
    all queries.
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
    """By bisection: more effort never finds less."""
    ladder, reached = candidate.ladder(), None
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        hits, n = hits_of(candidate, choosing, ladder[middle], refine)
        recall = CERTAIN if ladder[middle] == candidate.most else Proportion.exact(hits, n)
        tried.append({"nprobe": ladder[middle], "refine": refine, "recall": round(hits / n, 6)})
        if recall.low >= target:
            reached, high = (ladder[middle], recall), middle
        else:
            low = middle + 1
    return reached
