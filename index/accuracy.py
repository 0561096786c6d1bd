"""How well are classes learnt from fixed vectors: from a few labels of each, and from all of them.

Splits and draws depend on labels and seeds alone, so that sources of vectors are compared on the
same ones.

Shapes: N labelled rows, D embedding, C classes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.heads import LOGISTIC_C, centred, fit_logistic
from index.retrieval import directions
from index.trials import Trials
from index.vectors import Floats

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

__all__ = [
    "MIN_PROBE_PICTURES",
    "LinearProbe",
    "few_label_accuracy",
    "held_out_accuracy",
    "linear_probe",
]

Rows = NDArray[np.int64]

MIN_PROBE_PICTURES = 5
"""Of a class, for the linear probe: three to learn from, one to choose by, one to test on."""

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Inverse L2 strengths that the linear probe chooses from, weakest penalty last."""

MAX_ITERATIONS = 300
"""Of each fit; bounds the time. What has not converged by then is a candidate like the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """What logistic regression on all labels reaches on pictures that it has not seen.

    Args:
        accuracy: of each test picture, whether it is right.
        balanced: the same, classes counting alike.
        strength: the inverse L2 strength that was chosen.
        num_train: pictures that it learnt from.
    """

    accuracy: Trials
    balanced: Trials
    strength: float
    num_train: int


def few_label_accuracy(
    vectors_ND: Floats, labels_N: Sequence[str], labels_per_class: int, seeds: Sequence[int]
) -> Trials:
    """Balanced accuracy of logistic regression on a few labels of each class, per random draw.

    Features are centred by the corpus mean and L2-normalised (SimpleShot, Wang et al. 2019); C is
    fixed at 10, the setting of ``index/heads.py``, so that no test label tunes it. Classes
    that have no more pictures than ``labels_per_class`` are left out.

    Raises:
        ValueError: fewer than two classes are large enough.
    """
    names, codes_N, counts_C = np.unique(
        np.asarray(labels_N), return_inverse=True, return_counts=True
    )
    large = np.flatnonzero(counts_C > labels_per_class)
    if len(large) < 2:
        raise ValueError(
            f"{len(large)} classes have more than {labels_per_class} pictures; two are needed. "
            "Ask for fewer labels per class."
        )
    vectors = directions(vectors_ND)
    features = centred(vectors, vectors.mean(axis=0))
    rows_of = [np.flatnonzero(codes_N == code) for code in large]
    accuracies = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        drawn = np.concatenate(
            [rng.choice(rows, labels_per_class, replace=False) for rows in rows_of]
        )
        with _fitting():
            head = fit_logistic(features[drawn], [str(name) for name in names[codes_N[drawn]]])
        # Both name classes in sorted order.
        right_N = large[head.logits(features).argmax(axis=1)] == codes_N
        left = [np.setdiff1d(rows, drawn, assume_unique=True) for rows in rows_of]
        accuracies.append(np.mean([right_N[rows].mean() for rows in left]))
    return Trials(scores=np.array(accuracies), unit="draws")


def held_out_accuracy(
    bank_ND: Floats, bank_codes_N: Rows, test_QD: Floats, test_codes_Q: Rows
) -> Trials:
    """Whether logistic regression on some labels is right about each of others, however few.

    C is fixed at 10, as in `few_label_accuracy`; features are centred by the mean of those it
    learns from and L2-normalised. A test row of a class that the bank lacks counts as wrong.

    Args:
        bank_ND: float32 vectors that it learns from.
        bank_codes_N: int64 classes of them, of which there have to be two.
        test_QD: float32 vectors of other pictures.
        test_codes_Q: int64 classes of them.
    """
    bank = directions(bank_ND)
    mean_D = bank.mean(axis=0)
    model = _fitted(_logistic(LOGISTIC_C), centred(bank, mean_D), bank_codes_N)
    predicted_Q = model.predict(centred(directions(test_QD), mean_D))
    return Trials(scores=np.asarray(predicted_Q == test_codes_Q, np.float64))


def linear_probe(vectors_ND: Floats, labels_N: Sequence[str], seed: int) -> LinearProbe:
    """Accuracy of logistic regression on four fifths of the labels, tested on the last fifth.

    A second fifth, of the four, chooses the L2 strength; then the classifier is fitted anew on
    all four. Each class is split alike. Features are centred by the mean of those it learns from
    and L2-normalised. Classes of fewer than five pictures are left out.

    Raises:
        ValueError: fewer than two classes are large enough.

    Source: the protocol of Kornblith et al. 2019, "Do better ImageNet models transfer better?",
    section 3.2. Deviation: six strengths instead of 45, and at most 300 iterations each.
    """
    labels = np.asarray(labels_N)
    learn, choose, test = _split(labels, seed)
    vectors = directions(vectors_ND)
    codes_N = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    strength = _chosen_strength(vectors, codes_N, learn, choose)
    train = np.concatenate([learn, choose])
    features = centred(vectors, vectors[train].mean(axis=0))
    model = _fitted(_logistic(strength), features[train], codes_N[train])
    right = np.asarray(model.predict(features[test]) == codes_N[test], np.float64)
    return LinearProbe(
        accuracy=Trials(scores=right),
        balanced=Trials(scores=right, classes=codes_N[test]),
        strength=strength,
        num_train=len(train),
    )


def _split(labels_N: NDArray[np.str_], seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows to learn from, to choose by, and to test on; of every class alike."""
    rng = np.random.default_rng(seed)
    names, counts = np.unique(labels_N, return_counts=True)
    names = names[counts >= MIN_PROBE_PICTURES]
    if len(names) < 2:
        raise ValueError(
            f"{len(names)} classes have {MIN_PROBE_PICTURES} pictures or more; a linear probe "
            "needs two. Label more pictures, or leave this figure out."
        )
    parts: tuple[list[Rows], ...] = ([], [], [])
    for name in names:
        rows = rng.permutation(np.flatnonzero(labels_N == name))
        fifth = len(rows) // MIN_PROBE_PICTURES
        pieces = (rows[2 * fifth :], rows[fifth : 2 * fifth], rows[:fifth])
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    learn, choose, test = (np.concatenate(part) for part in parts)
    return learn, choose, test


def _chosen_strength(
    vectors_ND: Floats, codes_N: NDArray[np.int64], learn: Rows, choose: Rows
) -> float:
    """The strongest penalty of those that do best, classes counting alike."""
    from sklearn.metrics import balanced_accuracy_score

    features = centred(vectors_ND, vectors_ND[learn].mean(axis=0))
    # Each fit goes on from the one before, whose penalty is ten times stronger.
    model = _logistic(STRENGTHS[0], warm_start=True)
    reached = []
    for strength in STRENGTHS:
        _fitted(model.set_params(C=strength), features[learn], codes_N[learn])
        predicted = model.predict(features[choose])
        reached.append(balanced_accuracy_score(codes_N[choose], predicted))
    return STRENGTHS[int(np.argmax(reached))]


def _logistic(strength: float, *, warm_start: bool = False) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, warm_start=warm_start)


def _fitted(
    model: LogisticRegression, features_ND: Floats, codes_N: NDArray[np.int64]
) -> LogisticRegression:
    with _fitting():
        return model.fit(features_ND, codes_N)


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    """In one thread, and without doubts about few iterations or few labels of many classes.

    Threads of products so small wait for each other: on a busy machine fits took 100 times as long.
    The bound on iterations is ours, and what comes of it is judged like all else.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
        yield
