"""What was tried one by one, and what it says: a mean with its interval, and what sets two apart.

Sources of vectors are measured on the same queries, pictures and draws. So they are compared trial
by trial, which tells much smaller differences from chance than two intervals side by side do.

Shapes: N trials, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.measure import Proportion

__all__ = ["Difference", "Trials"]

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference of two shares, in [-1, 1], with its 95 % interval over the paired trials.

    Args:
        value: the difference.
        low: lower end of the interval.
        high: upper end.
        n: number of trials that both took.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trials:
    """Scores of single trials, in an order that is the same for every source of vectors.

    Args:
        scores: float64 [N] in [0, 1].
        classes: codes [N] of classes that count alike, however many trials each has; None when
            trials count alike.
        unit: ``queries``, which hit or miss; or ``draws``, each a mean itself.
    """

    scores: Scores
    classes: NDArray[np.int64] | None = None
    unit: Literal["queries", "draws"] = "queries"

    @property
    def mean(self) -> float:
        """Mean over trials, or over the means of classes."""
        return _mean(self.scores, self.classes)

    @property
    def sd(self) -> float:
        """Standard deviation over trials; 0 of one."""
        return float(self.scores.std(ddof=1)) if len(self.scores) > 1 else 0.0

    def share(self) -> Proportion:
        """The mean with its 95 % interval.

        Over draws a t interval. Over queries Wilson's; where classes count alike, with as many
        trials as would vary so much if they all counted alike.

        Source: Franco et al. 2019, "Comparative study of confidence intervals for proportions in
        complex sample surveys", section 2.2 (Wilson's with the effective sample size).
        """
        value, n = self.mean, len(self.scores)
        if self.unit == "draws":
            half = _half_width(self.scores, None)
            return Proportion(
                value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n
            )
        effective = None if self.classes is None else self._effective_n()
        return Proportion.wilson(value * n, n, effective_n=effective)

    def minus(self, other: Trials) -> Difference:
        """How far this is above the other, by the t interval of the differences trial by trial.

        Raises:
            ValueError: they did not take the same trials.
        """
        paired = len(self.scores) == len(other.scores) and np.array_equal(
            self._codes(), other._codes()
        )
        if not paired:
            raise ValueError(
                f"{len(self.scores)} trials cannot be paired with {len(other.scores)} of other "
                "pictures or classes. Measure both sources on the same ones."
            )
        gains_N = self.scores - other.scores
        value = _mean(gains_N, self.classes)
        half = _half_width(gains_N, self.classes)
        return Difference(
            value=value, low=max(-1.0, value - half), high=min(1.0, value + half), n=len(gains_N)
        )

    def by_class(self) -> Scores:
        """Mean of each class, float64 [C], by its code; 0 of one without a trial."""
        assert self.classes is not None
        counts_C = np.bincount(self.classes)
        sums_C = np.bincount(self.classes, weights=self.scores)
        return np.asarray(sums_C / np.maximum(counts_C, 1), np.float64)

    def _codes(self) -> NDArray[np.int64]:
        return np.full(len(self.scores), -1) if self.classes is None else self.classes

    def _effective_n(self) -> float:
        """Yes-or-no trials, all alike, whose share would vary as the mean over classes does."""
        assert self.classes is not None
        variance, value = _variance_of_mean(self.scores, self.classes), self.mean
        if 0 < value < 1 and variance > 0:
            return value * (1 - value) / variance
        # Nothing varied: what unequal classes alone cost (Kish 1965, section 11.7).
        counts_C = np.unique(self.classes, return_counts=True)[1]
        return float(len(counts_C) ** 2 / np.sum(1 / counts_C))


def _mean(scores_N: Scores, classes_N: NDArray[np.int64] | None) -> float:
    if classes_N is None:
        return float(scores_N.mean())
    codes_N = np.unique(classes_N, return_inverse=True)[1]
    return float((np.bincount(codes_N, weights=scores_N) / np.bincount(codes_N)).mean())


def _half_width(scores_N: Scores, classes_N: NDArray[np.int64] | None) -> float:
    """Half the 95 % t interval of the mean; of a single trial, infinite."""
    from scipy.special import stdtrit

    freedom = len(scores_N) - (1 if classes_N is None else len(np.unique(classes_N)))
    # Classes of one trial each leave none to vary within: they then vary among themselves.
    freedom = freedom or len(scores_N) - 1
    if freedom < 1:
        return math.inf
    return float(stdtrit(freedom, 0.975)) * math.sqrt(_variance_of_mean(scores_N, classes_N))


def _variance_of_mean(scores_N: Scores, classes_N: NDArray[np.int64] | None) -> float:
    """Estimated variance of `_mean`, whose classes are given and whose trials are drawn.

    A class of one trial varies as the others do within theirs.
    """
    if len(scores_N) < 2:
        return 0.0
    if classes_N is None:
        return float(scores_N.var(ddof=1) / len(scores_N))
    codes_N = np.unique(classes_N, return_inverse=True)[1]
    counts_C = np.bincount(codes_N)
    means_C = np.bincount(codes_N, weights=scores_N) / counts_C
    squares_C = np.bincount(codes_N, weights=(scores_N - means_C[codes_N]) ** 2)
    freedom_C = counts_C - 1
    pooled = squares_C.sum() / freedom_C.sum() if freedom_C.any() else scores_N.var(ddof=1)
    variances_C = np.where(freedom_C > 0, squares_C / np.maximum(freedom_C, 1), pooled)
    return float((variances_C / counts_C).sum() / len(counts_C) ** 2)
