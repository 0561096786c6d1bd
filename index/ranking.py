"""What becomes of the nearest: near-duplicates shown once, and different pictures preferred.

Shapes: Q queries, D embedding, K results, P pictures of a pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.vectors import Floats, Ids, rising

__all__ = ["Grouping", "Ranking", "best_of_any", "diverse", "first_of_each"]

POOL = 5
"""A diverse answer is chosen from at least so many times its length; fewer would only reorder."""
MIN_POOL = 50

MOST = 4
"""Times the results wanted that are ranked to pass over copies; where more are in the way, they are
left out of the search, which has to be told of each of them."""

NO_COPIES = np.empty(0, np.int64)

T = TypeVar("T")

Nearest: TypeAlias = Callable[[int, Ids, int | None], tuple[Ids, Floats, T]]
"""What `Ranking.answer` asks for the nearest."""


class Grouping(Protocol):
    """What says which pictures are as good as equal, such as ``index.duplicates``."""

    def group_of(self, ids: Ids) -> Ids:
        """The group of each picture; one that is alone is its own. Of any shape."""

    def copies_of(self, ids: Ids) -> Ids:
        """All other pictures in the groups of some, in any order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How an answer is chosen from the nearest pictures.

    Args:
        diversity: 0 for the nearest; up to 1, more and more for what is unlike the results before.
        groups: near-duplicate groups, of which only the nearest picture is shown; None for all.
        any_of: one answer to all queries: a picture's score is the highest with any of them.
    """

    diversity: float = 0.0
    groups: Grouping | None = None
    any_of: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise ValueError(
                f"diversity is {self.diversity}; allowed is 0 (the nearest) to 1 (the most "
                "different). Give a number in between, such as 0.3."
            )

    def answer(
        self, k: int, nearest: Nearest[T], vectors_of: Callable[[Ids], Floats]
    ) -> tuple[Ids, Floats, T]:
        """Choose k pictures a query.

        Args:
            k: at least 1.
            nearest: gives ids and scores [Q, K'] of the nearest, and something more, when told how
                many, which ids are no results, and which query alone is asked, None for all; K' is
                the number asked for, or all there are.
            vectors_of: gives the stored vectors of ids.

        Returns:
            ids and scores [Q, K'] or, with ``any_of``, [1, K'], and what ``nearest`` gave last.
            K' < k when there are no more.
        """
        wanted = max(POOL * k, MIN_POOL) if self.diversity else k
        ids, scores, more = self._distinct(wanted, nearest)
        if self.diversity and ids.shape[1] > 1:
            places = np.stack(
                [
                    diverse(score, vectors_of(row), k, self.diversity)
                    for row, score in zip(ids, scores, strict=True)
                ]
            )
            ids, scores = np.take_along_axis(ids, places, 1), np.take_along_axis(scores, places, 1)
        return ids, scores, more

    def _distinct(self, wanted: int, nearest: Nearest[T]) -> tuple[Ids, Floats, T]:
        """The nearest of each group: as many as wanted, or all there are."""
        for count in (wanted, MOST * wanted):
            ids, scores, more = self._nearest(nearest, count, NO_COPIES, None)
            kept = self._kept(ids)
            short = kept.sum(axis=1) < wanted
            if ids.shape[1] < count or not short.any():
                break
        answers = [
            (row[keep], score[keep]) for row, score, keep in zip(ids, scores, kept, strict=True)
        ]
        if self.groups is not None and ids.shape[1] == count:
            for number in np.flatnonzero(short).tolist():
                asked = None if self.any_of else number
                met = answers[number][0]
                row, score, more = self._past_copies(
                    self.groups, wanted, count, nearest, asked, met
                )
                answers[number] = row, score
        # All available pictures fall into as many groups whatever the query: rows are equally long.
        width = min([wanted, *(len(row) for row, _ in answers)]) if answers else 0
        shape = len(answers), width
        found = [np.array([side[:width] for side in both]) for both in zip(*answers, strict=True)]
        if not found:
            return np.empty(shape, np.int64), np.empty(shape, np.float32), more
        return found[0], found[1], more

    def _past_copies(
        self,
        groups: Grouping,
        wanted: int,
        count: int,
        nearest: Nearest[T],
        asked: int | None,
        met: Ids,
    ) -> tuple[Ids, Floats, T]:
        """The same of one answer, by searches without the copies of what they have met.

        The first that is met of a group is its nearest, so the others are in no answer. Each search
        meets a group that the last one did not.
        """
        copies = NO_COPIES
        while True:
            known = len(copies)
            copies = rising(copies, groups.copies_of(met))
            assert len(copies) > known, "who repeats has copies"
            ids, scores, more = self._nearest(nearest, count, copies, asked)
            kept = self._kept(ids)[0]
            met = ids[0, kept]
            if len(met) >= wanted or ids.shape[1] < count:
                return met, scores[0, kept], more

    def _nearest(
        self, nearest: Nearest[T], count: int, copies: Ids, asked: int | None
    ) -> tuple[Ids, Floats, T]:
        ids, scores, more = nearest(count, copies, asked)
        if self.any_of:
            ids, scores = best_of_any(ids, scores, count)
        return ids, scores, more

    def _kept(self, ids_QP: Ids) -> NDArray[np.bool_]:
        """Which are the first of their group."""
        if self.groups is None:
            return np.ones(ids_QP.shape, bool)
        return first_of_each(self.groups.group_of(ids_QP))


def first_of_each(groups_QP: Ids) -> NDArray[np.bool_]:
    """Where each row first has a value, bool [Q, P].

    >>> first_of_each(np.array([[4, 7, 4, 1]])).tolist()
    [[True, True, False, True]]
    """
    first = np.zeros(groups_QP.shape, bool)
    for row, groups in enumerate(groups_QP):
        first[row, np.unique(groups, return_index=True)[1]] = True
    return first


def diverse(scores_P: Floats, vectors_PD: Floats, k: int, diversity: float) -> NDArray[np.intp]:
    """Places of k pictures of a pool, in the order chosen.

    The next one is always that with the highest
    ``(1 - diversity) * score - diversity * (highest cosine with those chosen)``; the first is the
    best by score.

    Source: Carbonell and Goldstein 1998, "The use of MMR"; their lambda is ``1 - diversity``.

    Cost: k products of the pool with one vector.
    """
    chosen = [int(np.argmax(scores_P))]
    nearest_chosen = vectors_PD @ vectors_PD[chosen[0]]
    free = np.ones(len(scores_P), bool)
    free[chosen] = False
    while len(chosen) < min(k, len(scores_P)):
        merit = (1 - diversity) * scores_P - diversity * nearest_chosen
        best = int(np.argmax(np.where(free, merit, -np.inf)))
        chosen.append(best)
        free[best] = False
        nearest_chosen = np.maximum(nearest_chosen, vectors_PD @ vectors_PD[best])
    return np.array(chosen, np.intp)


def best_of_any(ids_QK: Ids, scores_QK: Floats, k: int) -> tuple[Ids, Floats]:
    """One answer of the k best out of the answers to several queries, each picture once.

    A picture's score is the highest that it has in any. Where each answer holds the k nearest, so
    does this one: who is beaten by k pictures in every answer is beaten by k in all.

    >>> ids, scores = best_of_any(np.array([[5, 7], [7, 9]]), np.array([[0.9, 0.4], [0.8, 0.3]]), 2)
    >>> ids.tolist(), scores.tolist()
    ([[5, 7]], [[0.9, 0.8]])

    Returns:
        ids and scores [1, K'], best first, equal scores by id; K' < k if there are no more.
    """
    ids, scores = ids_QK.reshape(-1), scores_QK.reshape(-1)
    order = np.lexsort((ids, -scores))
    _, first = np.unique(ids[order], return_index=True)
    kept = order[np.sort(first)[:k]]
    return ids[None, kept], scores[None, kept]
