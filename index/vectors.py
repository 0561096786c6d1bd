"""The vectors of an index version: one Arrow file, sorted by id, memory-mapped.

It holds the float16 vectors as they were embedded: of unit norm but for the rounding, which
`index.rounding` keeps small. They are the corpus; a score is their inner product with a unit query.
Search re-ranks on them, and classifiers train on them. Any Arrow reader opens the file without us.

Shapes: N vectors, D embedding, M rows asked for.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ALIKE",
    "BATCH_ROWS",
    "MAX_ID",
    "VECTORS",
    "Float16s",
    "Floats",
    "Ids",
    "VectorFile",
    "as_ids",
    "locate",
    "numbers_of",
    "require_ids",
    "rising",
    "scaled",
    "unit",
    "widen",
    "without",
]

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Float16s = NDArray[np.float16]

VECTORS = "vectors.arrow"
"""Name of the file in an index version."""

BATCH_ROWS = 16_384
"""Rows of every record batch but the last; row ``r`` lies in batch ``r // BATCH_ROWS``."""

MAX_ID = 2**63 - 2

ALIKE = 1 - 2.0**-11
"""As low may the cosine of two equal vectors be, by numbers that float16 has rounded: no lowest
score above it can be told from it."""

GATHER_ROWS = 4096
"""Rows that are gathered as float16 at once."""

IDS_AT_ONCE = 1 << 16
"""Ids that are looked up at once: each takes some 30 bytes meanwhile."""

WIDENED_AT_ONCE = 1 << 16
"""Numbers that stay in the processor's cache between the steps of widening them."""

SIGN_AND_FIELDS = np.int32(-0x7000_2000)
"""The sign of a float32, and where the 15 other bits of a float16 come to lie."""

EXPONENTS_APART = np.float32(2.0 ** (127 - 15))


def numbers_of(column: pa.Array) -> Any:
    """A column of numbers without nulls, uncopied and read-only.

    Arrow's own ``to_numpy`` would import pandas, which takes longer than to open an index.
    """
    return np.from_dlpack(column)


def rising(*ids: ArrayLike) -> Ids:
    """All of the ids in order, each once, int64 ``[M]``.

    ``np.unique`` and ``np.union1d`` hash whole numbers: 60 times as long for half a million, and
    five times the memory.

    >>> rising([3, 1, 3], [2]).tolist()
    [1, 2, 3]
    """
    found: Ids = np.concatenate([np.asarray(some, np.int64) for some in ids])
    found.sort()
    first = np.ones(len(found), bool)
    np.not_equal(found[1:], found[:-1], out=first[1:])
    return found if first.all() else found[first]


def as_ids(numbers: ArrayLike) -> Ids:
    """Whole numbers as ids, int64; those that int64 cannot hold are no picture's and left out.

    >>> as_ids([7, 2**63, -1]).tolist()
    [7, -1]
    """
    try:
        return np.asarray(numbers, np.int64)
    except OverflowError:
        least, most = -(2**63), 2**63 - 1
        return np.array([i for i in np.asarray(numbers, object) if least <= i <= most], np.int64)


def without(ids_N: Ids, others_M: Ids) -> Ids:
    """Those of the ids that are not among others, which rise; int64, in their order.

    >>> without(np.array([5, 2, 7]), np.array([1, 2, 3])).tolist()
    [5, 7]
    """
    blocks = (ids_N[start : start + IDS_AT_ONCE] for start in range(0, len(ids_N), IDS_AT_ONCE))
    kept = [block[~locate(others_M, block)[1]] for block in blocks]
    return np.concatenate(kept) if kept else ids_N


