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
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from index.artifact import ArtifactError, MissingArtifactError, NewerSchemaError
from index.budget import give_back
from index.build import Build, Leave, build_id
from index.change import Change, change_version
from index.choose import IndexConfig
from index.compact import LiveSet, build_of_living, fold, living
from index.difference import Difference, Wanted, compare
from index.drift import MAX_DEAD, MAX_GROWTH, Drift, delta_bound
from index.embeddings import EmbeddingStore
from index.fill import FillParts, fill_here
from index.folder import Folder
from index.id_file import NO_IDS
from index.live_queries import Moved
from index.lock import sole_writer
from index.removed import removed_despite_damage, removed_ids
from index.room import no_room_to
from index.service import put_in_service
from index.vectors import Ids, rising, without
from index.versions import CHANGING, CURRENT, Standing, finished_version, open_current

__all__ = ["Instructions", "Updated", "compact_index", "require_changeable", "update_index"]

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
        unknown: ids that were named and that this could do nothing for, rising.
    """

    version: str
    door: dict[str, Any]
    action: Action
    why: str
    unknown: Ids = field(default_factory=lambda: NO_IDS)

    @property
    def drift(self) -> Drift | None:
        """How far the version is from its training; None right after it."""
        stated = self.door.get("drift")
        return Drift.from_json(stated) if stated else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Instructions:
    """What to heed when an index is brought up to date.

    Args:
        gone: ids whose file is not there any more, though they may still be embedded.
        restored: ids that were removed by hand, and are to be back.
        rebuild: build anew, whatever is there.
        say: is told what is done before it takes long.
    """

    gone: Ids = field(default_factory=lambda: NO_IDS)
    restored: Ids = field(default_factory=lambda: NO_IDS)
    rebuild: bool = False
    say: Say = logger.info


def update_index(
    store: EmbeddingStore,
    folder: Folder,
    config: IndexConfig,
    *,
    queries: EmbeddingStore | None = None,
    fill: FillParts = fill_here,
    told: Instructions = Instructions(),
) -> Updated:
    """Have an index hold just what an embedding set does, but for what was removed from it.

    Args:
        store: the embedding set.
        folder: the index's folder, on a local or shared disk.
        config: what the index has to achieve.
        queries: as for `index.build.build_index`.
        fill: does the jobs of parts.
        told: what to heed.

    Raises:
        ValueError: as from `build_index`; another process is building or changing the index.
        CorruptArtifactError: the embedding set's files are damaged; the version in service is,
            and with it the list of what was removed by hand.
        NewerSchemaError: a newer lookalike made the version in service.
        OSError: the disk is full.

    Cost: one pass over the files of the version in service, to find damage, and one over the
    embedding set, to find what changed; then see `change_version`, `fold` and `build_index`.
    """
    with sole_writer(folder, CHANGING):
        before = _in_service(folder)
        wanted = Wanted.of(store, _to_stay_out(folder, before, told.restored), told.gone)
        is_first = not folder.exists(CURRENT)
        why = "asked for" if told.rebuild else _why_anew(store, config, queries, before)
        if before is not None and why is None:
            done, why = _follow(store, before, wanted, queries, fill)
            if done is not None:
                return done
        if is_first:
            why = "it is the first version"
        else:
            told.say(f"Building the index anew: {why}")
        give_back()
        build = Build(store, folder, config, queries, fill, wanted.leave)
        found = None if told.rebuild else build.find()
        door = found or build.publish()
    action: Action = "built" if found is None else "reused"
    return Updated(version=door["version"], door=door, action=action, why=str(why))


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
        ValueError: the index's memory is too little for a build; another process is building or
            changing the index.

    Cost: see `fold`, or `build_index`.
    """
    with sole_writer(folder, CHANGING):
        version, door = open_current(folder)
        before = Standing(folder, version, door)
        require_changeable(before)
        drift = Drift.from_json(door["drift"]) if door.get("drift") else None
        leave = Leave(removed=removed_ids(before), gone=NO_IDS)
        why = _why_retrain(drift, door, retrain=retrain)
        if why is None:
            if not door.get("delta") and not door.get("dead"):
                return Updated(
                    version=version, door=door, action="reused", why="it is compact already"
                )
            say("Compacting: lists and codes stay as they are")
            name, made = fold(before, LiveSet(before.folder, door), leave, NO_MOVES, fill)
            put_in_service(folder, name, made)
            return Updated(version=name, door=made, action="compacted", why=_layers_of(door))
        say(f"Training anew: {why}")
        built = build_of_living(before, leave, fill)
    return Updated(version=built["version"], door=built, action="built", why=why)


def _why_retrain(drift: Drift | None, door: Mapping[str, Any], *, retrain: bool) -> str | None:
    """Why lists and codes cannot stay as they are; None if they can."""
    if retrain:
        return "asked for"
    if drift is not None and drift.remedy == "retrain":
        return drift.why
    is_layered = door.get("delta") or door.get("dead")
    return no_room_to("compact", door) or None if is_layered else None


