"""The stored vectors of a version: those of its base that are alive, and those of its delta.

It looks like a `VectorFile` to whoever reads it. A picture that was replaced has a dead row in the
base and a living one in the delta, under one id.

Shapes: N living rows, D embedding, M rows or ids asked for, X dead rows of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.vectors import Floats, Ids, VectorFile, locate

__all__ = ["LiveVectors"]

BATCH_ROWS = 16_384


class LiveVectors:
    """Reads what is alive of a base and a delta, in the order of ids. Safe from many threads.

    Args:
        base: the file of an older build.
        dead_ids: ids int64 [X] of its rows that are no more, rising.
        delta: rows that came since; none of their ids is alive in the base.

    Memory: 8 bytes a row for the ids, from their first use on.
    """

    def __init__(self, base: VectorFile, dead_ids: Ids, delta: VectorFile | None = None) -> None:
        self.dim = base.dim
        self._base = base
        self._delta = delta
        dead_rows = base.rows_of(dead_ids)
        # How many rows of the base come before each gap: row r of those alive is the row
        # r + (number of gaps at or before r) of the file.
        self._gaps = dead_rows - np.arange(len(dead_rows))
        self._num_base = len(base) - len(dead_rows)
        self._dead_rows = dead_rows

    def __len__(self) -> int:
        return self._num_base + (0 if self._delta is None else len(self._delta))

    @cached_property
    def ids(self) -> Ids:
        """All ids int64 [N], rising."""
        alive = np.delete(self._base.ids, self._dead_rows)
        if self._delta is None:
            return alive
        added = self._delta.ids
        return np.insert(alive, np.searchsorted(alive, added), added)

    @property
    def delta_ids(self) -> Ids:
        """Ids of the rows of the delta, rising."""
        return self.ids[self._delta_rows]

    @cached_property
    def _delta_rows(self) -> NDArray[np.intp]:
        """Where the delta's rows are among all."""
        added = np.empty(0, np.int64) if self._delta is None else self._delta.ids
        return np.searchsorted(self.ids, added)

    def rows_of(self, ids_M: Ids) -> NDArray[np.intp]:
        """The row of every id.

        Raises:
            KeyError: a picture is not there, or not any more.
        """
        rows, found = locate(self.ids, ids_M)
        if not found.all():
            raise KeyError(f"picture {int(ids_M[~found][0])} has no vector in this index")
        return rows

    def contains(self, ids_M: Ids) -> NDArray[np.bool_]:
        """Which of the ids are alive, bool [M]."""
        return locate(self.ids, ids_M)[1]

    def gather(self, rows_M: NDArray[np.intp]) -> Floats:
        """The vectors of the given rows as float32 [M, D], in their order."""
        if self._delta is None:
            return self._base.gather(self._base_rows(rows_M))
        places = np.searchsorted(self._delta_rows, rows_M)
        in_delta = places < len(self._delta_rows)
        in_delta[in_delta] = self._delta_rows[places[in_delta]] == rows_M[in_delta]
        vectors = np.empty((len(rows_M), self.dim), np.float32)
        vectors[in_delta] = self._delta.gather(places[in_delta])
        before = places[~in_delta]
        vectors[~in_delta] = self._base.gather(self._base_rows(rows_M[~in_delta] - before))
        return vectors

    def iter_batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and vectors float32 [n, D] with n <= batch_rows, in id order."""
        for start in range(0, len(self), batch_rows):
            rows = np.arange(start, min(start + batch_rows, len(self)))
            yield self.ids[rows], self.gather(rows)

    def _base_rows(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Rows in the base's file of rows among those of it that are alive."""
        return rows + np.searchsorted(self._gaps, rows, side="right")
