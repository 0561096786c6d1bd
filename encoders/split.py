"""Which pictures of a corpus a run trains on, and which it is examined on.

A function of corpus size, seed and settings: every rank and every resume finds the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.sampler import permutation

__all__ = ["FEWEST", "PIECE", "Split", "split_rows"]

# First word of the permutation's key; the sampler's and MoCo's shuffles have others.
HELD_OUT_FAMILY = 2
# Examined pictures are encoded in pieces of so many. Their number is a multiple of it, so that no
# piece differs in size.
PIECE = 32
# Fewer pictures than this say little: a share of them is off by a tenth either way.
FEWEST = PIECE


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Which rows of a corpus are trained on, and which are examined."""

    trained: NDArray[np.int64]
    """int64 rows, rising: position p of a run's global order is row ``trained[p]``."""
    examined: NDArray[np.int64]
    """int64 [E] rows, rising; none when the whole corpus has fewer than 32 pictures."""
    is_held_out: bool
    """Whether they are other rows; a corpus too small for that is examined on what it trains on."""


def split_rows(num_pictures: int, *, most: int, share: float, batch_size: int, seed: int) -> Split:
    """Choose the pictures to examine: at random, by a counter that depends on the seed alone.

    Args:
        num_pictures: rows of the corpus.
        most: the most pictures to examine; 0 examines none.
        share: the most of the corpus to keep out of training, in [0, 1).
        batch_size: pictures of a step, of which one has to be left.
        seed: of the run.
    """
    order = permutation(num_pictures, HELD_OUT_FAMILY, seed)
    most_held_out = min(most, int(share * num_pictures), num_pictures - batch_size)
    num_held_out = max(0, most_held_out) // PIECE * PIECE
    num_examined = num_held_out or min(most, num_pictures) // PIECE * PIECE
    return Split(
        trained=np.sort(order[num_held_out:]),
        examined=np.sort(order[:num_examined]),
        is_held_out=num_held_out > 0,
    )
