"""Log-sum-exp over a matrix of similarities that is never whole in memory.

The matrix is made tile by tile in the forward pass and again in the backward pass, so memory is
O((A + C) * D) at the price of one more matrix product. A batch that fits one tile is the dense
form.

Shapes: A anchors, C candidates, D dimensions; R rows and T columns of one tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TILE_EDGE_CPU", "TILE_EDGE_GPU", "full_precision", "log_sum_exp"]

# Rows and columns of a tile. On a CPU its 4 MB of float32 stay in the cache from one operation to
# the next. A GPU needs 64 MB, or starting the operations would take longer than they do.
TILE_EDGE_CPU, TILE_EDGE_GPU = 1024, 4096


def log_sum_exp(anchors_AD: Tensor, candidates_CD: Tensor, ids_A: Tensor, ids_C: Tensor) -> Tensor:
    """For each anchor, log sum exp of its dot products with all candidates of another id.

    Args:
        anchors_AD: float32 or float64, already divided by the temperature.
        candidates_CD: of the same dtype.
        ids_A: int64. A candidate with the anchor's id is left out of the anchor's sum.
        ids_C: int64. A candidate whose id is below 0 is left out of every sum.

    Returns:
        [A] in the same dtype, also under autocast; -inf, with gradient zero, where no candidate is
        left. Differentiable once.

    Source: Dao et al. 2022 (FlashAttention), section 3.1, for recomputing tiles in the backward
    pass. Deviation: no running maximum; the sums of a row's tiles are kept until the row ends.

    Cost: 8ACD operations forward and backward, where a whole matrix takes 6ACD.
    """
    sums_A: Tensor = _LogSumExp.apply(anchors_AD, candidates_CD, ids_A, ids_C)
    return sums_A


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast would compute similarities in bfloat16, whose 8 bits blur the hard negatives."""
    return torch.autocast(like.device.type, enabled=False)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors_AD: Tensor, candidates_CD: Tensor, ids_A: Tensor, ids_C: Tensor
    ) -> Tensor:
        sums_A = anchors_AD.new_empty(len(anchors_AD))
        with full_precision(anchors_AD):
            for rows in _spans(ids_A):
                rows_RD, ids_R = anchors_AD[rows], ids_A[rows]
                tile_sums = [
                    _tile(rows_RD, candidates_CD[columns], ids_R, ids_C[columns]).logsumexp(1)
                    for columns in _spans(ids_C)
                ]
                sums_A[rows] = torch.stack(tile_sums).logsumexp(0)
        ctx.save_for_backward(anchors_AD, candidates_CD, ids_A, ids_C, sums_A)
        return sums_A

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_A: Tensor) -> tuple[Tensor | None, ...]:
        anchors_AD, candidates_CD, ids_A, ids_C, sums_A = ctx.saved_tensors
        # exp(-inf - inf) is the 0 that an anchor without candidates needs; exp(-inf + inf) is NaN.
        sums_A = sums_A.masked_fill(sums_A == -math.inf, math.inf)
        grad_anchors_AD = torch.zeros_like(anchors_AD)
        grad_candidates_CD = torch.zeros_like(candidates_CD) if ctx.needs_input_grad[1] else None
        with full_precision(anchors_AD):
            for rows in _spans(ids_A):
                rows_RD, grad_R1 = anchors_AD[rows], grad_A[rows, None]
                for columns in _spans(ids_C):
                    columns_TD = candidates_CD[columns]
                    tile_RT = _tile(rows_RD, columns_TD, ids_A[rows], ids_C[columns])
                    softmax_RT = tile_RT.sub_(sums_A[rows, None]).exp_()
                    grad_anchors_AD[rows].addmm_(softmax_RT, columns_TD)
                    if grad_candidates_CD is not None:
                        grad_candidates_CD[columns].addmm_(softmax_RT.T, grad_R1 * rows_RD)
                grad_anchors_AD[rows] *= grad_R1
        return grad_anchors_AD, grad_candidates_CD, None, None


def _spans(ids: Tensor) -> list[slice]:
    """The tiles' places along one side; one empty tile where there is nothing."""
    edge = TILE_EDGE_CPU if ids.device.type == "cpu" else TILE_EDGE_GPU
    return [slice(start, start + edge) for start in range(0, max(len(ids), 1), edge)]


def _tile(rows_RD: Tensor, columns_TD: Tensor, ids_R: Tensor, ids_T: Tensor) -> Tensor:
    """Dot products [R, T], -inf where the column does not count for the row."""
    excluded_RT = (ids_R[:, None] == ids_T) | (ids_T < 0)
    return (rows_RD @ columns_TD.T).masked_fill_(excluded_RT, -math.inf)
