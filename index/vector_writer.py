"""Writes the file that `index.vectors` reads.

Shapes: N vectors, D embedding.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
import pyarrow as pa

from index.vectors import BATCH_ROWS, Float16s, Ids, require_ids

__all__ = ["VectorWriter"]


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
