"""The memory that a build may take, and how it is divided.

A budget counts from what the program has before it starts, its imports included. Half of it holds
the part that is being filled, a quarter the training sample, and the rest the blocks that stream
by. Vectors are memory-mapped, and their pages are given back as they are read (`index.vectors`).

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from index.vectors import BATCH_ROWS

__all__ = ["Budget", "parse_bytes"]

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for suffix, base in (("B", 1000), ("IB", 1024))
}
SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*")

MIN_ROWS_PER_LIST = 39
"""Training rows a list below which FAISS warns."""

FIXED_BYTES = 24_000_000
"""Taken whatever is built: scores of a block, FAISS's own buffers, heaps that are not full."""

UNLIMITED_SAMPLE_BYTES = 1_000_000_000
"""Training sample where no budget is given: enough for 30,000 lists at 128 dimensions."""

FILL_FACTOR = 2
"""FAISS lets lists grow by doubling, so that a part takes up to twice its bytes while it fills."""


def parse_bytes(text: str, *, what: str = "size") -> int:
    """A number of bytes from what people write: powers of 1000 for MB, of 1024 for MiB.

    >>> parse_bytes("512MB"), parse_bytes("2 GiB"), parse_bytes("1.5kb")
    (512000000, 2147483648, 1500)

    Raises:
        ValueError: it is no size, or none at all.
    """
    match = SIZE.fullmatch(text)
    unit = UNITS.get(match[2].upper()) if match else None
    num_bytes = round(float(match[1]) * unit) if match and unit else 0
    if num_bytes < 1:
        raise ValueError(
            f"{what} {text!r}: allowed is a number above 0 with a unit, KB, MB, GB, TB or KiB, "
            "MiB, GiB, TiB. Write for example 512MB or 2GiB."
        )
    return num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Memory for a build over vectors of one dimension.

    Args:
        limit_bytes: what it may take beyond the program itself; None for no limit.
        dim: D.
        part_rows: most rows of a part, whatever the memory.
    """

    limit_bytes: int | None
    dim: int
    part_rows: int

    def require_enough(self) -> None:
        """Check that the least a build needs is there, before any work.

        Raises:
            ValueError: it is not.
        """
        # Two batches of float16 while the vectors are copied, and what is always taken.
        least = FIXED_BYTES + 6 * BATCH_ROWS * self.dim
        if self.limit_bytes is not None and self.limit_bytes < least:
            raise ValueError(
                f"memory {self.limit_bytes / 1e6:.0f}MB: vectors of {self.dim} dimensions need at "
                f"least {least / 1e6:.0f}MB to be indexed. Give --memory at least that."
            )

    @property
    def resident_bytes(self) -> int | None:
        """Most of a mapped file to keep in this process's memory; None for no limit."""
        return None if self.limit_bytes is None else self.limit_bytes // 32

    @property
    def block_rows(self) -> int:
        """Rows that stream by at once as float32, at most 1/32 of the budget."""
        if self.limit_bytes is None:
            return BATCH_ROWS
        return max(64, min(BATCH_ROWS, self.limit_bytes // 32 // (4 * self.dim)))

    @property
    def max_train_rows(self) -> int:
        """Rows of the training sample, as float32, that fit into a quarter of the budget."""
        sample = UNLIMITED_SAMPLE_BYTES if self.limit_bytes is None else self.limit_bytes // 4
        return sample // (4 * self.dim)

    @property
    def max_lists(self) -> int:
        """Lists that the largest training sample can train."""
        return max(1, self.max_train_rows // MIN_ROWS_PER_LIST)

    def rows_per_part(self, row_bytes: int, fixed_bytes: int) -> int:
        """Rows of one part of a recipe.

        Args:
            row_bytes: of a row's code and id.
            fixed_bytes: of a part without rows: centroids.
        """
        if self.limit_bytes is None:
            return self.part_rows
        room = max(0, self.limit_bytes // 2 - 2 * fixed_bytes)
        return max(1, min(self.part_rows, room // (FILL_FACTOR * row_bytes)))
