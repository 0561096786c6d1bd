"""What an encoder has to beat: pictures compared pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["raw_pixel_vectors"]

EDGE = 16
EPSILON = 1e-12


def raw_pixel_vectors(pixels: NDArray[np.uint8], edge: int = EDGE) -> NDArray[np.float32]:
    """Unit vectors of the pixels themselves.

    Made as strong as pixels get without learning: averaged over areas, so that a shift by a pixel
    or a little blur hardly counts, and centred on each picture's mean colour, so that brightness
    and tint hardly do. A picture of one colour is not centred: nothing would be left.

    Args:
        pixels: uint8 ``[N, S, S, 3]``.
        edge: pictures are averaged down to at most this edge.

    Returns:
        float32 ``[N, D]`` with D = 3 min(edge, S)^2.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, they must be uint8 [N, S, S, 3]. "
            "Make them with to_square."
        )
    images_N3SS = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float().div_(255)
    small_N3EE = F.adaptive_avg_pool2d(images_N3SS, min(edge, pixels.shape[1]))
    centred_ND = (small_N3EE - small_N3EE.mean((2, 3), keepdim=True)).flatten(1)
    flat_N1 = centred_ND.abs().amax(1, keepdim=True) < 1e-6
    vectors_ND = torch.where(flat_N1, small_N3EE.flatten(1), centred_ND)
    return F.normalize(vectors_ND, dim=1, eps=EPSILON).numpy()
