"""Chance that follows from a picture's id: the same draw, whatever came or went meanwhile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.vectors import Ids

__all__ = ["chance"]


def chance(ids: Ids, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) that follows from each id and the seed alone, as if drawn at random.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", their
    finaliser over a Weyl sequence of the ids.
    """
    # From 1 on, as theirs does: of 0 the finaliser makes 0, for every corpus the luckiest picture.
    start = np.uint64((seed * 0x632BE59BD9B4E019 + 1) % 2**64)
    x = (ids.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return np.asarray((x >> np.uint64(11)) / np.float64(1 << 53), np.float64)
