"""The memory that a build may take, and how it is divided.

A budget counts from what the program has before it starts, its imports included. Three eighths of
it hold the part that is being filled, a quarter the training sample, and the rest the blocks that
stream by. Stored vectors are read from the file, not through a memory map: the pages of a map
would count as this process's memory. Ids are in memory, and where these leave less than three
eighths, parts are smaller. What a change would not find room for is built anew.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
from dataclasses import dataclass

import pyarrow as pa

from index.vectors import BATCH_ROWS

__all__ = ["Budget", "give_back", "parse_bytes"]

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

ROW_BYTES = 8
"""Of the ids that a build has in memory, for a row."""

LEFT_OUT_BYTES = 32
"""Of a picture that is left out: the lists that it is on, and their union, put in order. Measured
with 1.8 of 2 million (`tests/cluster`)."""

CHANGE_ROW_BYTES = 32
"""Of a row while its version is changed or compacted: ids of the base, of what is alive before and
after, and one more list of them in passing. Measured at a million rows (`tests/cluster`)."""

REMOVED_BYTES = 16
"""Of a picture that was removed by hand: the list of them, and one more in passing. Measured with
1.8 of 2 million, compacted."""

NAMED_BYTES = 48
"""Of a picture that is to be removed: as it was found, put in order, looked up, and on the lists of
those that go, are dead and stay out. Measured with 1.8 of 2 million."""

DELTA_NUMBER_BYTES = 14
"""Of a number of a vector that comes: as it was read, joined with others, widened, filled in."""

LEAST_PART = 16
"""Share of the budget that a part may have however little is left."""

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


def give_back() -> None:
    """Return to the system what allocators keep of freed memory, before the next phase takes more.

    Cost: milliseconds. Where the C library has no such call, its part is left alone.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Memory for a build over vectors of one dimension.

    Args:
        limit_bytes: what it may take beyond the program itself; None for no limit.
        dim: D.
        part_rows: most rows of a part, whatever the memory.
        num_left_out: pictures of the set that are not to be in the index, whose lists are in memory
            while it is built.
    """

    limit_bytes: int | None
    dim: int
    part_rows: int
    num_left_out: int = 0

    def require_enough(self, num_rows: int) -> None:
        """Check that the least a build needs is there, before any work.

        Args:
            num_rows: of the set that is indexed.

        Raises:
            ValueError: it is not.
        """
        least = self._passing_bytes + self._lists_bytes(num_rows)
        if self.limit_bytes is not None and self.limit_bytes < least:
            raise ValueError(
                f"memory {self.limit_bytes / 1e6:.0f}MB: to index {num_rows} vectors of "
                f"{self.dim} dimensions takes at least {math.ceil(least / 1e6)}MB. "
                f"Give lookalike index --memory {math.ceil(least / 1e6)}MB or more."
            )

    @property
    def _passing_bytes(self) -> int:
        """Two batches of float16 while vectors are copied, and what is always taken."""
        return FIXED_BYTES + 6 * BATCH_ROWS * self.dim

    def _lists_bytes(self, num_rows: int) -> int:
        """Ids of the index, and of what is left out of it."""
        return ROW_BYTES * num_rows + LEFT_OUT_BYTES * self.num_left_out

    def allows_change(
        self, num_rows: int, part_bytes: int, *, num_removed: int = 0, num_named: int = 0
    ) -> bool:
        """Whether a version can be changed or compacted within it.

        Args:
            num_rows: rows of the version, dead ones included.
            part_bytes: of its largest part.
            num_removed: pictures on its list of those that were removed by hand.
            num_named: pictures that are to join them.
        """
        lists = REMOVED_BYTES * num_removed + NAMED_BYTES * num_named
        needed = self._passing_bytes + CHANGE_ROW_BYTES * num_rows + lists + part_bytes
        return self.limit_bytes is None or needed <= self.limit_bytes

    def delta_rows(self, most: int) -> int:
        """Rows that a delta may have: ``most``, or what fits into a quarter of the budget."""
        if self.limit_bytes is None:
            return most
        return min(most, self.limit_bytes // 4 // (DELTA_NUMBER_BYTES * self.dim))

    @property
    def mapped(self) -> bool:
        """Whether stored vectors may be memory-mapped; pages of a map count as memory."""
        return self.limit_bytes is None

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

    def rows_per_part(self, row_bytes: int, fixed_bytes: int, num_rows: int = 0) -> int:
        """Rows of one part of a recipe.

        Args:
            row_bytes: of a row's code and id.
            fixed_bytes: of a part without rows: centroids.
            num_rows: of the whole index, whose ids are in memory.
        """
        if self.limit_bytes is None:
            return self.part_rows
        left = self.limit_bytes - self._passing_bytes - self._lists_bytes(num_rows)
        part = max(min(3 * self.limit_bytes // 8, left), self.limit_bytes // LEAST_PART)
        room = max(0, part - 2 * fixed_bytes)
        return max(1, min(self.part_rows, room // (FILL_FACTOR * row_bytes)))
