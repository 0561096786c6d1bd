"""How an embedding set differs from what is alive in an index version.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.build import Leave, require_unit
from index.drift import delta_bound
from index.embeddings import EmbeddingStore
from index.id_file import NO_IDS
from index.vector_sets import StoredVectors
from index.vectors import Float16s, Ids, locate, require_ids, rising

__all__ = ["Difference", "Wanted", "compare"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wanted:
    """What of an embedding set an index is to hold.

    Args:
        ids: int64, rising.
        leave: the others.
    """

    ids: Ids
    leave: Leave

    @classmethod
    def of(cls, store: EmbeddingStore, removed: Ids, gone: Ids) -> Wanted:
        """What is left of a set without pictures removed by hand, and those whose file is gone."""
        ids = store.ids()
        absent = rising(gone)
        # What is not embedded any more need not be left out, and would change what it is.
        leave = Leave(removed=removed, gone=absent[locate(ids, absent)[1]])
        return cls(ids=ids[~locate(leave.ids, ids)[1]], leave=leave)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Difference:
    """How an embedding set differs from what is alive in a version.

    Args:
        added: ids that are not alive there.
        replaced: ids that have another vector there.
        gone: ids that are alive there alone.
        vectors: of those added and replaced, by id, float16; None if they are too many for a delta.
    """

    added: Ids
    replaced: Ids
    gone: Ids
    vectors: Float16s | None

    @property
    def is_nothing(self) -> bool:
        """Whether there is none."""
        return not (len(self.added) or len(self.replaced) or len(self.gone))

    @property
    def summary(self) -> str:
        """In a sentence's part."""
        return (
            f"{len(self.added):,} came, {len(self.replaced):,} were replaced, "
            f"{len(self.gone):,} went"
        )


def compare(
    store: EmbeddingStore, wanted: Wanted, vectors: StoredVectors, *, same_set: bool
) -> Difference:
    """Compare what is wanted with what is alive, row by row.

    Args:
        store: the embedding set.
        wanted: which of it.
        vectors: what is alive.
        same_set: whether these came from the same set: then vectors of an id are the same.

    Cost: one pass over the set, or, if nothing came from the same set, over its ids.
    """
    there = vectors.contains(wanted.ids)
    gone = np.setdiff1d(vectors.ids, wanted.ids, assume_unique=True)
    bound = delta_bound(len(vectors))
    pieces: list[Float16s] = []
    replaced: list[Ids] = []
    count = 0
    if not (same_set and there.all()):
        last = -1
        for ids, stored in store.iter_stored():
            require_ids(ids, after=last)
            last = int(ids[-1])
            known, mine = vectors.contains(ids), locate(wanted.ids, ids)[1]
            both, differs = known & mine, mine & ~known
            if not same_set and both.any():
                was = vectors.gather(vectors.rows_of(ids[both]))
                differs[both] = (was != stored[both].astype(np.float32)).any(axis=1)
                replaced.append(ids[both & differs])
            require_unit(store, ids[differs], stored[differs])
            count += int(differs.sum())
            if count <= bound:
                pieces.append(stored[differs])
    empty = np.empty((0, vectors.dim), np.float16)
    return Difference(
        added=wanted.ids[~there],
        replaced=np.concatenate([NO_IDS, *replaced]),
        gone=gone,
        vectors=np.concatenate([empty, *pieces]) if count <= bound else None,
    )
