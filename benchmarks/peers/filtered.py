"""Filtered search of one contestant: recall and time, by kind and share of what is selected.

A folder holds ``vectors.npy`` and ``queries.npy``, unit vectors, and for each kind a file of ranks:
the pictures of rank below M are a selection of M. Prints one JSON line.

Shapes: N vectors, Q queries, D dimensions, k results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["KINDS", "SHARES", "Filtering", "Given", "least_effort", "run"]

KINDS = ("uncorrelated", "clusters", "one_side")
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
BUDGET_S, LEAST_QUERIES = 4.0, 10
"""A case ends after so long, though not before so many queries."""
TARGET = 0.95
TIE = 1e-5
"""Scores closer than this are equal: everyone adds in an order of their own."""

# From one query, of shape 1 x D, to the ids of its k best.
Search = Callable[[np.ndarray], Sequence[int]]
# The search among the pictures of a kind whose rank is below a number; among all for None.
Filtering = Callable[[str, int | None], Search]


@dataclass(frozen=True)
class Given:
    """What everyone searches.

    Args:
        vectors: float32 ``[N, D]``.
        queries: float32 ``[Q, D]``.
        ranks: int64 ``[N]`` of each kind.
        k: results to find.
        prepared: the folder that all of this is from.
    """

    vectors: np.ndarray
    queries: np.ndarray
    ranks: Mapping[str, np.ndarray]
    k: int
    prepared: Path


# Of contestant, an empty folder and what is given.
Open = Callable[[str, Path, Given], Filtering]


def run(contestants: Sequence[str], opened: Open) -> None:
    """Read the command line, search for every kind and share, and print what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=list(contestants))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--k", type=int, required=True)
    asked = parser.parse_args()
    arrays = {
        name: np.load(asked.folder / f"{name}.npy") for name in ("vectors", "queries", *KINDS)
    }
    ranks = {kind: arrays.pop(kind) for kind in KINDS}
    given = Given(k=asked.k, ranks=ranks, prepared=asked.folder, **arrays)
    with tempfile.TemporaryDirectory() as name:
        filtering = opened(asked.contestant, Path(name), given)
        print(json.dumps(measure(filtering, given)))


def measure(filtering: Filtering, given: Given) -> dict[str, float]:
    """Recall and median milliseconds of single queries, filtered and not."""
    found: dict[str, float] = {}
    for kind, ranks in given.ranks.items():
        for share in SHARES:
            count = max(1, round(share * len(ranks)))
            recall, taken_ms = judged_and_timed(filtering(kind, count), given, ranks < count)
            found |= {f"{kind} {share:g} recall": recall, f"{kind} {share:g} ms": taken_ms}
    everything = np.ones(len(given.vectors), bool)
    recall, taken_ms = judged_and_timed(filtering(KINDS[0], None), given, everything)
    return found | {"unfiltered recall": recall, "unfiltered ms": taken_ms}


def judged_and_timed(search: Search, given: Given, chosen: np.ndarray) -> tuple[float, float]:
    """Recall against brute force, and the median time of a query.

    Raises:
        AssertionError: an answer that was not selected.
    """
    search(given.queries[:1])
    answers, seconds = [], []
    for query in given.queries:
        started_s = time.perf_counter()
        answers.append(search(query[None]))
        seconds.append(time.perf_counter() - started_s)
        if sum(seconds) > BUDGET_S and len(seconds) >= LEAST_QUERIES:
            break
    # Afterwards, since brute force leaves nothing of an index in the processor's caches.
    among, recalls = given.vectors[chosen], []
    for query, ids in zip(given.queries, answers, strict=False):
        rows = np.array([int(row) for row in ids if int(row) >= 0], np.int64)
        assert chosen[rows].all(), "an answer outside of the selection"
        truth = np.sort(among @ query)[::-1][: given.k]
        reached = given.vectors[np.unique(rows)] @ query >= truth[-1] - TIE
        recalls.append(reached.sum() / len(truth))
    return float(np.mean(recalls)), 1e3 * float(np.median(seconds))


def least_effort(efforts: Sequence[int], at: Callable[[int], Search], given: Given) -> int:
    """The smallest effort that reaches the target recall without a filter, or else the largest."""
    everything = np.ones(len(given.vectors), bool)
    for effort in efforts:
        if judged_and_timed(at(effort), given, everything)[0] >= TARGET:
            return effort
    return efforts[-1]
