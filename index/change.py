"""Change an index: pictures that came, went or were replaced make a new version beside the old.

The new version takes over the files that stay by links (`Folder.link`): vectors and FAISS parts of
the last build, its *base*. Beside them lie its own: the *delta*, all rows that came since, compared
in full by every search; the ids of rows of the base that are *dead*; the queries. So a version
never changes, one rename puts it in service, readers keep theirs, and a rollback undoes it.

Shapes: D embedding, A arrived rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.artifact import digest, library_versions, publish
from index.budget import give_back
from index.card import PAGE, card_page, measured, settings_of, write_page
from index.choose import IndexConfig, exact_recipe
from index.drift import Drift, code_errors, delta_bound, imbalance, worse_by
from index.folder import FileRecord, Folder
from index.id_file import NO_IDS, read_ids, write_ids
from index.layers import LayeredRanker, open_ranker
from index.live_queries import InService, Moved, follow_queries, judge_again, query_rate
from index.part import Part
from index.queries import QUERIES, QuerySet
from index.rank import Ranker
from index.removed import REMOVED
from index.template import train_template
from index.vector_sets import StoredVectors, iter_rows
from index.vector_writer import VectorWriter
from index.vectors import VECTORS, Float16s, Floats, Ids, VectorFile, rising, without
from index.versions import Standing, new_version

__all__ = [
    "DOOR_OWN",
    "LAYERED_SCHEMA",
    "Change",
    "change_version",
    "drawn",
    "first_part",
    "list_sizes",
    "trained_state",
]

DELTA, DELTA_PART, DEAD = "delta.arrow", "delta.faiss", "dead.arrow"
DOOR_OWN = ("kind", "schema_version", "created_at", "files", "door_sha256")
LAYERED_SCHEMA = 2
"""A reader that knows only schema 1 would search the base alone, dead rows included."""
DRIFT_SAMPLE = 2048

Searched = Ranker | LayeredRanker


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Change:
    """What a version is to differ in from the one in service.

    Args:
        gone: living ids int64 that are to be no results any more, rising.
        ids: ids int64 [A] that are to have these vectors, living or not, rising.
        vectors: unit vectors float16 [A, D].
        removed: all ids that are left out by hand from now on, rising.
        parents: of the embedding set that it follows; None to stay with the old one's.
    """

    gone: Ids
    ids: Ids
    vectors: Float16s
    removed: Ids
    parents: Mapping[str, str] | None = None


def change_version(before: Standing, change: Change) -> tuple[str, dict[str, Any]]:
    """Publish a version that differs from another; it is not put in service. Call as `sole_writer`.

    Args:
        before: the one to differ from, as from `Standing.in_service`.
        change: the difference.

    Returns:
        Name and door of the new version.

    Cost: it writes the delta and the queries; measuring recall takes a pass over the stored vectors
    if an exact answer lost a picture.
    """
    return _Changing(before, change).run()


class _Changing:
    """One change of one version."""

    def __init__(self, before: Standing, change: Change) -> None:
        door = before.door
        self._old, self._version, self._door, self._change = (
            before.folder,
            before.name,
            door,
            change,
        )
        self._name = new_version(before.index)
        self._new = (before.index / self._name).make()
        self._config = IndexConfig(**door["config"])
        self._sparing = self._config.memory is not None
        self._base = VectorFile(self._old.local_path(VECTORS), mapped=not self._sparing)
        self._before = self._opened(self._old, door).vectors
        self._files: dict[str, FileRecord] = {}
        here = self._before.contains(change.ids)
        self._departed = rising(change.gone, change.ids[here])

    def run(self) -> tuple[str, dict[str, Any]]:
        """Write all files of the version, and last its door."""
        door = self._door
        for name in [VECTORS, *(part["file"] for part in door["parts"])]:
            self._new.link(name, self._old)
            self._files[name] = door["files"][name]
        layers = self._write_layers()
        body = {key: value for key, value in door.items() if key not in DOOR_OWN} | layers
        after = self._opened(self._new, body)
        moved = Moved(departed=self._departed, arrived=self._change.ids)
        old_queries = QuerySet.read(self._old.local_path(QUERIES))
        trained = trained_state(self._old, door, lambda: self._before, old_queries)
        queries, trained["query_rate"] = follow_queries(
            old_queries, after.vectors, moved, trained["query_rate"], self._config
        )
        self._files[QUERIES] = self._new.write_hashed(QUERIES, queries.write)
        give_back()
        body |= self._described(after, queries, body, trained)
        page = card_page(self._name, body)
        self._files[PAGE] = self._new.write_hashed(PAGE, partial(write_page, text=page))
        return self._name, publish(self._new, "index", body, self._files)

    def _opened(self, folder: Folder, body: Mapping[str, Any]) -> Searched:
        """A version of this base, whose vectors and their ids are opened once."""
        return open_ranker(folder, body, sparing=self._sparing, base=self._base)

    def _write_layers(self) -> dict[str, Any]:
        """Write delta, dead and removed ids; what the door says of them."""
        change = self._change
        again = self._as_in_base()
        dead = rising(self._dead_before(), self._departed[self._base.contains(self._departed)])
        dead = without(dead, change.ids[again])
        ids, vectors = self._delta(change.ids[~again], change.vectors[~again])
        found: dict[str, Any] = {"delta": None, "dead": None, "removed": None}
        if len(ids):
            found["delta"] = {"file": DELTA, "part": DELTA_PART, "rows": len(ids)}
            self._files[DELTA] = self._new.write_hashed(DELTA, write_rows(ids, vectors))
            template = train_template(exact_recipe(""), self._base.dim, np.empty((0, 1), "f4"))
            part = Part.fill(template, [(ids, vectors.astype(np.float32))])
            self._files[DELTA_PART] = self._new.write_hashed(DELTA_PART, part.write)
        for kind, name, listed in (("dead", DEAD, dead), ("removed", REMOVED, change.removed)):
            if len(listed):
                found[kind] = {"file": name, "rows": len(listed)}
                self._files[name] = self._new.write_hashed(name, partial(write_ids, ids=listed))
        return found

    def _dead_before(self) -> Ids:
        dead = self._door.get("dead")
        return read_ids(self._old.local_path(dead["file"])) if dead else NO_IDS

    def _as_in_base(self) -> Any:
        """Which of the ids come with just the vector that the base has of them."""
        ids, vectors = self._change.ids, self._change.vectors
        same = self._base.contains(ids)
        stored = self._base.gather(self._base.rows_of(ids[same]))
        same[same] = (stored == vectors[same].astype(np.float32)).all(axis=1)
        return same

    def _delta(self, ids: Ids, vectors: Float16s) -> tuple[Ids, Float16s]:
        """What stays of the delta before, and these."""
        stated = self._door.get("delta")
        if stated:
            before = VectorFile(self._old.local_path(stated["file"]))
            stay = np.flatnonzero(~np.isin(before.ids, self._departed))
            ids = np.concatenate([before.ids[stay], ids])
            vectors = np.concatenate([before.gather(stay).astype(np.float16), vectors])
        order = np.argsort(ids)
        return ids[order], vectors[order]

    def _described(
        self, after: Searched, queries: QuerySet, layers: Mapping[str, Any], trained: dict[str, Any]
    ) -> dict[str, Any]:
        """The door's body beside the layers: identity, counts, recall and drift."""
        door, config, change = self._door, self._config, self._change
        judging = queries.half(judging=True)
        looked = InService(after, door["recipe"]["kind"], after.lossy)
        judgement = judge_again(looked, door, judging, config.target_recall)
        parents = door["parents"] if change.parents is None else dict(change.parents)
        parts_bytes = sum(
            self._files[name]["bytes"] for name in self._files if name.endswith(".faiss")
        )
        rows = len(after.vectors)
        own = {name: record["sha256"] for name, record in self._files.items()}
        drift = self._drift(after, layers, judgement.nprobe, trained)
        return {
            "schema_version": LAYERED_SCHEMA,
            "id": digest([door["id"], parents["embeddings_id"], own]),
            "parents": parents,
            "rows": rows,
            "versions": library_versions("faiss-cpu", "pyarrow", "numpy"),
            "parameters": {**door["parameters"], **settings_of(judgement)},
            **measured(judgement, config, population=door["recall"]["population"]),
            "trained": trained,
            "drift": drift.as_json(),
            "change": {
                "from": self._version,
                "came": int((~self._before.contains(change.ids)).sum()),
                "replaced": int(self._before.contains(change.ids).sum()),
                "gone": len(change.gone),
            },
            "queries": {**door["queries"], "key": digest([door["queries"]["key"], own])},
            "service_bytes_per_vector": round(parts_bytes / rows, 1),
            "bytes_per_vector": round(
                sum(record["bytes"] for record in self._files.values()) / rows, 1
            ),
            "mean": self._mean(after),
        }

    def _mean(self, after: Searched) -> list[float]:
        """The mean vector, from that before and the rows that moved."""
        before = self._before
        total = np.array(self._door["mean"], np.float64) * len(before)
        for _, vectors in iter_rows(before, before.rows_of(self._departed)):
            total -= vectors.sum(axis=0, dtype=np.float64)
        total += self._change.vectors.sum(axis=0, dtype=np.float64)
        return [float(x) for x in total / len(after.vectors)]

    def _drift(
        self, after: Searched, layers: Mapping[str, Any], nprobe: int, trained: Mapping[str, Any]
    ) -> Drift:
        in_base = list_sizes(self._new, self._door)
        part = first_part(self._new, self._door)
        num_dead = layers["dead"]["rows"] if layers["dead"] else 0
        num_delta = layers["delta"]["rows"] if layers["delta"] else 0
        came = self._sample(layers, "delta")
        sizes = in_base - _spread(part, self._sample(layers, "dead"), num_dead)
        uneven = imbalance(np.maximum(0, sizes) + _spread(part, came, num_delta))
        return Drift(
            dead_share=round(num_dead / len(self._base), 4),
            delta_rows=num_delta,
            delta_bound=delta_bound(len(self._base)),
            growth=round(len(after.vectors) / trained["rows"], 3),
            code_error=worse_by(trained["code_errors"], part, came),
            imbalance=round(uneven / trained["imbalance"], 3) if part.has_lists else None,
            effort=round(nprobe / trained["nprobe"], 3),
        )

    def _sample(self, layers: Mapping[str, Any], kind: str) -> Floats:
        """Vectors of the delta, or of dead rows of the base; a random sample of many."""
        stated = layers[kind]
        if not stated:
            return np.empty((0, self._base.dim), np.float32)
        path = self._new.local_path(stated["file"])
        file = VectorFile(path) if kind == "delta" else self._base
        rows = np.arange(len(file)) if kind == "delta" else file.rows_of(read_ids(path))
        return file.gather(drawn(rows, self._config.seed))