def locate(all_ids_N: Ids, wanted_M: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where in rising ids, each there once, each of some is or would be, and whether it is there.

    Among ids without gaps a place follows from the id alone, which takes a tenth of the time.
    """
    num_ids = len(all_ids_N)
    if num_ids and int(all_ids_N[-1] - all_ids_N[0]) == num_ids - 1:
        offsets = wanted_M - all_ids_N[0]
        found = (offsets >= 0) & (offsets < num_ids)
        return np.minimum(np.maximum(offsets, 0), num_ids), found
    rows = np.searchsorted(all_ids_N, wanted_M)
    found = rows < num_ids
    found[found] = all_ids_N[rows[found]] == wanted_M[found]
    return rows, found


def scaled(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows times powers of two, so that no norm is too large or too small to be computed.

    >>> float(scaled(np.array([[3e200, 4e200]])).max()) < 1
    True
    """
    _, exponents = np.frexp(np.abs(vectors_ND).max(axis=1, initial=0, keepdims=True))
    half = exponents // 2  # 2 to the power of all of it may be no number
    return np.asarray(np.ldexp(np.ldexp(vectors_ND, -half), half - exponents), np.float64)


def unit(vectors_ND: NDArray[np.floating]) -> Floats:
    """The rows as float32 of unit norm; rows have to be finite and not zero.

    >>> unit(np.array([[3.0, 4.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    vectors = np.asarray(vectors_ND, dtype=np.float32)
    norms: Floats = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    return vectors / norms


def widen(stored_ND: Float16s, *, out: Floats | None = None) -> Floats:
    """The same finite numbers as float32, which every float16 is exactly; into ``out`` if given.

    A float32 with the same fields, moved to where it has them, is too small by a factor that is
    the difference of both exponents' zeros. numpy's own cast takes four times as long.

    >>> widen(np.array([[0.5, -65504.0]], np.float16)).tolist()
    [[0.5, -65504.0]]
    """
    found = np.empty(stored_ND.shape, np.float32) if out is None else out
    step = max(1, WIDENED_AT_ONCE // max(1, found.shape[1]))
    for start in range(0, len(found), step):
        here = found[start : start + step]
        bits = here.view(np.int32)
        np.copyto(bits, stored_ND[start : start + step].view(np.int16))  # the sign goes all the way
        bits <<= 13
        bits &= SIGN_AND_FIELDS
        here *= EXPONENTS_APART
    return found


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


class VectorFile:
    """A file of `index.vector_writer`. Safe to use from many threads.

    Args:
        path: the file.
        mapped: read through a memory map, which is fast. Its pages count as this process's memory
            for as long as the system leaves them there; without, only what is asked for is read.

    Attributes:
        dim: D.
    """

    def __init__(self, path: str | Path, *, mapped: bool = True) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        map_ = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(map_)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.dim = int(reader.schema.field("vector").type.list_size)
        self._blocks = [
            numbers_of(batch.column("vector").flatten()).reshape(-1, self.dim) for batch in batches
        ]
        self._id_blocks: list[Ids] = [numbers_of(batch.column("id")) for batch in batches]
        self._num_rows = sum(map(len, self._id_blocks))
        self._mapped = mapped
        self._stacked = _stack(self._blocks[:-1] or self._blocks)
        self._first_byte = int(np.frombuffer(map_, np.uint8, count=1).ctypes.data)
        self._block_bytes = np.array([self._byte(block) for block in self._blocks], np.int64)

    @functools.cached_property
    def ids(self) -> Ids:
        """All ids int64 [N], rising; 8 bytes a row in memory from the first use on."""
        found = np.empty(len(self), np.int64)
        for start in range(0, len(self), BATCH_ROWS):
            block = self._id_blocks[start // BATCH_ROWS]
            found[start : start + len(block)] = self._read(block)
        return found

    def __len__(self) -> int:
        return self._num_rows

    def rows_of(self, ids_M: Ids) -> NDArray[np.intp]:
        """The row of every id.

        Raises:
            KeyError: an id is not in this file.
        """
        rows, found = locate(self.ids, ids_M)
        if not found.all():
            raise KeyError(f"picture {int(ids_M[~found][0])} has no vector in this index")
        return rows

    def contains(self, ids_M: Ids) -> NDArray[np.bool_]:
        """Which of the ids are in this file, bool [M]."""
        return locate(self.ids, ids_M)[1]

    def gather(self, rows_M: NDArray[np.intp]) -> Floats:
        """The vectors of the given rows as float32 [M, D], in their order."""
        vectors = np.empty((len(rows_M), self.dim), np.float32)
        for start in range(0, len(rows_M), GATHER_ROWS):
            here = slice(start, start + GATHER_ROWS)
            widen(self._stored(rows_M[here]), out=vectors[here])
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
            yield ids, widen(stored)

    def iter_stored(
        self, batch_rows: int = BATCH_ROWS, *, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids and the float16 rows as stored; from a memory map without a copy."""
        end = len(self) if stop is None else min(stop, len(self))
        while start < end:
            block, first = divmod(start, BATCH_ROWS)
            last = min(first + batch_rows, BATCH_ROWS, first + end - start)
            yield (
                self._read(self._id_blocks[block][first:last]),
                self._read(self._blocks[block][first:last]),
            )
            start += last - first

    def _stored(self, rows_M: NDArray[np.intp]) -> Float16s:
        """Copies of the given rows."""
        blocks, places = np.divmod(rows_M, BATCH_ROWS)
        if not self._mapped:
            return self._read_rows(blocks, places)
        if self._stacked is None:
            return np.stack([self._blocks[b][p] for b, p in zip(blocks, places, strict=True)])
        is_last = blocks == len(self._stacked)  # the last block, if it is shorter than the others
        if not is_last.any():
            return np.asarray(self._stacked[blocks, places], np.float16)
        rows: Float16s = self._stacked[np.where(is_last, 0, blocks), places]
        rows[is_last] = self._blocks[-1][places[is_last]]
        return rows

    def _byte(self, view: NDArray[Any]) -> int:
        """Where in the file a view of the map begins."""
        return int(view.ctypes.data) - self._first_byte

    def _read(self, view: NDArray[Any]) -> Any:
        """What a view of the map shows: the view itself, or a copy that was read from the file."""
        if self._mapped:
            return view
        found = np.empty(view.shape, view.dtype)
        self._read_into(found.data.cast("B"), self._byte(view))
        return found

    def _read_rows(self, blocks_M: NDArray[np.intp], places_M: NDArray[np.intp]) -> Float16s:
        found = np.empty((len(blocks_M), self.dim), np.float16)
        buffer, size = found.data.cast("B"), 2 * self.dim
        begins = self._block_bytes[blocks_M] + places_M * size
        for number, begin in enumerate(begins.tolist()):
            self._read_into(buffer[number * size : (number + 1) * size], begin)
        return found

    def _read_into(self, buffer: memoryview, begin: int) -> None:
        if os.preadv(self._file, [buffer], begin) != len(buffer):
            raise OSError(errno.EIO, f"{VECTORS} ends before its rows do. Build the index again.")


def _stack(blocks: Sequence[NDArray[Any]]) -> Any:
    """One view [B, BATCH_ROWS, ...] of blocks that lie evenly in memory, else None.

    Full batches do, in a file of ours.
    """
    places = np.array([block.ctypes.data for block in blocks], np.int64)
    steps = np.diff(places)
    if not blocks or len({block.shape for block in blocks}) > 1 or len(np.unique(steps)) > 1:
        return None
    stride = int(steps[0]) if len(steps) else 0
    return np.lib.stride_tricks.as_strided(
        blocks[0],
        (len(blocks), *blocks[0].shape),
        (stride, *blocks[0].strides),
        writeable=False,
    )
