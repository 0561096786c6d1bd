"""Linear heads on fixed vectors: class prototypes and logistic regression.

With few labels a class is its mean vector (prototypes); from three labels in every class on it is
L2-regularised logistic regression. Both are linear, so both are one small matrix.

Shapes: N rows, D embedding, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from index.vectors import Floats

__all__ = ["LOGISTIC_C", "Head", "centred", "fit_head", "fit_logistic", "fit_prototypes"]

LOGISTIC_FROM = 3
"""Labels that every class needs before logistic regression beats prototypes."""

LOGISTIC_C = 10.0
"""Inverse L2 strength on centred unit features; fixed, since few labels cannot tune it."""

PROTOTYPE_SCALE = 10.0
"""Sharpness of the prototypes' probabilities; it changes no decision."""


def centred(vectors_ND: Floats, mean_D: Floats) -> Floats:
    """Features of the heads: the corpus mean subtracted, then rows of unit norm.

    A row equal to the mean stays zero.

    Source: Wang et al. 2019, "SimpleShot", section 3 (CL2N).
    """
    shifted = np.asarray(vectors_ND, np.float32) - np.asarray(mean_D, np.float32)
    norms = np.linalg.norm(shifted, axis=1, keepdims=True)
    return np.asarray(shifted / np.maximum(norms, 1e-12), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear map from features to class logits.

    Args:
        kind: which of the two.
        classes: C names, sorted.
        weights: float32 [C, D].
        bias: float32 [C].
    """

    kind: Literal["prototypes", "logistic"]
    classes: tuple[str, ...]
    weights: Floats
    bias: Floats

    def logits(self, features_ND: Floats) -> Floats:
        """Class logits float32 [N, C] of ``centred`` features."""
        return np.asarray(features_ND @ self.weights.T + self.bias, np.float32)


def fit_head(features_ND: Floats, labels: Sequence[str]) -> Head:
    """Prototypes, or logistic regression once every class has three labels.

    Raises:
        ValueError: fewer than two classes.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"labels of {len(counts)} class(es) {sorted(counts)}; a classifier needs two. "
            "Label pictures of another class: in the Label tab of lookalike ui, or with lookalike "
            "classify --import-csv."
        )
    fit = fit_logistic if min(counts.values()) >= LOGISTIC_FROM else fit_prototypes
    return fit(features_ND, labels)


def fit_prototypes(features_ND: Floats, labels: Sequence[str]) -> Head:
    """Nearest class mean: -|f - m|^2 is linear in f up to a term that all classes share.

    Source: Snell et al. 2017, section 2.4; centring as in SimpleShot.
    """
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    means = np.stack([features_ND[codes == code].mean(axis=0) for code in range(len(names))])
    return Head(
        kind="prototypes",
        classes=tuple(str(name) for name in names),
        weights=np.asarray(2 * PROTOTYPE_SCALE * means, np.float32),
        bias=np.asarray(-PROTOTYPE_SCALE * (means**2).sum(axis=1), np.float32),
    )


def fit_logistic(features_ND: Floats, labels: Sequence[str]) -> Head:
    """Multinomial logistic regression with an L2 penalty, C = 10."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=LOGISTIC_C, max_iter=2000).fit(features_ND, np.asarray(labels))
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row for the second class; softmax over +-half is its sigmoid
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(
        kind="logistic",
        classes=tuple(str(name) for name in model.classes_),
        weights=np.asarray(weights, np.float32),
        bias=np.asarray(bias, np.float32),
    )
