"""k-nearest-neighbour accuracy of frozen vectors, to judge training by when labels exist.

Shapes: M bank rows, Q queries, D dimensions, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.losses import NO_LABEL

__all__ = ["knn_accuracy"]

# Queries compared with the whole bank at once: bounds memory, changes nothing else.
QUERIES_AT_ONCE = 1024


def knn_accuracy(
    bank_MD: NDArray[np.float32],
    bank_labels_M: NDArray[np.int64],
    queries_QD: NDArray[np.float32],
    query_labels_Q: NDArray[np.int64],
    *,
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Share of queries whose class wins the vote of their k nearest bank rows.

    A neighbour at cosine c has exp(c / temperature) votes. Keep bank and queries apart: a picture
    in both would find itself. A query of a class that the bank lacks counts as wrong.

    Args:
        bank_MD: unit float32 rows from an encoder in eval mode, as `Encoder.embed` gives them.
        bank_labels_M: int64 classes; rows labelled -1 take no part.
        queries_QD: unit float32 rows of other pictures.
        query_labels_Q: int64 classes; rows labelled -1 take no part.
        k: neighbours that vote.
        temperature: > 0; small values let the nearest decide.

    Returns:
        Accuracy in [0, 1]. It depends on k and temperature: report them with it.

    Raises:
        ValueError: fewer than k labelled bank rows, or no labelled query.

    Source: Wu et al. 2018 (NPID), section 3.4.
    """
    labelled_M, labelled_Q = bank_labels_M != NO_LABEL, query_labels_Q != NO_LABEL
    bank_MD, bank_labels_M = bank_MD[labelled_M], bank_labels_M[labelled_M]
    queries_QD, query_labels_Q = queries_QD[labelled_Q], query_labels_Q[labelled_Q]
    if not 1 <= k <= len(bank_MD) or not len(queries_QD):
        raise ValueError(
            f"kNN with k={k} over {len(bank_MD)} labelled bank rows and {len(queries_QD)} labelled "
            "queries; k must be 1 up to the bank's size, and there must be a query. "
            "Label more pictures or lower k."
        )
    classes_C, bank_classes_M = np.unique(bank_labels_M, return_inverse=True)
    bank = torch.from_numpy(np.ascontiguousarray(bank_MD))
    votes_of = torch.from_numpy(bank_classes_M)
    correct = 0
    for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
        piece = slice(start, start + QUERIES_AT_ONCE)
        queries = torch.from_numpy(np.ascontiguousarray(queries_QD[piece]))
        cosines_Qk, rows_Qk = (queries @ bank.T).topk(k, dim=1)
        # Relative to the nearest, so that no temperature overflows; the winner is the same.
        weights_Qk = ((cosines_Qk - cosines_Qk[:, :1]) / temperature).exp()
        votes_QC = torch.zeros(len(queries), len(classes_C))
        votes_QC.scatter_add_(1, votes_of[rows_Qk], weights_Qk)
        winners_Q = classes_C[votes_QC.argmax(1).numpy()]
        correct += int((winners_Q == query_labels_Q[piece]).sum())
    return correct / len(queries_QD)
