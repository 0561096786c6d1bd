"""An index that was built and takes part in a contest, and the settings at which it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from index.choose import Kind, Recipe
from index.latency import Latency, latency_in_parts, latency_of
from index.measure import Proportion
from index.queries import QuerySet
from index.rank import Ranker
from index.shelf import ShelvedPart
from index.vectors import VectorFile

__all__ = ["Candidate", "Tuned", "efforts"]

FIRST_EFFORT = 16
"""Least effort of a graph that is tried."""

REFINES = (4, 16, 64)
"""Candidates a result where codes are 4-bit: more candidates, or more lists, reach the target."""

MORE_REFINES = (128, 256, 512, 1024)
"""Tried in turn where those do not reach it: short codes cannot tell apart what lies close together
in large clusters, and to compare some thousands is still far less than to compare all."""
MORE_ROWS = 100
"""Rows for each of those: with fewer, to compare all of them takes little longer."""


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

    @property
    def refines(self) -> list[int]:
        """Numbers of candidates a result to try, rising."""
        if self.recipe.kind not in ("pq", "ivf-pq"):
            return [1]
        more = [refine for refine in MORE_REFINES if refine * MORE_ROWS <= len(self.vectors)]
        return [*REFINES, *more]

    def steps(self, nprobe: int, refine: int) -> list[tuple[int, int]]:
        """Settings to look at in turn, from one on: more lists, and more candidates with them."""
        lists = [step for step in self.ladder() if nprobe <= step < self.most]
        refines = [refine, *(step for step in self.refines if step > refine)]
        count = max(len(lists), len(refines)) if lists else 0
        return [
            (lists[min(i, len(lists) - 1)], refines[min(i, len(refines) - 1)]) for i in range(count)
        ]

    def ladder(self) -> list[int]:
        """Efforts to try, rising; without a lossy recipe's exact one."""
        return efforts(self.recipe.kind, max(part.nlist for part in self.parts))

    def latency(self, queries: QuerySet, nprobe: int, refine: int) -> Latency | None:
        """Time single queries on one thread; the parts are opened one after the other."""
        if self.recipe.lossy and nprobe == self.most:  # a scan of the vectors alone
            return latency_of(self.ranker(refine), queries, nprobe)
        if len(self.parts) > 1:
            return latency_in_parts(self.parts, self.vectors, queries, nprobe, refine)
        alone = [part.open() for part in self.parts]
        return latency_of(Ranker(alone, self.vectors, refine=refine), queries, nprobe)


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


def efforts(kind: Kind, nlist: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to and with nlist; a graph's begin at 16."""
    steps = {1, nlist}
    power = 2
    while power < nlist:
        steps |= {power, min(power * 3 // 2, nlist)}
        power *= 2
    least = FIRST_EFFORT if kind == "hnsw" else 1
    return sorted(step for step in steps if step >= least)
