"""What gives vectors, whoever keeps them: streamed, by id and row, or as a set with an identity.

Shapes: N vectors, D embedding, M rows asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.folder import Folder
from index.vectors import BATCH_ROWS, Float16s, Floats, Ids

__all__ = ["Askable", "NamedSet", "StoredVectors", "VectorSet", "VectorSource", "iter_rows"]


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


class StoredVectors(Protocol):
    """The vectors of an index by id and by row: of a `VectorFile`, or of what is alive of some."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def ids(self) -> Ids:
        """All ids int64 [N], rising."""

    def __len__(self) -> int: ...

    def rows_of(self, ids_M: Ids) -> NDArray[np.intp]:
        """The row of every id; ``KeyError`` names one that is not there."""

    def contains(self, ids_M: Ids) -> NDArray[np.bool_]:
        """Which of the ids are there, bool [M]."""

    def gather(self, rows_M: NDArray[np.intp]) -> Floats:
        """The vectors of the given rows as float32 [M, D], in their order."""

    def iter_batches(self, batch_rows: int = ...) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and vectors float32 [n, D] of all rows, in id order."""


def iter_rows(
    vectors: StoredVectors, rows_M: NDArray[np.intp], batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[Ids, Floats]]:
    """Stream ids [n] and vectors float32 [n, D] of some rows, in their order."""
    for start in range(0, len(rows_M), batch_rows):
        rows = rows_M[start : start + batch_rows]
        yield vectors.ids[rows], vectors.gather(rows)


class NamedSet(Protocol):
    """Vectors that know where they come from."""

    @property
    def folder(self) -> Folder:
        """Where they lie, for messages."""

    @property
    def id(self) -> str:
        """Identity of the embedding set that they are, or follow."""

    @property
    def parents(self) -> dict[str, str]:
        """What that was made from; ``embeddings`` is its name."""

    @property
    def num_rows(self) -> int:
        """Vectors that it streams."""


class VectorSet(NamedSet, Protocol):
    """What an index is built of: an `EmbeddingStore`, or what is alive in a version."""

    @property
    def content(self) -> str:
        """Identity of just these vectors: a set's own, but where it is not all of it."""

    @property
    def layer(self) -> str:
        """Layer of the encoder."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def mean(self) -> Floats:
        """Mean of all vectors, float32 [D]."""

    def iter_stored(self) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids, rising, and unit vectors float16 [n, D]."""


class Askable(NamedSet, Protocol):
    """Where queries from outside the corpus come from: an embedding set, or those of a version."""

    def iter_batches(self) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids and unit vectors float32 [n, D]."""
