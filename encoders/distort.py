"""Queries for find-the-original: copies that pixels no longer find and a person still does.

How often search brings back the original is a figure of quality that needs no labels, so it can be
measured on every corpus. The strength is fixed: figures of different runs compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.augment import AugmentConfig, augment

__all__ = ["DISTORTION", "distort"]

BLUR_EDGE = 48
"""The edge at which ``blur_sigma`` is meant; it grows with the query, so that size helps nobody."""

DISTORTION = AugmentConfig(
    crop_scale=(0.35, 0.8),
    flip_probability=0.0,
    jitter_probability=1.0,
    gray_probability=0.0,
    blur_probability=1.0,
    blur_sigma=(0.3, 1.0),
)
"""Cropped off-centre, recoloured, blurred; never mirrored or gray, which may change what it is."""

# A view number that no training run draws, so that no query equals a training view.
VIEW = 65535


def distort(
    pixels: NDArray[np.uint8], ids: Sequence[int] | NDArray[np.int64], *, seed: int, size: int
) -> NDArray[np.uint8]:
    """Distorted copies of pictures, each decided by the seed and its id alone.

    Args:
        pixels: uint8 ``[N, H, H, 3]``, best at twice ``size`` so that a crop keeps its detail.
        ids: N picture ids.
        seed: of the query set.
        size: S, the edge of the queries.

    Returns:
        uint8 ``[N, S, S, 3]``.
    """
    low, high = DISTORTION.blur_sigma
    sigma = (low * size / BLUR_EDGE, high * size / BLUR_EDGE)
    images_N3HH = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
    views_N3SS = augment(
        images_N3HH,
        torch.from_numpy(np.array(ids, np.int64, order="C")),
        config=replace(DISTORTION, crop_size=size, blur_sigma=sigma),
        seed=seed,
        epoch=0,
        view=VIEW,
    )
    return views_N3SS.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
