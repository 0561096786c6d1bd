"""Contrastive and predictive losses, each exact under any number of ranks.

Anchors are local, candidates are gathered from all ranks, and every function returns a scalar whose
mean over the ranks is the loss of the global batch. With gradients averaged over the ranks, the
result does not depend on how the batch was spread. Embeddings are normalised and compared in
float32 whatever the autocast state; log-sum-exp keeps small temperatures finite.

Shapes: N local pictures, D dimensions, A = 2N local anchors, C = 2N * ranks candidates, K queue
rows. The two views of picture i are rows 2i and 2i+1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.collective import gather_rows, rank

__all__ = [
    "NO_LABEL",
    "byol_loss",
    "check_temperature",
    "info_nce",
    "mutual_information_bound",
    "nt_xent",
    "sup_con",
    "unit_rows",
]

# Label of a picture that has none.
NO_LABEL = -1
# Below this norm a row counts as zero; larger than torch's 1e-12, whose gradient there is 1e12.
MIN_NORM = 1e-6


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless cosines can be divided by it."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"method temperature is {temperature}; it must be above 0. "
            "Use 0.2, or 0.1 to 0.5 as published."
        )


def unit_rows(vectors_ND: Tensor) -> Tensor:
    """Rows divided by their norm, in at least float32; a zero row stays zero."""
    wide_ND = vectors_ND.to(torch.promote_types(vectors_ND.dtype, torch.float32))
    return F.normalize(wide_ND, dim=1, eps=MIN_NORM)


def nt_xent(view_a_ND: Tensor, view_b_ND: Tensor, ids_N: Tensor, *, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy: find each view's partner among all other views.

    Args:
        view_a_ND: embeddings of the first views of this rank's pictures; any norm.
        view_b_ND: embeddings of the second views, row for row.
        ids_N: int64 picture ids. Views of a picture that is twice in the global batch are not
            negatives of each other.
        temperature: > 0; cosine similarities are divided by it.

    Returns:
        Scalar >= 0: mean over this rank's 2N anchors. All embeddings equal gives log(2N - 1).

    Source: Chen et al. 2020 (SimCLR), eq. 1 and algorithm 1. Deviation: the mask of repeated
    pictures.
    """
    with _full_precision(view_a_ND):
        anchors_AD, candidates_CD = _two_views(view_a_ND, view_b_ND)
        logits_AC = anchors_AD @ candidates_CD.T / temperature
        partner_A = _own_columns(anchors_AD) ^ 1
        same_picture_AC = _equal_to_gathered(ids_N)
        # The anchor itself is of the same picture too, so this one mask removes it as well.
        excluded_AC = same_picture_AC.scatter(1, partner_A[:, None], False)
        return F.cross_entropy(logits_AC.masked_fill(excluded_AC, -math.inf), partner_A)


