"""The passes of BatchNorm over rows of channels on a processor, each over memory once.

Sums are taken in float64, over blocks of rows that depend on the number of rows alone: the number
of threads changes no bit, and that of the ranks at most the last one of a result.

Shapes: R rows, C channels, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.compiled import compiled, in_threads

__all__ = ["gradient_sums", "input_gradient", "moments", "normalise"]

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]

BLOCK_ROWS = 2048


def moments(rows_RC: Tensor) -> Tensor:
    """Mean, biased variance and count of float32 rows: float64 [3, C]."""
    rows = rows_RC.numpy()
    found = np.empty((_num_blocks(rows), 3, rows.shape[1]))
    _in_threads(rows, lambda first, end: _moments(rows, first, end, found))
    return torch.from_numpy(_merge(found))


def normalise(
    rows_RC: Tensor, mean_C: Tensor, scale_C: Tensor, shift_C: Tensor | None, out_RC: Tensor
) -> None:
    """Write ``(row - mean) * scale + shift`` to ``out_RC``."""
    rows, means, scales, out = (t.numpy() for t in (rows_RC, mean_C, scale_C, out_RC))
    shifts = np.zeros_like(scales) if shift_C is None else shift_C.numpy()
    _in_threads(rows, lambda first, end: _normalise(rows, means, scales, shifts, first, end, out))


def gradient_sums(grad_RC: Tensor, rows_RC: Tensor, mean_C: Tensor) -> Tensor:
    """Sums of the gradient, and of it times the row less the mean: float64 [2, C]."""
    grads, rows, means = grad_RC.numpy(), rows_RC.numpy(), mean_C.numpy()
    found = np.empty((_num_blocks(rows), 2, rows.shape[1]))
    _in_threads(rows, lambda first, end: _sums(grads, rows, means, first, end, found))
    return torch.from_numpy(found.sum(0))


def input_gradient(grad_RC: Tensor, rows_RC: Tensor, mean_C: Tensor, factors_3C: Tensor) -> Tensor:
    """``scale * grad + slope * (row - mean) + shift``, by the factors in this order: [R, C]."""
    grads, rows, means = grad_RC.numpy(), rows_RC.numpy(), mean_C.numpy()
    factors, out = factors_3C.numpy(), np.empty_like(rows)
    _in_threads(rows, lambda first, end: _combine(grads, rows, means, factors, first, end, out))
    return torch.from_numpy(out)


def _num_blocks(rows: Floats) -> int:
    return -(-len(rows) // BLOCK_ROWS)


def _in_threads(rows: Floats, work: Callable[[int, int], None]) -> None:
    in_threads(work, _num_blocks(rows), torch.get_num_threads())


@compiled
def _moments(rows_RC: Floats, first: int, end: int, found_B3C: Sums) -> None:
    """Around the first row of the block, so that a mean far from zero eats no variance."""
    num_rows, num_channels = rows_RC.shape
    around = np.empty(num_channels, np.float32)
    for block in range(first, end):
        start, stop = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, num_rows)
        around[:] = rows_RC[start]
        sums, squares = found_B3C[block, 0], found_B3C[block, 1]
        sums[:] = 0.0
        squares[:] = 0.0
        for row in range(start, stop):
            values = rows_RC[row]
            for channel in range(num_channels):
                apart = np.float64(values[channel] - around[channel])
                sums[channel] += apart
                squares[channel] += apart * apart
        count = stop - start
        for channel in range(num_channels):
            mean = sums[channel] / count
            squares[channel] = max(squares[channel] / count - mean * mean, 0.0)
            sums[channel] = mean + around[channel]
            found_B3C[block, 2, channel] = count


@compiled
def _merge(found_B3C: Sums) -> Sums:
    """Those of all blocks, by Chan's formula."""
    num_blocks, _, num_channels = found_B3C.shape
    merged_3C = np.zeros((3, num_channels))
    means, variances, counts = merged_3C[0], merged_3C[1], merged_3C[2]
    for block in range(num_blocks):
        for channel in range(num_channels):
            counts[channel] += found_B3C[block, 2, channel]
            means[channel] += found_B3C[block, 2, channel] * found_B3C[block, 0, channel]
    means /= counts
    for block in range(num_blocks):
        for channel in range(num_channels):
            apart = found_B3C[block, 0, channel] - means[channel]
            variance = found_B3C[block, 1, channel] + apart * apart
            variances[channel] += found_B3C[block, 2, channel] * variance
    variances /= counts
    return merged_3C


@compiled
def _normalise(  # noqa: PLR0913 - compiled code takes no dataclass
    rows_RC: Floats,
    means_C: Floats,
    scales_C: Floats,
    shifts_C: Floats,
    first: int,
    end: int,
    out_RC: Floats,
) -> None:
    num_rows, num_channels = rows_RC.shape
    for row in range(first * BLOCK_ROWS, min(end * BLOCK_ROWS, num_rows)):
        values, out = rows_RC[row], out_RC[row]
        for channel in range(num_channels):
            apart = values[channel] - means_C[channel]
            out[channel] = apart * scales_C[channel] + shifts_C[channel]


@compiled
def _sums(
    grads_RC: Floats, rows_RC: Floats, means_C: Floats, first: int, end: int, found_B2C: Sums
) -> None:
    num_rows, num_channels = rows_RC.shape
    for block in range(first, end):
        sums, products = found_B2C[block, 0], found_B2C[block, 1]
        sums[:] = 0.0
        products[:] = 0.0
        for row in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, num_rows)):
            grads, values = grads_RC[row], rows_RC[row]
            for channel in range(num_channels):
                grad = np.float64(grads[channel])
                sums[channel] += grad
                products[channel] += grad * np.float64(values[channel] - means_C[channel])


@compiled
def _combine(  # noqa: PLR0913 - compiled code takes no dataclass
    grads_RC: Floats,
    rows_RC: Floats,
    means_C: Floats,
    factors_3C: Floats,
    first: int,
    end: int,
    out_RC: Floats,
) -> None:
    num_rows, num_channels = rows_RC.shape
    scale_C, slope_C, shift_C = factors_3C[0], factors_3C[1], factors_3C[2]
    for row in range(first * BLOCK_ROWS, min(end * BLOCK_ROWS, num_rows)):
        grads, values, out = grads_RC[row], rows_RC[row], out_RC[row]
        for channel in range(num_channels):
            apart = (values[channel] - means_C[channel]) * slope_C[channel]
            out[channel] = grads[channel] * scale_C[channel] + (apart + shift_C[channel])
