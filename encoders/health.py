"""Is it learning? Figures on embeddings that need no labels, and when a run is looked at.

What the figures mean for a run is the doctor's to say (`encoders.doctor`).

Shapes: N pictures, D dimensions. All rows are unit vectors of the two views of the same pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "CollapseError",
    "HealthConfig",
    "NonFiniteError",
    "class_discrimination",
    "dead_dimensions",
    "discrimination",
    "effective_rank",
    "embedding_std",
    "health_metrics",
    "information",
    "possible_rank",
]

# Singular values of more rows cost more and say no more.
MAX_ROWS = 1024


class CollapseError(ValueError):
    """Training was stopped: what it makes of pictures has become, or stayed, worthless."""


class NonFiniteError(ValueError):
    """Training was stopped: the loss or the gradients are not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthConfig:
    """When training looks at itself, on which pictures, and when it stops."""

    every: int = 20
    """Steps between checks."""
    held_out: int = 96
    """The most pictures kept out of training to look at; 0 looks at the training batch alone."""
    held_out_share: float = 0.05
    """The most of the corpus to keep out; where that is below 32 pictures none is kept out."""
    min_std: float = 0.05
    """A check fails below this embedding std (1: evenly over the sphere; 0: all the same)."""
    min_rank: float = 1.5
    """A check fails below this effective rank (1: all embeddings on one line)."""
    min_rank_share: float = 0.06
    """A check fails below this share of the greatest possible rank; 0 for pictures all alike."""
    patience: int = 5
    """Failed checks in a row that stop the run, or warn."""
    grace_steps: int = 100
    """Steps at the start in which embeddings may look collapsed, while they still spread out."""

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
        if self.held_out < 0 or not 0 <= self.held_out_share < 1:
            raise ValueError(
                f"health held_out {self.held_out} must be 0 or more and held_out_share "
                f"{self.held_out_share} in [0, 1). 96 and 0.05 are the defaults."
            )


def embedding_std(vectors_ND: Tensor) -> Tensor:
    """Mean standard deviation of a dimension, times sqrt(D): 1 on an even sphere, 0 collapsed.

    Source: Chen and He 2021 (SimSiam), section 4.1.
    """
    return vectors_ND.std(dim=0, correction=0).mean() * math.sqrt(vectors_ND.shape[1])


def dead_dimensions(vectors_ND: Tensor) -> Tensor:
    """How many dimensions vary less than a hundredth as much as the one that varies most."""
    std_D = vectors_ND.std(dim=0, correction=0)
    return (std_D < std_D.max() / 100).sum().float()


def effective_rank(vectors_ND: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values' shares: 1 .. min(N, D).

    Source: Garrido et al. 2023 (RankMe), eq. 1. Deviation: rows have unit norm.
    Cost: O(N D min(N, D)).
    """
    values = torch.linalg.svdvals(vectors_ND.float())
    shares = values / values.sum().clamp(min=1e-12)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def discrimination(cosines_NN: Tensor) -> Tensor:
    """How often the other view of a picture is nearer than a view of another picture.

    0.5 is chance and 1 is perfect, for any N; a tie counts half. It is the area under the ROC curve
    of each query, averaged. By chance it strays from 0.5 by 0.29 / sqrt(N), one standard deviation.

    Args:
        cosines_NN: of first views (rows) with second views (columns), row for row the same picture.
    """
    num_rows = len(cosines_NN)
    own_N1 = cosines_NN.diagonal()[:, None]
    wins = (cosines_NN < own_N1).float() + 0.5 * (cosines_NN == own_N1).float()
    # The picture's own view ties with itself.
    return (wins.sum() - 0.5 * num_rows) / (num_rows * (num_rows - 1))


@torch.no_grad()
def class_discrimination(view_a_ND: Tensor, view_b_ND: Tensor, labels_N: Tensor) -> Tensor:
    """How often another picture of the same class is nearer than one of another class.

    The mean over pictures that have both, as in `discrimination`: 0.5 is chance. Ties, which
    embeddings of floats hardly have, are broken by position.

    Args:
        view_a_ND: unit float32 rows, of which the first 1024 are used.
        view_b_ND: rows of the second views; a picture's own is left out.
        labels_N: int64 classes.
    """
    view_a_ND, view_b_ND = view_a_ND[:MAX_ROWS], view_b_ND[:MAX_ROWS]
    labels_N = labels_N[:MAX_ROWS]
    cosines_NN = (view_a_ND @ view_b_ND.T).fill_diagonal_(-math.inf)
    # Place from below, the picture itself at 0: the others are 1 .. N - 1 (Mann and Whitney 1947).
    places_NN = cosines_NN.argsort(1).argsort(1)
    same_NN = (labels_N[:, None] == labels_N).fill_diagonal_(False)
    num_same_N = same_NN.sum(1)
    num_other_N = len(labels_N) - 1 - num_same_N
    wins_N = (places_NN * same_NN).sum(1) - num_same_N * (num_same_N + 1) // 2
    pairs_N = num_same_N * num_other_N
    has_both_N = pairs_N > 0
    return (wins_N[has_both_N] / pairs_N[has_both_N]).mean()


def information(view_a_ND: Tensor, view_b_ND: Tensor, temperature: float) -> Tensor:
    """The lower bound log N - InfoNCE, in nats, on what two views share: at most log N.

    Source: van den Oord et al. 2018, section 2.3; Poole et al. 2019, eq. 10.
    """
    logits_NN = view_a_ND @ view_b_ND.T / temperature
    return math.log(len(logits_NN)) + logits_NN.log_softmax(1).diagonal().mean()


def possible_rank(num_rows: int, dim: int) -> int:
    """The greatest `effective_rank` that `health_metrics` can find on so many rows."""
    return min(num_rows, dim, MAX_ROWS)


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
        picture minus that of different pictures, higher is better; `discrimination`, 0..1;
        `dead_dimensions`, 0..D.

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
        "discrimination": discrimination(cosines_NN),
        "dead_dimensions": dead_dimensions(view_a_ND),
    }
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
