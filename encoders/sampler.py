"""Which pictures make up each training step: a pure function of the step, without any state.

Every epoch has one global order of the corpus. Step s takes the next ``batch_size`` positions of
it, and each rank its slice of those by position: resuming, or changing the number of ranks, cannot
change a batch, or a chunk of one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GlobalOrder", "permutation"]

# First word of the key of each family of permutations, so that none repeats another.
EPOCH_FAMILY = 0


def permutation(length: int, *key: int) -> NDArray[np.int64]:
    """A random order of 0..length-1 that depends on nothing but the key, of non-negative integers.

    Sorts Philox's raw 64-bit words, which NumPy keeps the same in all versions and on all machines
    (the streams of its `Generator.permutation` it may change).

    Cost: O(length log length) time, 16 bytes a row while it sorts.

    >>> sorted(permutation(4, 7).tolist())
    [0, 1, 2, 3]
    """
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


@functools.lru_cache(maxsize=2)
def _epoch_order(num_pictures: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = permutation(num_pictures, EPOCH_FAMILY, seed, epoch)
    order.setflags(write=False)
    return order


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalOrder:
    """The order in which a run sees its pictures.

    The pictures left over after the last whole batch of an epoch are dropped; each epoch drops
    others.
    """

    num_pictures: int
    """Rows of the corpus that can be trained on."""
    batch_size: int
    """Pictures of one optimiser step over all ranks."""
    seed: int
    """Of the run."""
    num_chunks: int = 1
    """Pieces of the batch, ranges of it, of each of which every rank takes its slice."""

    def __post_init__(self) -> None:
        if self.num_pictures < self.batch_size:
            lower = (
                f"Set batch_size to {self.num_pictures} or less, or scan more pictures."
                if self.num_pictures > 1
                else "Scan more pictures; 2 are the least to learn from, some thousands do well."
            )
            raise ValueError(
                f"the corpus has {self.num_pictures} pictures, the global batch "
                f"{self.batch_size}; no batch holds a picture twice. {lower}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.num_pictures // self.batch_size

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 0."""
        return step // self.steps_per_epoch

    def share(self, world_size: int) -> int:
        """Pictures of each batch for each of ``world_size`` ranks.

        Raises:
            ValueError: the batch, or a chunk of it, does not divide among the ranks.
        """
        if self.batch_size % (world_size * self.num_chunks):
            pieces, advice = "", ""
            if self.num_chunks > 1:
                pieces, advice = f", in {self.num_chunks} chunks,", ", fewer batch_chunks"
            raise ValueError(
                f"a global batch of {self.batch_size}{pieces} does not divide among {world_size} "
                f"workers, which must get equal shares. Use a batch_size that "
                f"{world_size * self.num_chunks} divides{advice}, or another number of workers."
            )
        return self.batch_size // world_size

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """Row positions of this rank's share of step ``step``.

        Returns:
            int64 [batch_size / world_size]: the rank's slice of each chunk, one after the other.
            Slices in rank order are the chunk, and chunks in their order the global batch.

        Raises:
            ValueError: the batch, or a chunk of it, does not divide among the ranks.
        """
        slice_size = self.share(world_size) // self.num_chunks
        order = _epoch_order(self.num_pictures, self.seed, self.epoch(step))
        start = step % self.steps_per_epoch * self.batch_size
        batch = order[start : start + self.batch_size]
        rows: NDArray[np.int64] = batch.reshape(self.num_chunks, world_size, slice_size)[:, rank]
        return rows.flatten()
