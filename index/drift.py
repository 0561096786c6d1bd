"""How far a version has moved from what it was trained on, and what that calls for.

Two remedies: to *compact*, which folds the delta into the parts and drops dead rows, with lists and
codes as they are; and to *retrain*, which builds anew. Until then answers are right: the delta is
compared in full, and as many lists are visited as the target recall takes.

Shapes: N rows, D embedding, L lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.part import Part
from index.vectors import Floats

__all__ = ["Drift", "code_errors", "delta_bound", "imbalance", "worse_by"]

MAX_DEAD = 0.15
"""Share of the base's rows that may be dead: they cost time, and memory, and are no results."""
DELTA_ROWS, DELTA_SHARE = 50_000, 0.02
"""The delta may have so many rows, or this share of the base's if that is more."""
MAX_GROWTH = 2.0
"""Living rows, as a multiple of those that it was trained for: lists become too long."""
MAX_CODE_ERROR = 1.1
"""How much worse lists and codes may fit what came than what they were trained on."""
MAX_IMBALANCE = 2.0
"""How much more uneven the lists may become than they were when trained."""
MAX_EFFORT = 2.0
"""Effort that the target recall may take, as a multiple of that when trained."""
MIN_ROWS = 100
"""From fewer rows nothing is told about how codes fit."""
Z95 = 1.96

Remedy = Literal["compact", "retrain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """What was measured of a version.

    Args:
        dead_share: dead rows, as a share of the base's.
        delta_rows: rows in the delta.
        delta_bound: most that it should have.
        growth: living rows, as a multiple of those that it was trained for.
        code_error: lower end of how much worse lists and codes fit the delta, as a factor; None
            if there are none, or too few rows to tell.
        imbalance: how much more uneven the lists would be, the delta folded in; likewise.
        effort: lists to visit for the target recall, as a multiple of those when trained.
    """

    dead_share: float
    delta_rows: int
    delta_bound: int
    growth: float
    code_error: float | None
    imbalance: float | None
    effort: float

    def reasons(self) -> list[tuple[Remedy, str]]:
        """What calls for which remedy, each in a sentence's part."""
        found: list[tuple[Remedy, str]] = []
        if self.dead_share > MAX_DEAD:
            found.append(("compact", f"{self.dead_share:.0%} of its rows are dead"))
        if self.delta_rows > self.delta_bound:
            found.append(
                ("compact", f"its delta has {self.delta_rows:,} rows, over {self.delta_bound:,}")
            )
        if self.growth > MAX_GROWTH:
            found.append(
                ("retrain", f"it has {self.growth:.1f} times the rows that it was trained for")
            )
        if self.code_error is not None and self.code_error > MAX_CODE_ERROR:
            found.append(("retrain", f"it fits what came at least {self.code_error - 1:.0%} worse"))
        if self.imbalance is not None and self.imbalance > MAX_IMBALANCE:
            found.append(("retrain", f"its lists are {self.imbalance:.1f} times as uneven"))
        if self.effort > MAX_EFFORT:
            found.append(("retrain", f"the target recall takes {self.effort:.1f} times the effort"))
        return found

    @property
    def remedy(self) -> Remedy | None:
        """What is called for, if anything; a retrained version is compact as well."""
        asked = {remedy for remedy, _ in self.reasons()}
        return "retrain" if "retrain" in asked else "compact" if asked else None

    @property
    def why(self) -> str:
        """The reasons for it, joined."""
        return "; ".join(why for remedy, why in self.reasons() if remedy == self.remedy)

    def as_json(self) -> dict[str, Any]:
        """For the door."""
        return {**asdict(self), "remedy": self.remedy, "why": self.why}

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Drift:
        """From a door."""
        return cls(**{name: stated[name] for name in cls.__dataclass_fields__})


def delta_bound(base_rows: int) -> int:
    """Most rows of a delta beside so many; more slow every search down."""
    return max(DELTA_ROWS, int(DELTA_SHARE * base_rows))


def code_errors(part: Part, sample_ND: Floats) -> list[list[float]]:
    """How well what was trained fits some vectors: mean and standard error of the squared distance.

    Of the nearest list's centroid, if there are several, and of the code, if it is short.
    """
    found = []
    for errors in part.misfits(sample_ND):
        deviation = float(errors.std()) / math.sqrt(max(1, len(errors)))
        found.append([float(errors.mean()), deviation])
    return found


def worse_by(trained: Sequence[Sequence[float]], part: Part, came_ND: Floats) -> float | None:
    """At least how much worse the same fits vectors that came, as a factor; None if unknown.

    Args:
        trained: from `code_errors`, of a sample of what it was trained on.
        part: what was trained.
        came_ND: a sample of what came.
    """
    if len(came_ND) < MIN_ROWS or not trained:
        return None
    ratios = []
    for (mean, error), (mean_now, error_now) in zip(
        trained, code_errors(part, came_ND), strict=True
    ):
        # Copies of one picture may fit perfectly; then nothing is to be compared.
        if mean + Z95 * error > 0:
            ratios.append(max(0.0, mean_now - Z95 * error_now) / (mean + Z95 * error))
    return round(max(ratios), 4) if ratios else None


def imbalance(sizes_L: NDArray[np.floating]) -> float:
    """How uneven lists are: 1 if all are of one length; the length that a random row's list has.

    >>> imbalance(np.array([2.0, 2.0])), imbalance(np.array([4.0, 0.0]))
    (1.0, 2.0)
    """
    total = float(sizes_L.sum())
    return float(len(sizes_L) * (sizes_L**2).sum() / total**2) if total else 1.0
