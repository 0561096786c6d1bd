"""What several rounds say together: the median, its spread, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Spread", "ratio", "spread", "values"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A median of rounds, and how far apart they were.

    Args:
        median: of all rounds.
        low: the smallest.
        high: the largest.
        n: number of rounds.
    """

    median: float
    low: float
    high: float
    n: int


def spread(numbers: Sequence[float]) -> Spread:
    """The median with its range.

    >>> spread([3, 1, 2])
    Spread(median=2, low=1, high=3, n=3)
    """
    return Spread(
        median=statistics.median(numbers), low=min(numbers), high=max(numbers), n=len(numbers)
    )


def values(rounds: Sequence[Mapping[str, Any]], name: str, key: str) -> list[float]:
    """One contestant's figure of every round that it was in."""
    return [float(measured[name][key]) for measured in rounds if name in measured]


def ratio(rounds: Sequence[Mapping[str, Any]], over: str, under: str, key: str) -> Spread:
    """How many times one contestant's figure is another's, in each round that has both.

    What slows the machine for a while slows both of a round, so that this moves less than two
    medians do.

    >>> ratio([{"a": {"x": 4}, "b": {"x": 2}}, {"a": {"x": 9}, "b": {"x": 3}}], "a", "b", "x").low
    2.0
    """
    both = [measured for measured in rounds if over in measured and under in measured]
    return spread([measured[over][key] / measured[under][key] for measured in both])
