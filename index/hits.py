"""The answer to a search: ids and scores, and what is to be known of them.

Shapes: Q queries, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from index.planner import Plan
from index.vectors import Floats, Ids

__all__ = ["Hits"]

NO_FLAGS: frozenset[str] = frozenset()
SHORT = frozenset({"short"})


@dataclass(frozen=True, slots=True)
class Hits:
    """The answer to a search.

    Args:
        ids: int64 [Q, K'], nearest first; K' is k, or less with the flag ``short``.
        scores: float32 [Q, K'], cosines in [-1, 1].
        flags: ``short``: fewer than k pictures could be returned at all.
        num_searched: pictures that could have been returned.
        plan: how they were found.
    """

    ids: Ids
    scores: Floats
    flags: frozenset[str]
    num_searched: int
    plan: Plan

    def to_arrow(self) -> pa.Table:
        """Columns query, rank (from 1), id and score, a row a result; ids and scores uncopied."""
        num_queries, width = self.ids.shape
        return pa.table(
            {
                "query": np.repeat(np.arange(num_queries, dtype=np.int32), width),
                "rank": np.tile(np.arange(1, width + 1, dtype=np.int32), num_queries),
                "id": self.ids.reshape(-1),
                "score": self.scores.reshape(-1),
            }
        )

    @classmethod
    def of(cls, ids: Ids, scores: Floats, k: int, plans: Sequence[Plan]) -> Hits:
        """The answer that came of some searches, each with more left out than the one before."""
        plan = plans[-1]
        if len(plans) > 1:
            is_exact = all(plan.is_exact for plan in plans)
            plan = replace(plan, is_exact=is_exact, num_selected=plans[0].num_selected)
        return cls(
            ids=ids,
            scores=scores,
            flags=SHORT if ids.shape[1] < k else NO_FLAGS,
            num_searched=plan.num_selected,
            plan=plan,
        )
