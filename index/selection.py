"""Some of an index's pictures: those that may be results of a search.

Shapes: N rows of the index, M of them selected.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.vectors import Ids, locate, rising

__all__ = ["Living", "Selection", "not_any_of", "selector_of"]

faiss: Any = faiss_library  # its type stubs do not know selectors made of arrays

MAX_BITS_PER_ID = 64
"""A bitmap as long as the highest id; where ids lie thinner than this, FAISS's hash set instead."""


class Selection:
    """Which pictures of one index version may be results. Thread-safe; made once, used often.

    Attributes:
        rows: their rows in the index's vector file, intp [M], rising.
        ids: their ids, int64 [M], rising.
    """

    def __init__(self, all_ids_N: Ids, rows_M: NDArray[np.intp]) -> None:
        self._all_ids = all_ids_N
        self.rows = rows_M
        # Of all, their ids are the index's own, which need no second copy.
        self.ids: Ids = all_ids_N if len(rows_M) == len(all_ids_N) else all_ids_N[rows_M]

    @classmethod
    def of_ids(cls, all_ids_N: Ids, wanted: Ids) -> Selection:
        """Those of ``wanted`` that the index has, in any order and number.

        Args:
            all_ids_N: int64 ids of the index, rising.
            wanted: int64 ids; unknown ones are left out, as a corpus grows after its index.
        """
        rows, known = locate(all_ids_N, rising(wanted))
        return cls(all_ids_N, rows[known])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        """Of its rows and ids."""
        return self.rows.nbytes + self.ids.nbytes

    def require_of(self, all_ids_N: Ids) -> None:
        """Check that the selection was made of these ids: another version has other rows.

        Raises:
            ValueError: it was not.
        """
        if self._all_ids is not all_ids_N and not np.array_equal(self._all_ids, all_ids_N):
            raise ValueError(
                f"a selection of an index of {len(self._all_ids):,} pictures, given to a search of "
                f"{len(all_ids_N):,} others. Select from the version that is searched."
            )

    def without(self, exclude: Ids) -> Selection:
        """The same but for some ids; itself if it has none of them."""
        excluded = exclude[self.contains(exclude)]
        if not len(excluded):
            return self
        return Selection(self._all_ids, self.rows[~np.isin(self.ids, excluded)])

    def both(self, other: Selection | Living) -> Selection:
        """The pictures that are in this selection and in another one of the same version."""
        return Selection(self._all_ids, self.rows[other.contains(self.ids)])

    def contains(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of the ids are selected."""
        return locate(self.ids, ids)[1]

    @cached_property
    def selector(self) -> Any:
        """FAISS's selector of these ids; searches may share it."""
        return selector_of(self.ids, len(self._all_ids))


class Living:
    """The rows of an index that may be results at all: all but dead ones. Thread-safe.

    Args:
        all_ids_N: int64 ids of the index, rising.
        dead_ids: those that are no results any more, rising, all of them in the index.
    """

    def __init__(self, all_ids_N: Ids, dead_ids: Ids) -> None:
        self._all_ids = all_ids_N
        self._dead_ids = dead_ids

    def __len__(self) -> int:
        return len(self._all_ids) - len(self._dead_ids)

    def contains(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of the ids are alive."""
        return np.asarray(locate(self._all_ids, ids)[1] & ~locate(self._dead_ids, ids)[1], np.bool_)

    @cached_property
    def selector(self) -> Any:
        """FAISS's selector of these ids, among those of the index; searches may share it."""
        highest = int(self._all_ids[-1]) if len(self._all_ids) else 0
        if highest > MAX_BITS_PER_ID * len(self._all_ids) + 1024:
            return not_any_of(self._dead_ids, len(self._all_ids))
        bits = np.ones(highest + 1, np.uint8)
        bits[self._dead_ids] = 0
        return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))


def not_any_of(exclude: Ids, num_rows: int, live: Any = None) -> Any:
    """FAISS's selector of all ids but some.

    Args:
        exclude: int64 ids, rising; those that the index does not have do no harm.
        num_rows: pictures of the index.
        live: FAISS's selector of the ids among which to leave them out; None for all.
    """
    others = faiss.IDSelectorNot(selector_of(exclude[exclude >= 0], num_rows))
    return others if live is None else faiss.IDSelectorAnd(others, live)


def selector_of(ids_M: Ids, num_rows: int) -> Any:
    """FAISS's selector of some ids, int64 and rising, of an index of so many rows."""
    highest = int(ids_M[-1]) if len(ids_M) else 0
    if highest > MAX_BITS_PER_ID * num_rows + 1024:
        return faiss.IDSelectorBatch(ids_M)
    bits = np.zeros(highest + 1, np.uint8)
    bits[ids_M] = 1
    return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
