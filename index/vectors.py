"""The vectors of an index version: one Arrow file, sorted by id, memory-mapped.

It holds the float16 vectors as they were embedded: unit vectors but for the rounding, which is
below 1e-3. They are the corpus; a score is their inner product with a unit query. Search re-ranks
on them, and classifiers train on them. Any Arrow reader opens the file without us.

Shapes: N vectors, D embedding, M rows asked for.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = [
    "Float16s",
    "Floats",
    "Ids",
    "VectorFile",
    "VectorSource",
    "VectorWriter",
    "require_ids",
    "unit",
]

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Float16s = NDArray[np.float16]

BATCH_ROWS = 16_384
"""Rows of every record batch but the last; row ``r`` lies in batch ``r // BATCH_ROWS``."""

MAX_ID = 2**63 - 2

FAULT_BYTES = 65_536
"""What the system maps around a byte that is read, where the file is in its cache."""


class VectorSource(Protocol):
    """What streams a corpus's vectors: an embedding set or an open index."""

    @property
    def encoder_id(self) -> str:
        """The encoder that made the vectors."""

    @property
    def layer(self) -> str:
        """The layer of that encoder."""

    def iter_batches(self, batch_rows: int = ...) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and unit vectors float32 [n, D]."""


def unit(vectors_ND: NDArray[np.floating]) -> Floats:
    """The rows as float32 of unit norm; rows have to be finite and not zero.

    >>> unit(np.array([[3.0, 4.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    vectors = np.asarray(vectors_ND, dtype=np.float32)
    norms: Floats = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    return vectors / norms


def require_ids(ids_N: Ids, *, after: int = -1) -> None:
    """Check that ids are int64, rise strictly, and lie in (after, 2**63 - 1).

    Rising ids across batches is also how uniqueness is checked in bounded memory.

    Raises:
        ValueError: they do not; a position must never be taken for an id.
    """
    if ids_N.dtype != np.int64:
        raise ValueError(f"picture ids are {ids_N.dtype}, they have to be int64")
    if not len(ids_N):
        return
    if ids_N[0] <= after or np.any(np.diff(ids_N) <= 0) or ids_N[0] < 0 or ids_N[-1] > MAX_ID:
        raise ValueError(
            f"picture ids {ids_N[0]}..{ids_N[-1]} after {after}: they have to be unique, rising, "
            "and between 0 and 2**63 - 2. Scan and embed the corpus again."
        )


class VectorWriter:
    """Writes ids and float16 vectors, in id order, as record batches of equal size."""

    def __init__(self, path: str, dim: int) -> None:
        self._dim = dim
        self._schema = pa.schema(
            [
                pa.field("id", pa.int64(), nullable=False),
                pa.field("vector", pa.list_(pa.float16(), dim), nullable=False),
            ]
        )
        self._ids: list[Ids] = []
        self._vectors: list[Float16s] = []
        self._pending = 0
        self._last_id = -1
        self.num_rows = 0
        self._writer = pa.ipc.new_file(path, self._schema)

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush(final=True)
        self._writer.close()

    def add(self, ids_N: Ids, vectors_ND: Float16s) -> None:
        """Append rows; ids have to rise over all calls."""
        require_ids(ids_N, after=self._last_id)
        if not len(ids_N):
            return
        self._last_id = int(ids_N[-1])
        self._ids.append(ids_N)
        self._vectors.append(vectors_ND)
        self._pending += len(ids_N)
        self.num_rows += len(ids_N)
        if self._pending >= BATCH_ROWS:
            self._flush(final=False)

    def _flush(self, *, final: bool) -> None:
        if not self._pending:
            return
        ids, vectors = np.concatenate(self._ids), np.concatenate(self._vectors)
        end = len(ids) if final else len(ids) - len(ids) % BATCH_ROWS
        for start in range(0, end, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, end)
            flat = pa.array(np.ascontiguousarray(vectors[start:stop]).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, self._dim)
            self._writer.write_batch(
                pa.record_batch([pa.array(ids[start:stop]), column], schema=self._schema)
            )
        self._ids, self._vectors = [ids[end:]], [vectors[end:]]
        self._pending = len(ids) - end


class VectorFile:
    """A memory-mapped file of ``VectorWriter``. Safe to use from many threads.

    Args:
        path: the file.
        resident_bytes: most of the map to keep in this process's memory; its pages are given back
            to the system's cache as they are read. None leaves that to the system, which is
            faster, and right unless memory is counted.

    Attributes:
        dim: D.
    """

    def __init__(self, path: str | Path, *, resident_bytes: int | None = None) -> None:
        with Path(path).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.dim = int(reader.schema.field("vector").type.list_size)
        self._blocks = [
            batch.column("vector").flatten().to_numpy().reshape(-1, self.dim) for batch in batches
        ]
        self._id_blocks: list[Ids] = [batch.column("id").to_numpy() for batch in batches]
        self._num_rows = sum(map(len, self._id_blocks))
        self._stacked = _stack(self._blocks)
        self._stacked_ids = _stack(self._id_blocks)
        self._firsts: Ids = np.array([block[0] for block in self._id_blocks], np.int64)
        self._resident_bytes = resident_bytes
        self._touched_bytes = 0

    @functools.cached_property
    def ids(self) -> Ids:
        """All ids int64 [N], rising; 8 bytes a row in memory from the first use on."""
        return np.concatenate(self._id_blocks) if self._id_blocks else np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._num_rows

    def rows_of(self, ids_M: Ids) -> NDArray[np.intp]:
        """The row of every id.

        Raises:
            KeyError: an id is not in this file.
        """
        rows, found = self._locate(ids_M)
        if not found.all():
            raise KeyError(f"picture {int(ids_M[~found][0])} has no vector in this index")
        return rows

    def contains(self, ids_M: Ids) -> NDArray[np.bool_]:
        """Which of the ids are in this file, bool [M]."""
        return self._locate(ids_M)[1]

    def ids_of(self, rows_M: NDArray[np.intp]) -> Ids:
        """The id of every row."""
        if self._stacked_ids is None or self._resident_bytes is None:
            return self.ids[rows_M]
        self._touch(len(rows_M) * FAULT_BYTES)
        found: Ids = self._stacked_ids[rows_M // BATCH_ROWS, rows_M % BATCH_ROWS]
        return found

    def gather(self, rows_M: NDArray[np.intp]) -> Floats:
        """The vectors of the given rows as float32 [M, D], in their order."""
        self._touch(len(rows_M) * max(FAULT_BYTES, 2 * self.dim))
        blocks = rows_M // BATCH_ROWS
        if self._stacked is not None:
            found: Float16s = self._stacked[blocks, rows_M % BATCH_ROWS]
            return found.astype(np.float32)
        vectors = np.empty((len(rows_M), self.dim), np.float32)
        for block in np.unique(blocks):
            here = blocks == block
            vectors[here] = self._blocks[block][rows_M[here] % BATCH_ROWS]
        return vectors

    def iter_batches(
        self, batch_rows: int = BATCH_ROWS, *, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and vectors float32 [n, D] with n <= batch_rows, in id order.

        Args:
            batch_rows: most rows at once.
            start: first row.
            stop: row before which to end; None for the last.
        """
        for ids, stored in self.iter_stored(batch_rows, start=start, stop=stop):
            yield ids, stored.astype(np.float32)

    def iter_stored(
        self, batch_rows: int = BATCH_ROWS, *, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids and the float16 rows as stored, without a copy."""
        end = len(self) if stop is None else min(stop, len(self))
        while start < end:
            block, first = divmod(start, BATCH_ROWS)
            last = min(first + batch_rows, BATCH_ROWS, first + end - start)
            yield self._id_blocks[block][first:last], self._blocks[block][first:last]
            self._touch((last - first) * (2 * self.dim + 8))
            start += last - first

    def _locate(self, ids_M: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each id is or would be, and whether it is there."""
        if self._stacked_ids is None or self._resident_bytes is None:
            rows = np.searchsorted(self.ids, ids_M)
            found = rows < len(self)
            found[found] = self.ids[rows[found]] == ids_M[found]
            return rows, found
        return self._locate_on_disk(self._stacked_ids, ids_M)

    def _locate_on_disk(
        self, stacked: Ids, ids_M: Ids
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """By bisection in the map, for all ids at once."""
        blocks = np.maximum(np.searchsorted(self._firsts, ids_M, side="right") - 1, 0)
        low = np.zeros(len(ids_M), np.intp)
        sizes = np.minimum(BATCH_ROWS, len(self) - blocks * BATCH_ROWS)
        high = sizes.copy()
        while (open_M := low < high).any():
            middle = (low + high) // 2
            smaller = np.zeros(len(ids_M), bool)
            smaller[open_M] = stacked[blocks[open_M], middle[open_M]] < ids_M[open_M]
            low = np.where(open_M & smaller, middle + 1, low)
            high = np.where(open_M & ~smaller, middle, high)
        found = low < sizes
        found[found] = stacked[blocks[found], low[found]] == ids_M[found]
        self._touch(len(ids_M) * FAULT_BYTES)
        return blocks * BATCH_ROWS + low, found

    def _touch(self, num_bytes: int) -> None:
        """Count what a read has mapped, and give it back when it is enough."""
        if self._resident_bytes is None:
            return
        self._touched_bytes += num_bytes
        if self._touched_bytes > self._resident_bytes:
            self._touched_bytes = 0
            self._map.madvise(mmap.MADV_DONTNEED)  # clean pages of a file: they are read again


def _stack(blocks: Sequence[NDArray[Any]]) -> Any:
    """One view [B, BATCH_ROWS, ...] of blocks that lie evenly in memory, else None.

    Batches of equal size do, in a file of ours. Rows past the end of the last are never read.
    """
    if not blocks or not all(len(block) == BATCH_ROWS for block in blocks[:-1]):
        return None
    places = np.array([block.ctypes.data for block in blocks], np.int64)
    steps = np.diff(places)
    if len(steps) and (steps != steps[0]).any():
        return None
    stride = int(steps[0]) if len(steps) else 0
    first = blocks[0]
    return np.lib.stride_tricks.as_strided(
        first,
        (len(blocks), BATCH_ROWS, *first.shape[1:]),
        (stride, *first.strides),
        writeable=False,
    )
