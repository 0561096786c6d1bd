"""What vectors are worth on Fashion-MNIST: kNN with all labels, and few labels of each class.

Shapes: M pictures with labels to learn from, Q test pictures, D embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from encoders.probe import knn_accuracy
from index.heads import centred, fit_logistic

__all__ = ["LABELS_PER_CLASS", "NUM_DRAWS", "few_labels", "judge", "knn20"]

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]

LABELS_PER_CLASS = (1, 5, 10)
NUM_DRAWS = 10
K = 20


def judge(
    bank_MD: Vectors, bank_labels_M: Labels, queries_QD: Vectors, labels_Q: Labels
) -> dict[str, Any]:
    """``knn20``, and a list over draws for each number of labels: ``labels_1``, ..."""
    figures: dict[str, Any] = {"knn20": knn20(bank_MD, bank_labels_M, queries_QD, labels_Q)}
    for number in LABELS_PER_CLASS:
        figures[f"labels_{number}"] = few_labels(
            bank_MD, bank_labels_M, queries_QD, labels_Q, number
        )
    return figures


def knn20(bank_MD: Vectors, bank_labels_M: Labels, queries_QD: Vectors, labels_Q: Labels) -> float:
    """Accuracy of the vote of 20 neighbours, nearer ones counting more."""
    return knn_accuracy(bank_MD, bank_labels_M, queries_QD, labels_Q, k=K)


def few_labels(
    bank_MD: Vectors,
    bank_labels_M: Labels,
    queries_QD: Vectors,
    labels_Q: Labels,
    labels_per_class: int,
) -> list[float]:
    """Accuracy of the project's logistic regression for each draw; the same draws for everyone.

    Features are centred by the mean of all pictures to learn from, which needs no label.
    """
    mean_D = bank_MD.mean(axis=0)
    queries = centred(queries_QD, mean_D)
    rows_of = [np.flatnonzero(bank_labels_M == label) for label in np.unique(bank_labels_M)]
    reached = []
    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng(draw)
        drawn = np.concatenate([rng.choice(rows, labels_per_class, False) for rows in rows_of])
        with threadpool_limits(1):
            labels = [str(label) for label in bank_labels_M[drawn]]
            head = fit_logistic(centred(bank_MD[drawn], mean_D), labels)
        predicted = np.array(head.classes, int)[head.logits(queries).argmax(axis=1)]
        reached.append(float(np.mean(predicted == labels_Q)))
    return reached
