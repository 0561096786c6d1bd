"""Crop, antialiased resize and mirror of uint8 pictures, each with a box of its own, in one filter.

A row of the result is a weighted sum of two rows of the source, of some more where the picture
shrinks, and a column likewise. Both are sums over rows of a table, which torch has as
``embedding_bag``: fast everywhere, nothing spent on weights of zero, and no sum depends on what
else is in the batch.

Shapes: N pictures, B of them resized, H and W source, S result (X its columns, Y its rows), T taps,
R rows of a table, D values in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Taps", "find_taps", "resample", "weighted_rows"]


@dataclass(frozen=True, slots=True)
class Taps:
    """What each place of a resized line is made of, for B pictures."""

    places: Tensor
    """int32 [B, S, T], positions in the source line."""
    weights: Tensor
    """float32 [B, S, T], a mean: they sum to 1."""

    def __getitem__(self, some: slice) -> Taps:
        return Taps(self.places[some], self.weights[some])


def find_taps(start_B: Tensor, length_B: Tensor, flips_B: Tensor, source: int, size: int) -> Taps:
    """The triangle filter along one axis, as wide as a pixel of the coarser side.

    It reaches over the ends of a box into the picture around it, and no further.

    Args:
        start_B: where the box begins, in source pixels, not necessarily whole.
        length_B: how long it is.
        flips_B: bool, run backwards.
        source: pixels of the source along this axis.
        size: S.
    """
    device = start_B.device
    step_B1 = (length_B / size)[:, None]
    reach_B1 = step_B1.clamp_min(1)
    targets_S = torch.arange(size, device=device) + 0.5
    targets_BS = torch.where(flips_B[:, None], size - targets_S, targets_S)
    centres_BS = start_B[:, None] + targets_BS * step_B1 - 0.5
    # No box is longer than the source, so no sum has more taps, whatever the boxes of a batch are.
    num_taps = math.ceil(2 * max(source / size, 1))
    first_BS = (centres_BS - reach_B1).floor_().add_(1)
    places_BST = first_BS[:, :, None] + torch.arange(num_taps, device=device)
    inside_BST = places_BST.clamp(0, source - 1)
    distance_BST = (places_BST - centres_BS[:, :, None]).abs_()
    weights_BST = (1 - distance_BST.div_(reach_B1[:, :, None])).relu_()
    weights_BST *= inside_BST == places_BST
    weights_BST /= weights_BST.sum(-1, keepdim=True)
    return Taps(inside_BST.int(), weights_BST)


def weighted_rows(table_RD: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, ``[..., D]``.

    Args:
        table_RD: float32, contiguous.
        rows: int32 ``[..., T]``.
        weights: float32, likewise.
    """
    num_taps = rows.shape[-1]
    offsets = torch.arange(0, rows.numel(), num_taps, device=rows.device, dtype=torch.int32)
    sums = torch.embedding_bag(
        table_RD,
        rows.reshape(-1),
        offsets,
        scale_grad_by_freq=False,
        mode=0,
        sparse=False,
        per_sample_weights=weights.reshape(-1),
    )[0]
    return sums.view(*rows.shape[:-1], table_RD.shape[1])


def resample(pixels_NHW3: Tensor, pictures_B: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Pictures made of source pixels as the taps say.

    Args:
        pixels_NHW3: uint8.
        pictures_B: int64, which of the N pictures.
        rows: of each of them, from `find_taps` along the height.
        columns: likewise along the width.

    Returns:
        float32 ``[3, B, X, Y]``, 0 to 255 up to rounding: colours apart and columns before rows,
        the order in which both passes, and all that comes after, are fastest.
    """
    num, size = rows.places.shape[:2]
    height, width = pixels_NHW3.shape[1:3]
    part_BHW3 = pixels_NHW3.index_select(0, pictures_B)
    table_RD = part_BHW3.float().reshape(num * height, width * 3)

    nth_B11 = torch.arange(num, device=table_RD.device, dtype=torch.int32)[:, None, None]
    tall_BYD = weighted_rows(table_RD, rows.places + nth_B11 * height, rows.weights)
    turned_RY = tall_BYD.transpose(1, 2).contiguous().view(num * width * 3, size)
    places_BXT = (columns.places + nth_B11 * width) * 3
    colours_3111 = torch.arange(3, device=table_RD.device, dtype=torch.int32).view(3, 1, 1, 1)
    places_3BXT = places_BXT + colours_3111
    return weighted_rows(turned_RY, places_3BXT, columns.weights.expand(places_3BXT.shape))
