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

NO_VARIANCE = 1e-18
"""What rounding alone leaves of it."""


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

        Over draws a t interval, unless all are alike. Else Wilson's; where classes count alike,
        with as many trials as would vary so much if they all counted alike.

        Source: Franco et al. 2019, "Comparative study of confidence intervals for proportions in
        complex sample surveys", section 2.2 (Wilson's with the effective sample size).
        """
        value, n = self.mean, len(self.scores)
        moments = _Moments.of(self.scores, None)
        if self.unit == "draws" and (moments.variance_of_mean > NO_VARIANCE or n == 1):
            half = moments.half_width(moments.variance_of_mean)
            return Proportion(
                value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n
            )
        effective = None if self.classes is None else self._effective_n()
        return Proportion.wilson(value * n, n, effective_n=effective)

    def minus(self, other: Trials) -> Difference:
        """How far this is above the other, by the t interval of the differences trial by trial.

        Between queries most differences may be 0, and few queries have none at all. So each side is
        given one trial more that it won, by as much as trials differ; where all are alike, by 1.
        The same is done for draws if all differ alike, which a t interval would take for certain.

        Of a source and itself it says as much as of two that are alike by chance: it sees scores,
        not where they come from. Who knows that both are one need not ask.

        Source: Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data". Deviations: quantiles of t, not the normal
        distribution's, as it then needs six trials won of six to tell two sources apart, like the
        sign test; variances are unbiased; scores between 0 and 1; and where classes count alike,
        each has its share of the two trials.

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
        moments = _Moments.of(gains_N, self.classes)
        value = centre = float(moments.means.mean())
        variance = moments.variance_of_mean
        if self.unit == "queries" or variance <= NO_VARIANCE:
            differing = gains_N[gains_N != 0]
            square = float((differing**2).mean()) if len(differing) else 1.0
            centre, variance = moments.with_two_more(square)
        half = moments.half_width(variance)
        low, high = max(-1.0, centre - half), min(1.0, centre + half)
        return Difference(value=value, low=min(low, value), high=max(high, value), n=len(gains_N))

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
        variance, value = _Moments.of(self.scores, self.classes).variance_of_mean, self.mean
        if 0 < value < 1 and variance > 0:
            return value * (1 - value) / variance
        # Nothing varied: what unequal classes alone cost (Kish 1965, section 11.7).
        counts_C = np.unique(self.classes, return_counts=True)[1]
        return float(len(counts_C) ** 2 / np.sum(1 / counts_C))


def _mean(scores_N: Scores, classes_N: NDArray[np.int64] | None) -> float:
    return float(_Moments.of(scores_N, classes_N).means.mean())


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    """What trials say of their classes: of one, where all count alike.

    Args:
        counts: trials of each, [C].
        means: their means, [C].
        variances: estimated of a single trial, [C]. A class of one trial varies as the others do
            within theirs; where all are of one, as they do among themselves.
    """

    counts: NDArray[np.int64]
    means: Scores
    variances: Scores

    @classmethod
    def of(cls, scores_N: Scores, classes_N: NDArray[np.int64] | None) -> _Moments:
        codes_N = np.zeros(len(scores_N), np.int64)
        if classes_N is not None:
            codes_N = np.unique(classes_N, return_inverse=True)[1]
        counts = np.bincount(codes_N)
        means = np.bincount(codes_N, weights=scores_N) / counts
        squares = np.bincount(codes_N, weights=(scores_N - means[codes_N]) ** 2)
        freedom = counts - 1
        if len(scores_N) < 2:
            return cls(counts, means, np.zeros(1))
        pooled = squares.sum() / freedom.sum() if freedom.any() else scores_N.var(ddof=1)
        variances = np.where(freedom > 0, squares / np.maximum(freedom, 1), pooled)
        return cls(counts, means, np.asarray(variances, np.float64))

    @property
    def variance_of_mean(self) -> float:
        """Of the mean over classes, which are given, and whose trials are drawn."""
        return float((self.variances / self.counts).sum() / len(self.counts) ** 2)

    def half_width(self, variance: float) -> float:
        """Half the 95 % t interval of a mean of such a variance; of a single trial, infinite."""
        from scipy.special import stdtrit

        num_trials = int(self.counts.sum())
        # Classes of one trial each leave none to vary within.
        freedom = num_trials - len(self.counts) or num_trials - 1
        return float(stdtrit(freedom, 0.975)) * math.sqrt(variance) if freedom else math.inf

    def with_two_more(self, square: float) -> tuple[float, float]:
        """Mean over classes, and its variance, with one trial more that was won, and one lost.

        Args:
            square: of the score by which they were. Each class has its share of both.
        """
        share = 2 / len(self.counts)
        together = self.counts + share
        # Their squares about the mean, and what the others' grow by as that mean moves.
        more = share * (square + self.counts * self.means**2 / together)
        variances = (self.counts * self.variances + more) / together**2
        centre = float((self.counts * self.means / together).mean())
        return centre, float(variances.sum() / len(self.counts) ** 2)
