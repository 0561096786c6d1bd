"""The vectors of an index version: one Arrow file, sorted by id, memory-mapped.

It holds the float16 vectors as they were embedded: unit vectors but for the rounding, which is
below 1e-3. They are the corpus; a score is their inner product with a unit query. Search re-ranks
on them, and classifiers train on them. Any Arrow reader opens the file without us.

Shapes: N vectors, D embedding, M rows asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = [
    "MAX_ID",
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

    Attributes:
        ids: int64 [N], rising.
        dim: D.
    """

    def __init__(self, path: str | Path) -> None:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            self.dim = int(reader.schema.field("vector").type.list_size)
        self._blocks = [
            batch.column("vector").flatten().to_numpy().reshape(-1, self.dim) for batch in batches
        ]
        columns = [batch.column("id").to_numpy() for batch in batches]
        self.ids: Ids = np.concatenate(columns) if columns else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids_M: Ids) -> NDArray[np.intp]:
        """The row of every id.

        Raises:
            KeyError: an id is not in this file.
        """
        found = self.contains(ids_M)
        if not found.all():
            raise KeyError(f"picture {int(ids_M[~found][0])} has no vector in this index")
        return np.searchsorted(self.ids, ids_M)

    def contains(self, ids_M: Ids) -> NDArray[np.bool_]:
        """Which of the ids are in this file, bool [M]."""
        rows = np.searchsorted(self.ids, ids_M)
        found = rows < len(self.ids)
        found[found] = self.ids[rows[found]] == ids_M[found]
        return found

    def gather(self, rows_M: NDArray[np.intp]) -> Floats:
        """The vectors of the given rows as float32 [M, D], in their order."""
        vectors = np.empty((len(rows_M), self.dim), np.float32)
        blocks = rows_M // BATCH_ROWS
        for block in np.unique(blocks):
            here = blocks == block
            vectors[here] = self._blocks[block][rows_M[here] % BATCH_ROWS]
        return vectors

    def slice(self, start: int, stop: int) -> tuple[Ids, Floats]:
        """Ids and vectors of the rows from ``start`` to before ``stop``."""
        return self.ids[start:stop], self.gather(np.arange(start, min(stop, len(self.ids))))

    def iter_rows(
        self, rows_M: NDArray[np.intp], batch_rows: int = BATCH_ROWS
    ) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and vectors float32 [n, D] of some rows, in their order."""
        for start in range(0, len(rows_M), batch_rows):
            rows = rows_M[start : start + batch_rows]
            yield self.ids[rows], self.gather(rows)

    def iter_batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and vectors float32 [n, D] with n <= batch_rows, in id order."""
        for ids, stored in self.iter_stored(batch_rows):
            yield ids, stored.astype(np.float32)

    def iter_stored(self, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids and the float16 rows as stored, without a copy."""
        for number, block in enumerate(self._blocks):
            first = number * BATCH_ROWS
            for start in range(0, len(block), batch_rows):
                rows = block[start : start + batch_rows]
                yield self.ids[first + start : first + start + len(rows)], rows
