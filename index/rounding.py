"""Unit vectors as float16 that are of unit norm again.

Rounding each number to the nearest float16 leaves a norm of 1 up to 3e-4. Of pictures that resemble
each other the longest would then always be among the nearest: in tight clusters a tenth of the ten
nearest are others. So a few numbers a row, two on average, are rounded the other way.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import numpy as np

from index.vectors import Float16s, Floats

__all__ = ["unit_float16"]

TOLERANCE = 1e-6
"""How far a squared norm may be from 1; float32 sums of products err by about as much."""

MAX_TURNED = 16
"""Numbers of a row that are rounded the other way at most; hardly any row needs so many."""


def unit_float16(unit_ND: Floats) -> Float16s:
    """Unit vectors rounded to float16, each number up or down, so that their norm stays 1.

    Where 64 numbers or more are not small it is 1 within 2e-6, and never farther from 1 than after
    rounding to nearest. Deterministic; a row's result depends on that row alone.

    >>> row = np.array([[3, 4, 12]], np.float32) / 13
    >>> [round(float(np.linalg.norm(half.astype(float))), 4) for half in (
    ...     row.astype(np.float16), unit_float16(row))]
    [0.9998, 0.9999]

    Args:
        unit_ND: float32, finite, of unit norm.

    Returns:
        float16 [N, D], each number one of the two that the given one lies between, or it itself.

    Cost: about 6 us a row of 128 dimensions, in one thread.
    """
    found = unit_ND.astype(np.float16)
    nearest = found.astype(np.float32)
    far = np.float16(np.inf)
    towards = np.where(nearest < unit_ND, far, np.where(nearest > unit_ND, -far, found))
    other_way = np.nextafter(found, towards)
    others = other_way.astype(np.float32)
    gains = (others - nearest) * (others + nearest)  # of the squared norm, exact enough to add up
    excess = np.einsum("nd,nd->n", nearest, nearest, dtype=np.float64) - 1
    rows = np.arange(len(found))
    for _ in range(MAX_TURNED):
        rows = rows[np.abs(excess[rows]) > TOLERANCE]
        if not len(rows):
            break
        after = np.abs(gains[rows] + excess[rows, None])
        columns = after.argmin(axis=1)
        better = after[np.arange(len(rows)), columns] < np.abs(excess[rows])
        rows, columns = rows[better], columns[better]
        found[rows, columns] = other_way[rows, columns]
        excess[rows] += gains[rows, columns]
        gains[rows, columns] = 0  # it is not turned back
    return found
