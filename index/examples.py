"""Queries out of several examples: more like these, less like those.

Shapes: P positive and M negative examples, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from index.vectors import Floats, scaled, unit

__all__ = ["Combine", "combine_examples", "example_queries"]

Combine = Literal["mean", "best"]

NOTHING_LEFT = 1e-3
"""A sum shorter than this share of its parts has no direction but that of rounding."""


def combine_examples(
    positives_PD: ArrayLike,
    negatives_MD: ArrayLike | None = None,
    *,
    weights_P: Sequence[float] | None = None,
    weights_M: Sequence[float] | None = None,
) -> Floats:
    """The direction of the mean of the positives less that of the negatives, each times its weight.

    A picture's cosine with it ranks by ``mean of weight * cosine with the positives - mean of
    weight * cosine with the negatives``: one linear query, which an index answers as exactly as any
    other. However many examples a side has, both count alike while all weights are 1.

    >>> combine_examples([[1.0, 0.0], [0.0, 1.0]], weights_P=[3, 1]).round(2).tolist()
    [[0.949999988079071, 0.3199999928474426]]

    Args:
        positives_PD: vectors of any norm; may be empty if there are negatives.
        negatives_MD: vectors of any norm.
        weights_P: above 0, all 1 unless given.
        weights_M: above 0, all 1 unless given.

    Returns:
        A unit vector, float32 [1, D].

    Raises:
        ValueError: no example; a vector that is zero or not finite; a weight that is not above 0;
            examples that cancel each other out.

    Source: Rocchio 1971, "Relevance feedback in information retrieval", with beta = gamma.
    """
    given = [(1.0, np.asarray(positives_PD, np.float64), weights_P)]
    if negatives_MD is not None:
        given.append((-1.0, np.asarray(negatives_MD, np.float64), weights_M))
    sides = [
        (sign, *_units_and_factors(vectors, weights))
        for sign, vectors, weights in given
        if len(vectors)
    ]
    if not sides:
        raise ValueError(
            "no example to search with. Give at least one picture, id or vector that results "
            "should be like, or unlike."
        )
    # Ratios alone say something, and only numbers of some size can be added without a loss.
    largest = max(factors.max() for _, _, factors in sides)
    means = [sign * (factors / largest) @ units / len(units) for sign, units, factors in sides]
    direction = np.sum(means, axis=0)
    length = np.linalg.norm(direction)
    if length < NOTHING_LEFT * max((factors / largest).mean() for _, _, factors in sides):
        raise ValueError(
            "the examples cancel each other out: what is asked for is what is asked against. Leave "
            "some out, or give them other weights."
        )
    return unit(direction[None] / length)


def example_queries(
    positives_PD: ArrayLike,
    negatives_MD: ArrayLike | None = None,
    *,
    weights_P: Sequence[float] | None = None,
    weights_M: Sequence[float] | None = None,
    combine: Combine = "mean",
) -> Floats:
    """The queries that several examples make: one, or one for each positive.

    ``mean`` asks for what is like all positives together: `combine_examples`. ``best`` asks for
    what is like any of them: each positive makes a query of its own, from which the mean of the
    negatives is taken as ever, and a picture's score is its highest cosine with one of them. Cats
    and cars then bring cats and cars, and not what lies between.

    >>> example_queries([[2.0, 0.0], [0.0, 1.0]], combine="best").tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Args:
        positives_PD: vectors of any norm.
        negatives_MD: vectors of any norm.
        weights_P: as for `combine_examples`; for ``best`` all 1, since each stands for itself.
        weights_M: as for `combine_examples`.
        combine: how.

    Returns:
        Unit vectors, float32 [1, D] or [P, D]; for `index.ranking.Ranking` with ``any_of``.

    Raises:
        ValueError: as from `combine_examples`; for ``best``, no positive, or a weight of one.
    """
    positives = np.asarray(positives_PD, np.float64)
    weights = [1.0] * len(positives) if weights_P is None else list(weights_P)
    if combine == "mean":
        return combine_examples(
            positives,
            negatives_MD,
            weights_P=weights if len(positives) else None,
            weights_M=weights_M,
        )
    if not len(positives):
        raise ValueError(
            "combine best: without an example to be like, there is none to be the best. Give one, "
            "or leave combine at mean."
        )
    if any(weight != 1 for weight in weights):
        raise ValueError(
            f"combine best: weights {weights} of what results should be like; only 1 is allowed, "
            "since each stands for itself. Leave them out, or combine by mean."
        )
    each = [combine_examples(one[None], negatives_MD, weights_M=weights_M) for one in positives]
    return np.concatenate(each)


def _units_and_factors(
    vectors: np.ndarray, weights: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Examples as float64 of unit norm, and the weight of each."""
    if vectors.ndim != 2:
        raise ValueError(f"examples of shape {list(vectors.shape)}; expected [examples, D].")
    vectors = scaled(vectors)
    norms = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise ValueError(
            "an example's vector is zero or not finite, so it has no direction. Check the picture "
            "and the encoder that made it."
        )
    factors = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
    if factors.shape != norms.shape or not np.isfinite(factors).all() or not (factors > 0).all():
        raise ValueError(
            f"weights {factors.tolist()} for {len(vectors)} examples; one number above 0 is needed "
            "for each. What results should be unlike is a negative example."
        )
    return vectors / norms[:, None], factors
