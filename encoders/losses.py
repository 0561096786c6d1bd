"""Contrastive and predictive losses, each exact under any number of ranks.

Anchors are local, candidates are gathered from all ranks, and every function returns a scalar whose
mean over the ranks is the loss of the global batch. With gradients averaged over the ranks, the
result does not depend on how the batch was spread. Embeddings are normalised and compared in
float32 whatever the autocast state; log-sum-exp keeps small temperatures finite. Memory grows with
the number of embeddings and not with its square: only tiles of the similarities exist at a time.

Local views, small crops beside the two global ones, are asked for the global views and for nothing
else: a loss is its mean over all pairs of a view and another, global, view of the same picture, two
such pairs for the global views and two for each local one (Caron et al. 2020, SwAV, section 3.3).

Shapes: N local pictures, D dimensions, L local views, A = (2 + L)N local anchors, C = 2N * ranks
candidates, K queue rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.blockwise import full_precision, log_sum_exp
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
# Place among the candidates of what is none.
NO_PLACE = -1
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


def nt_xent(
    view_a_ND: Tensor,
    view_b_ND: Tensor,
    ids_N: Tensor,
    local_views: Sequence[Tensor] = (),
    *,
    temperature: float,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy: find each view's partner among all other views.

    Args:
        view_a_ND: embeddings of the first views of this rank's pictures; any norm.
        view_b_ND: embeddings of the second views, row for row.
        ids_N: int64 picture ids, 0 or more. Views of a picture that is twice in the global batch
            are not negatives of each other.
        local_views: [N, D] embeddings of each local view, row for row. They are anchors, with each
            of the picture's global views as positive in turn, and never candidates.
        temperature: > 0; cosine similarities are divided by it.

    Returns:
        Scalar >= 0: mean over this rank's 2N anchors and, for a local anchor, both its positives.
        All embeddings equal gives log(2N - 1).

    Source: Chen et al. 2020 (SimCLR), eq. 1 and algorithm 1. Deviations: the mask of repeated
    pictures; local views.
    """
    with full_precision(view_a_ND):
        a_ND, b_ND, *local = (unit_rows(view) for view in (view_a_ND, view_b_ND, *local_views))
        views = torch.cat([a_ND, b_ND])
        candidates_CD, ids_C = gather_rows(views), gather_rows(ids_N.repeat(2))
        anchors_AD, ids_A = _join(views, local), ids_N.repeat(2 + len(local))
        # The anchor itself and its partner are of the anchor's picture: neither is a negative.
        negatives_A = log_sum_exp(anchors_AD / temperature, candidates_CD, ids_A, ids_C)
        cosines = [(a_ND * b_ND).sum(1).repeat(2)]
        cosines += [(view * positive).sum(1) for positive in (a_ND, b_ND) for view in local]
        # Local anchors a second time, for their second positive.
        negatives = torch.cat([negatives_A, negatives_A[len(views) :]])
        return _cross_entropy(torch.cat(cosines) / temperature, negatives)


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
    with full_precision(queries_ND):
        queries_ND, keys_ND = unit_rows(queries_ND), unit_rows(keys_ND)
        positive_N = (queries_ND * keys_ND).sum(1) / temperature
        negatives_N = log_sum_exp(
            queries_ND / temperature, negatives_KD.to(queries_ND.dtype), ids_N, negative_ids_K
        )
        return _cross_entropy(positive_N, negatives_N)


