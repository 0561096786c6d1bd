"""The queries that vouch for an index go with it as it changes, and so do their exact answers.

Queries from the corpus stay a random sample of what is alive: those whose picture is gone go, and
of the pictures that come as large a share becomes queries as of the first ones. An exact answer is
found anew only for a query that lost a picture of it; others take in what came, if it is nearer.

Shapes: Q queries, D embedding, K true results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.candidate import Tuned, efforts
from index.choose import IndexConfig, Kind
from index.judge import CERTAIN, Judged, Judgement, judge
from index.latency import Latency, Searches, latency_of
from index.layers import best_of, refine_of
from index.measure import exact_top_k
from index.queries import FOREIGN, MIN_CORPUS_SHARE, QuerySet, make_queries
from index.vector_sets import StoredVectors, iter_rows
from index.vectors import Ids, locate, unit

__all__ = ["InService", "Moved", "follow_queries", "judge_again", "query_rate"]

TOO_FEW = 0.5
"""With less than this share of the queries that a build would draw, they are drawn anew."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Moved:
    """What changed between two versions; a picture that was replaced is in both.

    Args:
        departed: ids int64 that are no more, or had another vector, rising.
        arrived: ids int64 that came, or have another vector now, rising.
    """

    departed: Ids
    arrived: Ids


def query_rate(queries: QuerySet, num_rows: int) -> float | None:
    """The share of the corpus that is queries; None where they come from elsewhere."""
    if len(queries.ids) and bool((queries.ids == FOREIGN).all()):
        return None
    return len(queries.ids) / num_rows


def follow_queries(
    before: QuerySet, live: StoredVectors, moved: Moved, rate: float | None, config: IndexConfig
) -> tuple[QuerySet, float | None]:
    """The queries of a version that was made from another by a change, with their exact answers.

    Args:
        before: those of the other version.
        live: what is alive now.
        moved: what changed.
        rate: share of the corpus that is queries; None where they come from elsewhere.
        config: of the build.

    Returns:
        The queries, and the rate from now on: another one if they were drawn anew.

    Cost: at most one pass over the stored vectors, none if no answer lost a picture.
    """
    block_rows = config.budget(live.dim).block_rows
    kept = ~np.isin(before.ids, moved.departed)
    joined = moved.arrived[_chance(moved.arrived, config.seed) < (rate or 0.0)]
    ids = np.concatenate([before.ids[kept], joined])
    judging = np.concatenate([before.judging[kept], _chance(joined, config.seed + 1) < 0.5])
    if rate is not None:
        usual = min(config.num_queries, max(1, len(live) // MIN_CORPUS_SHARE))
        if len(ids) < TOO_FEW * usual or not judging.any():
            drawn = make_queries(live, config, None, block_rows=block_rows)
            return _in_their_roles(drawn, before), query_rate(drawn, len(live))
    vectors = np.concatenate([before.vectors[kept], unit(live.gather(live.rows_of(joined)))])
    k = min(config.k, len(live) - (rate is not None))
    is_stale = np.ones(len(ids), bool)
    if k == before.k:
        lost = np.isin(before.true_ids[kept], moved.departed)
        is_stale[: len(lost)] = lost.any(axis=1)
    true_ids = np.empty((len(ids), k), np.int64)
    true_scores = np.empty((len(ids), k), np.float32)
    if not is_stale.all():
        arrived = iter_rows(live, live.rows_of(moved.arrived), block_rows)
        fresh = np.flatnonzero(~is_stale)
        came = exact_top_k(vectors[fresh], min(k, len(moved.arrived)), arrived)
        known = before.true_ids[kept][fresh], before.true_scores[kept][fresh]
        true_ids[fresh], true_scores[fresh] = best_of([known, came], k)
    if k and is_stale.any():
        stale = np.flatnonzero(is_stale)
        true_ids[stale], true_scores[stale] = exact_top_k(
            vectors[stale], k, live.iter_batches(block_rows), exclude_Q=ids[stale]
        )
    followed = QuerySet(
        ids=ids, vectors=vectors, true_ids=true_ids, true_scores=true_scores, judging=judging
    )
    return followed, rate


def _in_their_roles(drawn: QuerySet, before: QuerySet) -> QuerySet:
    """What chose a parameter once may not judge it later; who was to judge, still is."""
    order = np.argsort(before.ids)
    places, known = locate(before.ids[order], drawn.ids)
    judging = drawn.judging.copy()
    judging[known] = before.judging[order][places[known]]
    return replace(drawn, judging=judging) if judging.any() else drawn


def _chance(ids: Ids, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) that follows from each id and the seed alone, as if drawn at random.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", their
    finaliser over a Weyl sequence of the ids.
    """
    start = np.uint64(seed * 0x632BE59BD9B4E019 % 2**64)
    x = (ids.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return np.asarray((x >> np.uint64(11)) / np.float64(1 << 53), np.float64)


@dataclass(frozen=True, slots=True)
class InService:
    """An open version, as `index.judge` looks at it.

    Args:
        searches: what ranks, with its number of candidates a result.
        kind: of the recipe.
        lossy: whether its last effort is a scan of the stored vectors.
    """

    searches: Searches
    kind: Kind
    lossy: bool

    @property
    def most(self) -> int:
        """The effort that is exact search."""
        return self.searches.nlist

    def ranker(self, _refine: int) -> Searches:
        """What searches it, at its own number of candidates."""
        return self.searches

    def steps(self, nprobe: int, refine: int) -> list[tuple[int, int]]:
        """Settings to look at from one on: more lists alone."""
        ladder = efforts(self.kind, self.most - self.lossy)
        return [(step, refine) for step in ladder if nprobe <= step < self.most]

    def latency(self, queries: QuerySet, nprobe: int, _refine: int) -> Latency | None:
        """Time single queries on one thread."""
        return latency_of(self.searches, queries, nprobe)


def judge_again(
    candidate: Judged, door: Mapping[str, Any], judging: QuerySet, target: float
) -> Judgement:
    """Judge what goes on with the parameters of a version before it, whose looks count too.

    Args:
        candidate: what is judged.
        door: of the version before.
        judging: queries that no parameter was chosen on.
        target: recall to be proven.
    """
    nprobe, refine = door["parameters"]["nprobe"], refine_of(door)
    tuned = Tuned(
        nprobe=nprobe,
        refine=refine,
        exact=nprobe == candidate.most,
        recall=CERTAIN,
        latency=candidate.latency(judging, nprobe, refine),
        tried=[],
    )
    return judge(candidate, tuned, judging, target, looked=max(0, door["recall"]["looks"] - 1))
