"""How an embedding set differs from what is alive in an index version.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.budget import Budget
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
        leave: the pictures that it is not to.
        num_rows: how many are left.
    """

    leave: Leave
    num_rows: int

    @classmethod
    def of(cls, store: EmbeddingStore, removed: Ids, gone: Ids) -> Wanted:
        """What is left of a set without pictures removed by hand, and those whose file is gone.

        Cost: one pass over the set's ids. Memory: of those left out alone.
        """
        absent, num_rows = rising(gone), 0
        is_embedded = np.zeros(len(absent), bool)
        left_out = rising(removed, absent)
        for ids in store.iter_ids():
            first, end = np.searchsorted(absent, [ids[0], ids[-1] + 1])
            is_embedded[first:end] |= locate(ids, absent[first:end])[1]
            num_rows += len(ids) - int(locate(left_out, ids)[1].sum())
        # What is not embedded any more need not be left out, and would change what it is.
        return cls(leave=Leave(removed=removed, gone=absent[is_embedded]), num_rows=num_rows)


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
    store: EmbeddingStore,
    wanted: Wanted,
    vectors: StoredVectors,
    *,
    same_set: bool,
    budget: Budget,
) -> Difference:
    """Compare what is wanted with what is alive, row by row.

    Args:
        store: the embedding set.
        wanted: which of it.
        vectors: what is alive.
        same_set: whether these came from the same set: then vectors of an id are the same.
        budget: memory for what differs.

    Cost: one pass over the set, or, if nothing came from the same set, over its ids. Memory: a byte
    of each row alive, and what differs.
    """
    leave = wanted.leave.ids
    added, gone = _came_and_gone(store, leave, vectors)
    bound = budget.delta_rows(delta_bound(len(vectors)))
    pieces: list[Float16s] = []
    replaced: list[Ids] = []
    count = 0
    if not same_set or len(added):
        last = -1
        for ids, stored in store.iter_stored():
            require_ids(ids, after=last)
            last = int(ids[-1])
            known, mine = vectors.contains(ids), ~locate(leave, ids)[1]
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
        added=added,
        replaced=np.concatenate([NO_IDS, *replaced]),
        gone=gone,
        vectors=np.concatenate([empty, *pieces]) if count <= bound else None,
    )


def _came_and_gone(store: EmbeddingStore, leave: Ids, vectors: StoredVectors) -> tuple[Ids, Ids]:
    """Ids that are wanted and not alive, and those that are alive and not wanted."""
    is_wanted = np.zeros(len(vectors), bool)
    came = [NO_IDS]
    for ids in store.iter_ids():
        mine = ids[~locate(leave, ids)[1]]
        alive = vectors.contains(mine)
        is_wanted[vectors.rows_of(mine[alive])] = True
        came.append(mine[~alive])
    return np.concatenate(came), vectors.ids[~is_wanted]