def trained_state(
    folder: Folder, door: Mapping[str, Any], living: Callable[[], StoredVectors], queries: QuerySet
) -> dict[str, Any]:
    """What drift is told against: how the last training left the index.

    Args:
        folder: of the version that is changed.
        door: its door; one that was changed before states it.
        living: opens what is alive of it, if it is needed.
        queries: its queries.
    """
    if "trained" in door:
        return dict(door["trained"])
    vectors = living()
    rows = drawn(np.arange(len(vectors)), door["config"]["seed"])
    return {
        "version": folder.path.rpartition("/")[2],
        "rows": door["rows"],
        "nprobe": door["parameters"]["nprobe"],
        "query_rate": query_rate(queries, door["rows"]),
        "imbalance": imbalance(list_sizes(folder, door)),
        "code_errors": code_errors(first_part(folder, door), vectors.gather(rows)),
    }


def first_part(folder: Folder, door: Mapping[str, Any]) -> Part:
    """The first of the FAISS parts of a version's base; all learnt the same."""
    return Part.open(folder.local_path(door["parts"][0]["file"]))


def list_sizes(folder: Folder, door: Mapping[str, Any]) -> NDArray[np.float64]:
    """Rows in each list, over all parts of the base, which are in memory one after the other."""
    paths = (folder.local_path(part["file"]) for part in door["parts"])
    each = [Part.open(path).list_sizes() for path in paths]
    return np.asarray(np.sum(each, axis=0), np.float64)


def _spread(part: Part, sample_ND: Floats, count: int) -> NDArray[np.float64]:
    """How many of ``count`` rows each list would have, by a sample of them."""
    found = np.bincount(part.lists_of(sample_ND), minlength=len(part.list_sizes()))
    return np.asarray(found * (count / max(1, len(sample_ND))), np.float64)


def drawn(rows: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Some rows, or a random sample of many, rising: by as many drift is told."""
    if len(rows) <= DRIFT_SAMPLE:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, DRIFT_SAMPLE, replace=False))


def write_rows(ids: Ids, vectors: Float16s) -> Callable[[str], None]:
    """What writes ids and vectors as a file of `VectorWriter`."""

    def write(path: str) -> None:
        with VectorWriter(path, vectors.shape[1]) as writer:
            writer.add(ids, vectors)

    return write
