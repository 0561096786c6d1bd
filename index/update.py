"""Bring an index up to date: leave it, change it, compact it, or build it anew, and say why.

* Nothing differs: the version in service stays.
* Pictures came, went or were replaced: a changed version (`index.change`), in service at once.
* That would leave too many dead rows, or too large a delta: a compacted one (`index.compact`).
* Another encoder, other settings, or drift: a build (`index.build`). Until it has ended and answers
  its own queries, what was in service stays.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from index.artifact import ArtifactError, Folder, MissingArtifactError
from index.build import Leave, build_id, build_index, require_unit
from index.change import Change, change_version, removed_ids
from index.choose import IndexConfig
from index.compact import LiveQueries, LiveSet, fold
from index.drift import MAX_DEAD, MAX_GROWTH, Drift, delta_bound
from index.embeddings import EmbeddingStore
from index.fill import FillParts, fill_here
from index.id_file import NO_IDS
from index.layers import open_layers
from index.live_queries import Moved
from index.lock import sole_writer
from index.queries import QUERIES, QuerySet
from index.service import put_in_service
from index.vectors import Float16s, Ids, StoredVectors, locate, require_ids
from index.versions import CHANGING, finished_version, open_current

__all__ = ["Updated", "compact_index", "remove_pictures", "update_index"]

logger = logging.getLogger(__name__)

Action = Literal["reused", "changed", "compacted", "built"]
Say = Callable[[str], object]
NO_MOVES = Moved(departed=NO_IDS, arrived=NO_IDS)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Updated:
    """What was done to an index.

    Args:
        version: name of the version in service now.
        door: its door.
        action: what was done.
        why: why that, in a sentence's part.
    """

    version: str
    door: dict[str, Any]
    action: Action
    why: str

    @property
    def drift(self) -> Drift | None:
        """How far the version is from its training; None right after it."""
        stated = self.door.get("drift")
        return Drift.from_json(stated) if stated else None


def update_index(
    store: EmbeddingStore,
    folder: Folder,
    config: IndexConfig,
    *,
    queries: EmbeddingStore | None = None,
    fill: FillParts = fill_here,
    gone: Ids = NO_IDS,
    restored: Ids = NO_IDS,
    rebuild: bool = False,
    say: Say = logger.info,
) -> Updated:
    """Have an index hold just what an embedding set does, but for what was removed from it.

    Args:
        store: the embedding set.
        folder: the index's folder, on a local or shared disk.
        config: what the index has to achieve.
        queries: as for `index.build.build_index`.
        fill: does the jobs of parts.
        gone: ids whose file is not there any more, though they may still be embedded.
        restored: ids that were removed by hand, and are to be back.
        rebuild: build anew, whatever is there.
        say: is told what is done before it takes long.

    Raises:
        ValueError: as from `build_index`; another process is building or changing the index.
        CorruptArtifactError: the embedding set's files are damaged.
        OSError: the disk is full.

    Cost: one pass over the embedding set to find what changed; then see `change_version`, `fold`
    and `build_index`.
    """
    with sole_writer(folder, CHANGING):
        current = _in_service(folder)
        removed = NO_IDS if current is None else removed_ids(folder / current[0], current[1])
        wanted = _Wanted.of(store, np.setdiff1d(removed, restored), gone)
        why = _why_anew(store, config, queries, current)
        if current is not None and not rebuild and why is None:
            done, why = _follow(store, folder, wanted, *current, queries=queries, fill=fill)
            if done is not None and why is None:
                return done
    say(f"Building the index anew: {why if not rebuild else 'asked for'}")
    door = build_index(
        store, folder, config, queries=queries, fill=fill, leave=wanted.leave, again=rebuild
    )
    action: Action = "reused" if door["reused"] else "built"
    return Updated(version=door["version"], door=door, action=action, why=why or "asked for")


def remove_pictures(folder: Folder, ids: Ids) -> Updated:
    """Have pictures be no results any more, from the next search on.

    They stay out of later versions too, whatever the embedding set holds, until they are restored
    (``restored`` of `update_index`).

    Args:
        folder: the index's folder.
        ids: ids int64; those that the index does not have are passed over.

    Raises:
        ValueError: no picture would be left; another process is building or changing the index.
        MissingArtifactError: no version is in service.
        CorruptArtifactError: the one in service is damaged.
    """
    with sole_writer(folder, CHANGING):
        version, door = open_current(folder, verify="sizes")
        inside = folder / version
        vectors = open_layers(inside, door).vectors
        wanted = np.unique(np.asarray(ids, np.int64))
        here = wanted[vectors.contains(wanted)]
        if not len(here):
            return Updated(version=version, door=door, action="reused", why="none of them is in it")
        if len(here) == len(vectors):
            raise ValueError(
                f"{folder}: all {len(vectors):,} pictures are to be removed, and an index needs "
                "one. To be rid of the index, delete its folder."
            )
        change = Change(
            gone=here,
            ids=NO_IDS,
            vectors=np.empty((0, vectors.dim), np.float16),
            removed=np.union1d(removed_ids(inside, door), here),
        )
        name, made = change_version(folder, version, door, change)
        put_in_service(folder, name, made)
    return Updated(version=name, door=made, action="changed", why=f"{len(here):,} removed")


def compact_index(
    folder: Folder, *, retrain: bool = False, fill: FillParts = fill_here, say: Say = logger.info
) -> Updated:
    """Fold an index's delta into its parts and drop dead rows; train anew where it has drifted.

    Args:
        folder: the index's folder.
        retrain: build anew from its own vectors, drift or no drift.
        fill: does the jobs of parts.
        say: is told what is done before it takes long.

    Raises:
        MissingArtifactError: no version is in service.
        CorruptArtifactError: the one in service is damaged.
        ValueError: another process is building or changing the index.

    Cost: see `fold`, or `build_index`.
    """
    with sole_writer(folder, CHANGING):
        version, door = open_current(folder)
        inside = folder / version
        drift = Drift.from_json(door["drift"]) if door.get("drift") else None
        source = LiveSet(inside, door, open_layers(inside, door).vectors)
        leave = Leave(removed=removed_ids(inside, door), gone=NO_IDS)
        drifted = drift is not None and drift.remedy == "retrain"
        if not (retrain or drifted):
            if not door.get("delta") and not door.get("dead"):
                return Updated(
                    version=version, door=door, action="reused", why="it is compact already"
                )
            say("Compacting: lists and codes stay as they are")
            name, made = fold(folder, version, door, source, leave, NO_MOVES, fill)
            put_in_service(folder, name, made)
            return Updated(version=name, door=made, action="compacted", why=_layers_of(door))
        asked = None
        if door["queries"]["embeddings_id"] is not None:
            path = inside.local_path(QUERIES)
            asked = LiveQueries(inside, door, QuerySet.read(path))
    why = "asked for" if retrain or drift is None else drift.why
    say(f"Training anew: {why}")
    config = IndexConfig(**door["config"])
    # Its files stay: a build deletes no version before the next one is in service.
    built = build_index(
        source, folder, config, queries=asked, fill=fill, leave=leave, again=True
    )
    return Updated(version=built["version"], door=built, action="built", why=why)


def _layers_of(door: Mapping[str, Any]) -> str:
    delta, dead = door.get("delta"), door.get("dead")
    return (
        f"{delta['rows'] if delta else 0:,} rows of the delta folded in, "
        f"{dead['rows'] if dead else 0:,} dead ones dropped"
    )


def _in_service(folder: Folder) -> tuple[str, dict[str, Any]] | None:
    try:
        return open_current(folder, verify="sizes")
    except MissingArtifactError:
        return None
    except ArtifactError as error:  # damaged: to be replaced
        logger.info("no usable index in service: %s", error)
        return None


def _why_anew(
    store: EmbeddingStore,
    config: IndexConfig,
    queries: EmbeddingStore | None,
    current: tuple[str, Mapping[str, Any]] | None,
) -> str | None:
    """Why no change leads from the version in service to what is wanted; None if one does."""
    if current is None:
        return "no version is in service, or it is damaged"
    door = current[1]
    parents = door["parents"]
    asked = door.get("queries", {}).get("embeddings_id")
    if "queries" not in door:
        return "the version in service is of an older lookalike"
    if (parents["encoder_id"], door["layer"], door["dim"]) != (
        store.encoder_id,
        store.layer,
        store.dim,
    ):
        return "the vectors are of another encoder or layer"
    if parents.get("corpus_uid") != store.parents.get("corpus_uid"):
        return "the pictures are of another corpus"
    if door["config"] != asdict(config):
        return "its settings are others"
    if asked != (None if queries is None else queries.id):
        return "its recall was measured on other queries"
    return None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Wanted:
    """What of an embedding set an index is to hold.

    Args:
        ids: int64, rising.
        leave: the others.
    """

    ids: Ids
    leave: Leave

    @classmethod
    def of(cls, store: EmbeddingStore, removed: Ids, gone: Ids) -> _Wanted:
        ids = store.ids()
        absent = np.unique(gone)
        # What is not embedded any more need not be left out, and would change what it is.
        leave = Leave(removed=removed, gone=absent[locate(ids, absent)[1]])
        return cls(ids=ids[~locate(leave.ids, ids)[1]], leave=leave)


def _follow(
    store: EmbeddingStore,
    folder: Folder,
    wanted: _Wanted,
    version: str,
    door: dict[str, Any],
    *,
    queries: EmbeddingStore | None,
    fill: FillParts,
) -> tuple[Updated | None, str | None]:
    """Reuse, change or compact the version in service; or why it has to be built anew."""
    inside = folder / version
    vectors = open_layers(inside, door).vectors
    same_set = door["parents"]["embeddings_id"] == store.id
    found = _compare(store, wanted, vectors, same_set=same_set)
    removed_before = removed_ids(inside, door)
    same_list = np.array_equal(removed_before, wanted.leave.removed)
    if found.is_nothing and same_set and same_list:
        return Updated(version=version, door=door, action="reused", why="nothing changed"), None
    config = IndexConfig(**door["config"])
    finished = finished_version(folder, build_id(store, config, queries, wanted.leave))
    if finished is not None:
        return None, f"{finished[0]} was built of the same"
    if not len(wanted.ids):
        return None, "nothing is left of it"
    trained = door.get("trained", {}).get("rows", door["rows"])
    if len(wanted.ids) > MAX_GROWTH * trained:
        return None, f"it was trained for {trained:,} rows, and there are {len(wanted.ids):,}"
    if found.vectors is None or _num_dead(door, found, vectors) > MAX_DEAD * _base_rows(door):
        moved = Moved(
            departed=np.union1d(found.gone, found.replaced),
            arrived=np.union1d(found.added, found.replaced),
        )
        name, made = fold(folder, version, door, store, wanted.leave, moved, fill)
        action: Action = "compacted"
        why = "too many rows are dead" if found.vectors is not None else "the delta would be long"
    else:
        change = Change(
            gone=found.gone,
            ids=np.union1d(found.added, found.replaced),
            vectors=found.vectors,
            removed=wanted.leave.removed,
            parents={**store.parents, "embeddings_id": store.id},
        )
        name, made = change_version(folder, version, door, change)
        action, why = "changed", found.summary
    put_in_service(folder, name, made)
    drift = Drift.from_json(made["drift"])
    if drift.remedy == "retrain":
        return None, f"{name} is in service, and {drift.why}"
    return Updated(version=name, door=made, action=action, why=why), None


def _base_rows(door: Mapping[str, Any]) -> int:
    return sum(part["rows"] for part in door["parts"])


def _num_dead(door: Mapping[str, Any], found: _Difference, vectors: StoredVectors) -> int:
    """About how many rows of the base would be dead: those of the delta that depart count too."""
    dead = door.get("dead")
    return (dead["rows"] if dead else 0) + len(found.gone) + len(found.replaced)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Difference:
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


def _compare(
    store: EmbeddingStore, wanted: _Wanted, vectors: StoredVectors, *, same_set: bool
) -> _Difference:
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
    pieces: list[tuple[Ids, Float16s]] = []
    replaced: list[Ids] = []
    count = 0
    if not (same_set and there.all()):
        last = -1
        for ids, stored in store.iter_stored():
            require_ids(ids, after=last)
            last = int(ids[-1])
            mine = locate(wanted.ids, ids)[1]
            ids, stored = ids[mine], stored[mine]
            known = vectors.contains(ids)
            differs = ~known
            if not same_set and known.any():
                rows = vectors.rows_of(ids[known])
                same = (vectors.gather(rows) == stored[known].astype(np.float32)).all(axis=1)
                replaced.append(ids[known][~same])
                differs[known] = ~same
            require_unit(store, ids[differs], stored[differs])
            count += int(differs.sum())
            if count <= bound:
                pieces.append((ids[differs], stored[differs]))
    empty = np.empty((0, vectors.dim), np.float16)
    return _Difference(
        added=wanted.ids[~there],
        replaced=np.concatenate([NO_IDS, *replaced]),
        gone=gone,
        vectors=np.concatenate([empty, *(rows for _, rows in pieces)]) if count <= bound else None,
    )