def sup_con(
    view_a_ND: Tensor,
    view_b_ND: Tensor,
    labels_N: Tensor,
    local_views: Sequence[Tensor] = (),
    *,
    temperature: float,
) -> Tensor:
    """Supervised contrastive loss: pull together all views of one class (the L_out form).

    Args:
        view_a_ND: embeddings of the first views of this rank's pictures; any norm.
        view_b_ND: embeddings of the second views, row for row.
        labels_N: int64 classes; `NO_LABEL` takes the picture out altogether: it is neither anchor
            nor candidate, since as a negative it would often be of the anchor's own class.
        local_views: [N, D] embeddings of each local view, row for row. They are anchors, with all
            global views of their class as positives, and never candidates.
        temperature: > 0.

    Returns:
        Scalar: the mean over the *global* batch's labelled anchors, as this rank's share of it (so
        that the mean over ranks is exact when they hold different numbers of labels); 0 without
        labels. A local anchor counts twice, since both global views of its picture are positives.

    Source: Khosla et al. 2020 (SupCon), eq. 2. Deviations: no factor of temperature / base
    temperature; local views.
    """
    with full_precision(view_a_ND):
        a_ND, b_ND, *local = (unit_rows(view) for view in (view_a_ND, view_b_ND, *local_views))
        views = torch.cat([a_ND, b_ND])
        candidates_CD, labels_C = gather_rows(views), gather_rows(labels_N.repeat(2))
        anchors_AD, labels_A = _join(views, local), labels_N.repeat(2 + len(local))
        places_C = torch.arange(len(labels_C), device=labels_C.device)
        own_places = places_C[rank() * len(views) :][: len(views)]
        places_A = F.pad(own_places, (0, len(anchors_AD) - len(views)), value=NO_PLACE)
        # As ids, places leave out the anchor alone and keep the others of its class.
        sums_A = log_sum_exp(
            anchors_AD / temperature,
            candidates_CD,
            places_A,
            places_C.masked_fill(labels_C == NO_LABEL, NO_PLACE),
        )
        is_candidate_A = places_A != NO_PLACE
        positives_A = _mean_of_class(anchors_AD, labels_A, is_candidate_A, candidates_CD, labels_C)
        loss_A = torch.where(labels_A == NO_LABEL, 0, sums_A - positives_A / temperature)
        total = loss_A[: len(views)].sum() + 2 * loss_A[len(views) :].sum()
        labelled_per_rank = (labels_C != NO_LABEL).sum() * (len(views) / len(labels_C))
        return total / labelled_per_rank.clamp(min=1e-9) / (1 + len(local))


def byol_loss(predictions_ND: Tensor, targets_ND: Tensor) -> Tensor:
    """Mean squared distance of unit predictions to unit targets: 2 - 2 cos, in [0, 4].

    Args:
        predictions_ND: the online network's predictions of the targets; any norm.
        targets_ND: the target network's projections of the other view; any norm; never receives a
            gradient.

    Source: Grill et al. 2020 (BYOL), eq. 2. Deviation: none; the caller adds the swapped term.
    """
    with full_precision(predictions_ND):
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


def _join(views: Tensor, local: Sequence[Tensor]) -> Tensor:
    """All anchors; the views themselves, not a copy, where there are no others."""
    return torch.cat([views, *local]) if local else views


def _cross_entropy(positive_N: Tensor, negatives_N: Tensor) -> Tensor:
    """Mean of log(e^positive + e^negatives) - positive, exact near 0 too; 0 at negatives -inf."""
    return -F.logsigmoid(positive_N - negatives_N).mean()


def _mean_of_class(
    anchors_AD: Tensor,
    labels_A: Tensor,
    is_candidate_A: Tensor,
    candidates_CD: Tensor,
    labels_C: Tensor,
) -> Tensor:
    """Mean cosine [A] of an anchor with the other candidates of its class.

    The mean of products is the product with the mean, so no matrix is needed. Every class has two
    candidates or more: the views of one picture.
    """
    names, classes_C, counts = torch.unique(labels_C, return_inverse=True, return_counts=True)
    sums = candidates_CD.new_zeros(len(counts), candidates_CD.shape[1])
    # Not index_add, which adds in any order on a GPU.
    sums = sums.index_put((classes_C,), candidates_CD, accumulate=True)
    classes_A = torch.searchsorted(names, labels_A)
    own_A1 = is_candidate_A.long()[:, None]
    others_AD: Tensor = (sums[classes_A] - own_A1 * anchors_AD) / (counts[classes_A, None] - own_A1)
    return (anchors_AD * others_AD).sum(1)