def info_nce(
    queries_ND: Tensor,
    keys_ND: Tensor,
    ids_N: Tensor,
    negatives_KD: Tensor,
    negative_ids_K: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Cross-entropy of picking each query's own key among that key and a queue of negatives.

    Args:
        queries_ND: embeddings of this rank's queries; any norm.
        keys_ND: embedding of each query's positive; any norm. Detach it for MoCo.
        ids_N: int64 picture ids of the queries.
        negatives_KD: unit rows, as in the queue.
        negative_ids_K: their picture ids. A negative of the query's own picture is masked; so is an
            id below 0, which marks an unfilled row.
        temperature: > 0.

    Returns:
        Scalar >= 0: mean over this rank's queries; 0 while the queue is empty.

    Source: van den Oord et al. 2018, eq. 4; He et al. 2020 (MoCo), eq. 1. Deviation: the masks.
    """
    with _full_precision(queries_ND):
        queries_ND, keys_ND = unit_rows(queries_ND), unit_rows(keys_ND)
        positive_N1 = (queries_ND * keys_ND).sum(1, keepdim=True)
        negative_NK = queries_ND @ negatives_KD.to(queries_ND.dtype).T
        masked_NK = (ids_N[:, None] == negative_ids_K) | (negative_ids_K < 0)
        logits = torch.cat([positive_N1, negative_NK.masked_fill(masked_NK, -math.inf)], dim=1)
        return F.cross_entropy(logits / temperature, torch.zeros_like(ids_N))


def sup_con(
    view_a_ND: Tensor,
    view_b_ND: Tensor,
    labels_N: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Supervised contrastive loss: pull together all views of one class (the L_out form).

    Args:
        view_a_ND: embeddings of the first views of this rank's pictures; any norm.
        view_b_ND: embeddings of the second views, row for row.
        labels_N: int64 classes; `NO_LABEL` takes the picture out altogether: it is neither anchor
            nor candidate, since as a negative it would often be of the anchor's own class.
        temperature: > 0.

    Returns:
        Scalar: the mean over the *global* batch's labelled anchors, as this rank's share of it (so
        that the mean over ranks is exact when they hold different numbers of labels); 0 without
        labels.

    Source: Khosla et al. 2020 (SupCon), eq. 2. Deviation: no factor of temperature / base
    temperature.
    """
    with _full_precision(view_a_ND):
        anchors_AD, candidates_CD = _two_views(view_a_ND, view_b_ND)
        logits_AC = anchors_AD @ candidates_CD.T / temperature
        labels_A = labels_N.repeat_interleave(2)
        labels_C = gather_rows(labels_A)
        labelled_A, labelled_C = labels_A != NO_LABEL, labels_C != NO_LABEL
        own_AC = torch.zeros_like(logits_AC, dtype=torch.bool)
        own_AC.scatter_(1, _own_columns(anchors_AD)[:, None], True)
        # An unlabelled anchor's row stays unmasked: its value is thrown away, but must not be NaN.
        masked_AC = labelled_A[:, None] & (own_AC | ~labelled_C)
        log_sum_A = logits_AC.masked_fill(masked_AC, -math.inf).logsumexp(1)
        positive_AC = (labels_A[:, None] == labels_C) & ~own_AC
        positives_A = (logits_AC * positive_AC).sum(1) / positive_AC.sum(1).clamp(min=1)
        loss_A = torch.where(labelled_A, log_sum_A - positives_A, 0)
        labelled_per_rank = labelled_C.sum() * (len(labels_A) / len(labels_C))
        return loss_A.sum() / labelled_per_rank.clamp(min=1e-9)


def byol_loss(predictions_ND: Tensor, targets_ND: Tensor) -> Tensor:
    """Mean squared distance of unit predictions to unit targets: 2 - 2 cos, in [0, 4].

    Args:
        predictions_ND: the online network's predictions of the targets; any norm.
        targets_ND: the target network's projections of the other view; any norm; never receives a
            gradient.

    Source: Grill et al. 2020 (BYOL), eq. 2. Deviation: none; the caller adds the swapped term.
    """
    with _full_precision(predictions_ND):
        cosines_N = (unit_rows(predictions_ND) * unit_rows(targets_ND.detach())).sum(1)
        return (2 - 2 * cosines_N).mean()


def mutual_information_bound(loss: float, num_candidates: float) -> float:
    """The lower bound log N - L, in nats, that InfoNCE proves on the views' mutual information.

    Args:
        loss: an `nt_xent` or `info_nce` loss in nats.
        num_candidates: N, positive included: 2B - 1 for `nt_xent` over B pictures, filled rows + 1
            for `info_nce`. The bound can never exceed log N, however good the encoder.

    Source: van den Oord et al. 2018, section 2.3; Poole et al. 2019, eq. 10.

    >>> mutual_information_bound(0.0, 1)
    0.0
    """
    return math.log(num_candidates) - loss


def _full_precision(like: Tensor) -> torch.autocast:
    """Autocast would compute similarities in bfloat16, whose 8 bits blur the hard negatives."""
    return torch.autocast(like.device.type, enabled=False)


def _two_views(view_a_ND: Tensor, view_b_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Unit anchors [A, D] of this rank and unit candidates [C, D] of all, views side by side."""
    anchors_AD = torch.stack([unit_rows(view_a_ND), unit_rows(view_b_ND)], dim=1).flatten(0, 1)
    return anchors_AD, gather_rows(anchors_AD)


def _own_columns(anchors_AD: Tensor) -> Tensor:
    """Where this rank's anchors stand among the candidates: int64 [A]."""
    num_anchors = len(anchors_AD)
    return torch.arange(num_anchors, device=anchors_AD.device) + rank() * num_anchors


def _equal_to_gathered(values_N: Tensor) -> Tensor:
    """Whether anchor and candidate have the same value: bool [A, C]."""
    values_A = values_N.repeat_interleave(2)
    return values_A[:, None] == gather_rows(values_A)
