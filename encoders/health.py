"""Is it learning? Figures that need no labels, and the stop when embeddings collapse.

Shapes: N pictures, D dimensions. All rows are unit vectors of the two views of the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "CollapseError",
    "HealthConfig",
    "HealthWatch",
    "NonFiniteError",
    "effective_rank",
    "embedding_std",
    "health_metrics",
    "possible_rank",
]

# Singular values of more rows cost more and say no more.
MAX_ROWS = 1024


class CollapseError(ValueError):
    """Training was stopped: all pictures get nearly the same embedding, or use few directions."""


class NonFiniteError(ValueError):
    """Training was stopped: the loss or the gradients are not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthConfig:
    """When training looks at itself, and when it stops."""

    every: int = 20
    """Steps between checks."""
    min_std: float = 0.05
    """A check fails below this embedding std (1: evenly over the sphere; 0: all the same)."""
    min_rank: float = 1.5
    """A check fails below this effective rank (1: all embeddings on one line)."""
    min_rank_share: float = 0.06
    """A check fails below this share of the greatest possible rank; 0 for pictures all alike."""
    patience: int = 5
    """Failed checks in a row that stop the run."""
    grace_steps: int = 100
    """Steps at the start in which no check can fail, while embeddings still spread out."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 1 or self.grace_steps < 0:
            raise ValueError(
                f"health every {self.every}, patience {self.patience} and grace_steps "
                f"{self.grace_steps}: the first two must be 1 or more, the last 0 or more."
            )
        if not (0 <= self.min_std < 1 and self.min_rank >= 0 and 0 <= self.min_rank_share < 1):
            raise ValueError(
                f"health min_std {self.min_std} and min_rank_share {self.min_rank_share} must lie "
                f"in [0, 1) and min_rank {self.min_rank} must be 0 or more; 0 switches a rule off."
            )


def embedding_std(vectors_ND: Tensor) -> Tensor:
    """Mean standard deviation of a dimension, times sqrt(D): 1 on an even sphere, 0 collapsed.

    Source: Chen and He 2021 (SimSiam), section 4.1.
    """
    return vectors_ND.std(dim=0, correction=0).mean() * math.sqrt(vectors_ND.shape[1])


def effective_rank(vectors_ND: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values' shares: 1 .. min(N, D).

    Source: Garrido et al. 2023 (RankMe), eq. 1. Deviation: rows have unit norm.
    Cost: O(N D min(N, D)).
    """
    values = torch.linalg.svdvals(vectors_ND.float())
    shares = values / values.sum().clamp(min=1e-12)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def possible_rank(vectors_ND: Tensor) -> int:
    """The greatest `effective_rank` that `health_metrics` can find on these rows."""
    return min(len(vectors_ND), vectors_ND.shape[1], MAX_ROWS)


@torch.no_grad()
def health_metrics(view_a_ND: Tensor, view_b_ND: Tensor) -> dict[str, float]:
    """Figures on the embeddings of one batch; one wait for the device.

    Args:
        view_a_ND: unit float32 rows of the first views; at least 2, of which the first 1024 are
        used.
        view_b_ND: unit float32 rows of the second views.

    Returns:
        ``embedding_std`` 0..about 1; ``effective_rank`` 1..min(N, D); ``alignment`` mean squared
        distance of the two views, 0..4, lower is better; ``uniformity`` log mean Gaussian potential
        of different pictures, -4..0, lower is better; ``margin`` mean cosine of two views of a
        picture minus that of different pictures, higher is better.

    Source: Wang and Isola 2020, eq. 4 and 5 with alpha = 2, t = 2 (alignment, uniformity).
    """
    view_a_ND, view_b_ND = view_a_ND[:MAX_ROWS], view_b_ND[:MAX_ROWS]
    num_rows = len(view_a_ND)
    assert num_rows >= 2
    cosines_NN = view_a_ND @ view_b_ND.T
    same = cosines_NN.diagonal().mean()
    different = (cosines_NN.sum() - cosines_NN.diagonal().sum()) / (num_rows * (num_rows - 1))
    uniformity = torch.pdist(view_a_ND).square().mul(-2).exp().mean().log()
    figures = {
        "embedding_std": embedding_std(view_a_ND),
        "effective_rank": effective_rank(view_a_ND),
        "alignment": (view_a_ND - view_b_ND).square().sum(1).mean(),
        "uniformity": uniformity,
        "margin": same - different,
    }
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


class HealthWatch:
    """Counts failed checks in a row, and stops a run that does not recover.

    Args:
        config: the rule.
        advice: sentence of the method: usual causes of its collapse and what to change.
    """

    def __init__(self, config: HealthConfig, advice: str) -> None:
        self._config = config
        self._advice = advice
        self._failed_checks = 0
        self._failing_since = 0

    def check(self, step: int, metrics: Mapping[str, float], possible: int | None) -> None:
        """Judge one check.

        Args:
            step: the optimiser step it was made after.
            metrics: ``embedding_std`` and ``effective_rank`` of `health_metrics`.
            possible: what `possible_rank` says of the same rows; None leaves the rank out, for
                a method that gathers each class in one direction.

        Raises:
            CollapseError: it is the last of ``patience`` failed checks in a row.
        """
        std, rank = metrics["embedding_std"], metrics["effective_rank"]
        least = max(self._config.min_rank, self._config.min_rank_share * (possible or 0))
        same, few = std < self._config.min_std, possible is not None and rank < least
        if step < self._config.grace_steps or not (same or few):
            self._failed_checks = 0
            return
        if self._failed_checks == 0:
            self._failing_since = step
        self._failed_checks += 1
        if self._failed_checks >= self._config.patience:
            what = (
                f"nearly all pictures get the same embedding. At step {step} its std is {std:.4f} "
                f"(at least {self._config.min_std} is healthy, 1 is ideal)"
                if same
                else f"the embeddings of all pictures lie along few directions. At step {step} "
                f"their effective rank is {rank:.1f} of {possible} possible (at least "
                f"{least:.1f} is healthy; if the pictures differ no more, set "
                "health.min_rank_share to 0)"
            )
            raise CollapseError(
                f"training collapsed: since step {self._failing_since} {what}. {self._advice}"
            )

    def state_dict(self) -> dict[str, int]:
        """What the next check depends on."""
        return {"failed_checks": self._failed_checks, "failing_since": self._failing_since}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state_dict`."""
        self._failed_checks = state["failed_checks"]
        self._failing_since = state["failing_since"]
