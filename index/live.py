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

from index.id_file import NO_IDS
from index.vectors import Floats, Ids, VectorFile, locate

__all__ = ["LiveVectors"]

BATCH_ROWS = 16_384


class LiveVectors:
    """Reads what is alive of a base and a delta, in the order of ids. Safe from many threads.

    Args:
        base: the file of an older build.
        dead_ids: ids int64 [X] of its rows that are no more, rising.
        delta: rows that came since; none of their ids is alive in the base.

    Memory: 8 bytes a row for the ids of the base, and as much again where `ids` is asked for.
    """

    def __init__(self, base: VectorFile, dead_ids: Ids, delta: VectorFile | None = None) -> None:
        self.dim = base.dim
        self.base = base
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
        alive = np.delete(self.base.ids, self._dead_rows)
        added = self.delta_ids
        return np.insert(alive, np.searchsorted(alive, added), added) if len(added) else alive

    @property
    def delta_ids(self) -> Ids:
        """Ids of the rows of the delta, rising."""
        return NO_IDS if self._delta is None else self._delta.ids

    @cached_property
    def _delta_rows(self) -> NDArray[np.intp]:
        """Where the delta's rows are among all."""
        before = np.searchsorted(self.base.ids, self.delta_ids)
        return before - np.searchsorted(self._dead_rows, before) + np.arange(len(before))

    def rows_of(self, ids_M: Ids) -> NDArray[np.intp]:
        """The row of every id.

        Raises:
            KeyError: a picture is not there, or not any more.
        """
        rows, found = self._locate(ids_M)
        if not found.all():
            raise KeyError(f"picture {int(ids_M[~found][0])} has no vector in this index")
        return rows

    def contains(self, ids_M: Ids) -> NDArray[np.bool_]:
        """Which of the ids are alive, bool [M]."""
        return self._locate(ids_M)[1]

    def gather(self, rows_M: NDArray[np.intp]) -> Floats:
        """The vectors of the given rows as float32 [M, D], in their order."""
        in_delta, places, base_rows = self._divided(rows_M)
        if self._delta is None:
            return self.base.gather(base_rows)
        vectors = np.empty((len(rows_M), self.dim), np.float32)
        vectors[in_delta] = self._delta.gather(places)
        vectors[~in_delta] = self.base.gather(base_rows)
        return vectors

    def iter_batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and vectors float32 [n, D] with n <= batch_rows, in id order."""
        for start in range(0, len(self), batch_rows):
            rows = np.arange(start, min(start + batch_rows, len(self)))
            in_delta, places, base_rows = self._divided(rows)
            ids = np.empty(len(rows), np.int64)
            ids[in_delta], ids[~in_delta] = self.delta_ids[places], self.base.ids[base_rows]
            yield ids, self.gather(rows)

    def _locate(self, ids_M: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The row of each id that is alive, and which are."""
        rows = np.zeros(len(ids_M), np.intp)
        alive = self.base.contains(ids_M)
        base_rows = self.base.rows_of(ids_M[alive])
        gaps, dead = locate(self._dead_rows, base_rows)
        alive[alive] = ~dead
        rows[alive] = (base_rows - gaps)[~dead]
        if self._delta is None:
            return rows, alive
        rows[alive] += np.searchsorted(self.delta_ids, ids_M[alive])
        added = self._delta.contains(ids_M)
        rows[added] = self._delta_rows[self._delta.rows_of(ids_M[added])]
        return rows, alive | added

    def _divided(
        self, rows_M: NDArray[np.intp]
    ) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.intp]]:
        """Which rows lie in the delta, [M]; these there, and the others in the base's file."""
        places, in_delta = locate(self._delta_rows, rows_M)
        alive = rows_M[~in_delta] - places[~in_delta]
        base_rows = alive + np.searchsorted(self._gaps, alive, side="right")
        return in_delta, places[in_delta], base_rows