def require_changeable(before: Standing) -> None:
    """Check that a version has the queries by which a change is measured.

    Raises:
        ValueError: it is of an older lookalike, which kept none.
    """
    if "queries" not in before.door:
        raise ValueError(
            f"{before.folder}: made by an older lookalike, and lacks the queries that a changed "
            "version is measured by. Build it again: lookalike index --rebuild"
        )


def _layers_of(door: Mapping[str, Any]) -> str:
    delta, dead = door.get("delta"), door.get("dead")
    return (
        f"{delta['rows'] if delta else 0:,} rows of the delta folded in, "
        f"{dead['rows'] if dead else 0:,} dead ones dropped"
    )


def _to_stay_out(folder: Folder, before: Standing | None, restored: Ids) -> Ids:
    """What was removed by hand but for what is to be back, rising."""
    removed = removed_despite_damage(folder) if before is None else removed_ids(before)
    return without(removed, restored)


def _in_service(folder: Folder) -> Standing | None:
    """The version in service, whole; its vectors are about to be compared, and to be answered by.

    Raises:
        NewerSchemaError: this lookalike does not know what it would replace.
    """
    try:
        return Standing.in_service(folder, base="full")
    except NewerSchemaError:
        raise
    except MissingArtifactError:
        return None
    except ArtifactError as error:  # damaged: to be replaced
        logger.info("no usable index in service: %s", error)
        return None


def _why_anew(
    store: EmbeddingStore,
    config: IndexConfig,
    queries: EmbeddingStore | None,
    before: Standing | None,
) -> str | None:
    """Why no change leads from the version in service to what is wanted; None if one does."""
    if before is None:
        return "the version in service is damaged"
    door = before.door
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


def _follow(
    store: EmbeddingStore,
    before: Standing,
    wanted: Wanted,
    queries: EmbeddingStore | None,
    fill: FillParts,
) -> tuple[Updated | None, str | None]:
    """Reuse, change or compact the version in service; or say why it has to be built anew."""
    door = before.door
    same_set = door["parents"]["embeddings_id"] == store.id
    config = IndexConfig(**door["config"])
    budget = config.budget(store.dim)
    trained = door.get("trained", {}).get("rows", door["rows"])
    has_outgrown = wanted.num_rows > MAX_GROWTH * trained
    if not has_outgrown:  # else it is built at any rate, and a build has no room for what differs
        found = compare(
            store, wanted, living(before.folder, door), same_set=same_set, budget=budget
        )
        give_back()
        same_list = np.array_equal(removed_ids(before), wanted.leave.removed)
        if found.is_nothing and same_set and same_list:
            nothing = "nothing changed"
            return Updated(version=before.name, door=dict(door), action="reused", why=nothing), None
    finished = finished_version(before.index, build_id(store, config, queries, wanted.leave))
    if finished is not None:
        return None, f"{finished[0]} was built of the same"
    if not wanted.num_rows:
        return None, "nothing is left of it"
    if has_outgrown:
        return None, f"it was trained for {trained:,} rows, and there are {wanted.num_rows:,}"
    if no_room := no_room_to("change", door):
        return None, no_room
    done = _changed(store, before, wanted, found, fill)
    give_back()
    put_in_service(before.index, done.version, done.door)
    # A change can wait: its delta is exact. What had to be compacted is done for good.
    drift = done.drift
    if done.action == "compacted" and drift is not None and drift.remedy == "retrain":
        return None, f"{done.version} is in service, and {drift.why}"
    return done, None


def _changed(
    store: EmbeddingStore,
    before: Standing,
    wanted: Wanted,
    found: Difference,
    fill: FillParts,
) -> Updated:
    """Change the version in service, or compact it where that would leave too much in layers."""
    dead = before.door.get("dead")
    num_dead = (dead["rows"] if dead else 0) + len(found.gone) + len(found.replaced)
    base_rows = sum(part["rows"] for part in before.door["parts"])
    delta = before.door.get("delta")
    num_delta = (delta["rows"] if delta else 0) + len(found.added) + len(found.replaced)
    arrived = rising(found.added, found.replaced)
    budget = IndexConfig(**before.door["config"]).budget(store.dim)
    too_long = found.vectors is None or num_delta > budget.delta_rows(delta_bound(base_rows))
    if found.vectors is None or too_long or num_dead > MAX_DEAD * base_rows:
        why = (
            f"{num_delta:,} rows are too many for a delta"
            if too_long
            else f"{num_dead:,} of {base_rows:,} rows would be dead"
        )
        moved = Moved(departed=rising(found.gone, found.replaced), arrived=arrived)
        name, door = fold(before, store, wanted.leave, moved, fill)
        return Updated(version=name, door=door, action="compacted", why=why)
    change = Change(
        gone=found.gone,
        ids=arrived,
        vectors=found.vectors,
        removed=wanted.leave.removed,
        parents={**store.parents, "embeddings_id": store.id},
    )
    name, door = change_version(before, change)
    return Updated(version=name, door=door, action="changed", why=found.summary)
