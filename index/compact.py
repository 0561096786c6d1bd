"""Compact an index: the delta goes into the parts, dead rows go, lists and codes stay as they are.

Nothing is trained, so it costs less than a build, and lists and codes fit what came no better than
before; `index.drift` says when to train anew.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from index.artifact import digest, library_versions, publish
from index.budget import give_back
from index.build import Build, Leave, require_unit
from index.candidate import Candidate
from index.card import PAGE, card_page, measured, settings_of, write_page
from index.change import (
    DOOR_OWN,
    LAYERED_SCHEMA,
    drawn,
    first_part,
    list_sizes,
    trained_state,
)
from index.choose import IndexConfig, Recipe
from index.drift import Drift, delta_bound, imbalance, worse_by
from index.faiss_file import emptied
from index.fill import FillParts, plan_parts, save_template
from index.folder import FileRecord, Folder
from index.id_file import write_ids
from index.judge import Judgement
from index.layers import open_ranker
from index.live_queries import Moved, follow_queries, judge_again
from index.queries import QUERIES, QuerySet
from index.removed import REMOVED
from index.shelf import shelve_parts
from index.vector_sets import StoredVectors, VectorSet
from index.vector_writer import VectorWriter
from index.vectors import VECTORS, Float16s, Floats, Ids, VectorFile, locate
from index.versions import Standing, new_version

__all__ = ["LiveQueries", "LiveSet", "build_of_living", "fold", "living"]


@dataclass(frozen=True, slots=True)
class LiveSet:
    """What is alive in a version, to build an index of: see `index.vector_sets.VectorSet`.

    Its vectors are open, and ids of its base in memory, only while they stream.

    Args:
        folder: the version's folder.
        door: its door.
    """

    folder: Folder
    door: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Identity of the embedding set that it follows."""
        return str(self.door["parents"]["embeddings_id"])

    @property
    def content(self) -> str:
        """Identity of what is alive: other versions of the same set have other pictures of it."""
        return digest(["alive in", self.door["id"]])

    @property
    def parents(self) -> dict[str, str]:
        """What that was made from."""
        parents: dict[str, str] = dict(self.door["parents"])
        del parents["embeddings_id"]
        return parents

    @property
    def layer(self) -> str:
        """Layer of the encoder."""
        return str(self.door["layer"])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.door["dim"])

    @property
    def num_rows(self) -> int:
        """Vectors alive."""
        return int(self.door["rows"])

    @property
    def mean(self) -> Floats:
        """Their mean, float32 [D]."""
        return np.array(self.door["mean"], np.float32)

    def iter_stored(self) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids, rising, and unit vectors float16 [n, D]."""
        for ids, vectors in living(self.folder, self.door).iter_batches():
            yield ids, vectors.astype(np.float16)  # as it was stored: nothing is lost


@dataclass(frozen=True, slots=True)
class LiveQueries:
    """The queries of a version that came from outside the corpus: see `index.vector_sets.Askable`.

    Args:
        folder: the version's folder.
        door: its door.
        queries: its queries.
    """

    folder: Folder
    door: Mapping[str, Any]
    queries: QuerySet

    @property
    def id(self) -> str:
        """Identity of the embedding set that they were drawn from."""
        return str(self.door["queries"]["embeddings_id"])

    @property
    def parents(self) -> dict[str, str]:
        """Name of that set."""
        name = self.door["queries"].get("embeddings")
        return {"embeddings": name} if name else {}

    @property
    def num_rows(self) -> int:
        """Queries."""
        return len(self.queries.ids)

    def iter_batches(self) -> Iterator[tuple[Ids, Floats]]:
        """All of them at once; of as many as are wanted, all are drawn again."""
        yield self.queries.ids, self.queries.vectors


def living(folder: Folder, door: Mapping[str, Any]) -> StoredVectors:
    """The stored vectors of what is alive in a version, opened."""
    sparing = door["config"]["memory"] is not None
    return open_ranker(folder, door, sparing=sparing).vectors


def build_of_living(before: Standing, leave: Leave, fill: FillParts) -> dict[str, Any]:
    """Build an index anew of its own vectors, and put it in service. Call as `sole_writer`.

    Args:
        before: the version that gives the vectors, and the queries from outside the corpus.
        leave: pictures of it that are left out.
        fill: does the jobs of parts.

    Returns:
        The door of the new version, with ``version``.

    Raises:
        ValueError: the index's memory is too little; nothing is written then.
    """
    door, asked = before.door, None
    if door["queries"]["embeddings_id"] is not None:
        queries = QuerySet.read(before.folder.local_path(QUERIES))
        asked = LiveQueries(before.folder, door, queries)
    give_back()
    source, config = LiveSet(before.folder, door), IndexConfig(**door["config"])
    return Build(source, before.index, config, asked, fill, leave).publish()


def fold(
    before: Standing, source: VectorSet, leave: Leave, moved: Moved, fill: FillParts
) -> tuple[str, dict[str, Any]]:
    """Publish a version in one layer, of the lists and codes of another. Call as `sole_writer`.

    Args:
        before: the one that gives lists and codes.
        source: what it is to hold.
        leave: pictures of it that are left out.
        moved: how that differs from what is alive in the other version.
        fill: does the jobs of parts.

    Returns:
        Name and door of the new version; it is not put in service.

    Cost: one pass to copy the vectors, one to fill the parts, and one more if an exact answer of a
    query lost a picture. Memory: one part.
    """
    return _Folding(before, source, leave).run(moved, fill)


class _Folding:
    """One compaction of one version."""

    def __init__(self, before: Standing, source: VectorSet, leave: Leave) -> None:
        self._old, self._version, self._door = before.folder, before.name, before.door
        self._source, self._leave = source, leave
        before.require_whole(QUERIES, before.door["parts"][0]["file"])
        self._name = new_version(before.index)
        self._new = (before.index / self._name).make()
        self._config = IndexConfig(**before.door["config"])
        self._budget = self._config.budget(source.dim)
        self._files: dict[str, FileRecord] = {}
        self._mean: Any = source.mean

    def run(self, moved: Moved, fill: FillParts) -> tuple[str, dict[str, Any]]:
        """Write all files of the version, and last its door."""
        start = time.perf_counter()
        self._files[VECTORS] = self._new.write_hashed(VECTORS, self._copy_vectors)
        vectors = VectorFile(self._new.local_path(VECTORS), mapped=self._budget.mapped)
        candidate = self._filled(vectors, fill)
        build_s = time.perf_counter() - start
        before = QuerySet.read(self._old.local_path(QUERIES))
        trained = trained_state(
            self._old, self._door, lambda: living(self._old, self._door), before
        )
        queries, trained["query_rate"] = follow_queries(
            before, vectors, moved, trained["query_rate"], self._config
        )
        self._files[QUERIES] = self._new.write_hashed(QUERIES, queries.write)
        give_back()
        body = {key: value for key, value in self._door.items() if key not in DOOR_OWN}
        body |= self._removed()
        judgement = self._judged(candidate, queries.half(judging=True))
        body |= self._described(candidate, judgement, trained)
        took_s = time.perf_counter() - start
        body |= {"build_s": round(build_s, 3), "tune_s": round(took_s - build_s, 3)}
        page = card_page(self._name, body)
        self._files[PAGE] = self._new.write_hashed(PAGE, partial(write_page, text=page))
        return self._name, publish(self._new, "index", body, self._files)

    def _copy_vectors(self, path: str) -> None:
        leave, total = self._leave.ids, np.zeros(self._source.dim)
        with VectorWriter(path, self._source.dim) as writer:
            for ids, vectors in self._source.iter_stored():
                require_unit(self._source, ids, vectors)
                stay = ~locate(leave, ids)[1]
                writer.add(ids[stay], vectors[stay])
                total += vectors[stay].sum(axis=0, dtype=np.float64)
        if len(leave):
            self._mean = total / writer.num_rows

    def _filled(self, vectors: VectorFile, fill: FillParts) -> Candidate:
        """The parts, filled from templates that the old version's first part gives."""
        door = self._door
        recipe = Recipe(
            kind=door["recipe"]["kind"],
            nlist=door["parameters"]["nlist"],
            why=door["recipe"]["why"],
        )
        template = emptied(self._old.local_path(door["parts"][0]["file"]))
        saved = save_template(self._new, recipe, template)
        del template
        give_back()
        jobs = plan_parts(self._new, recipe, len(vectors), self._budget, saved)
        records = fill(jobs)
        self._new.remove(saved)
        self._files |= {job.name: record for job, record in zip(jobs, records, strict=True)}
        return Candidate(
            recipe, shelve_parts([self._new.local_path(job.name) for job in jobs]), vectors
        )

    def _judged(self, candidate: Candidate, judging: QuerySet) -> Judgement:
        return judge_again(candidate, self._door, judging, self._config.target_recall)

    def _removed(self) -> dict[str, Any]:
        removed = self._leave.removed
        if not len(removed):
            return {"delta": None, "dead": None, "removed": None}
        self._files[REMOVED] = self._new.write_hashed(REMOVED, partial(write_ids, ids=removed))
        stated = {"file": REMOVED, "rows": len(removed)}
        return {"delta": None, "dead": None, "removed": stated, "schema_version": LAYERED_SCHEMA}

    def _described(
        self, candidate: Candidate, judgement: Judgement, trained: Mapping[str, Any]
    ) -> dict[str, Any]:
        door, source, rows = self._door, self._source, len(candidate.vectors)
        parts_bytes = sum(
            record["bytes"] for name, record in self._files.items() if name.endswith(".faiss")
        )
        own = {name: record["sha256"] for name, record in self._files.items()}
        parents = {**source.parents, "embeddings_id": source.id}
        stated = [{"file": part.path.name, "rows": part.num_rows} for part in candidate.parts]
        uneven = imbalance(list_sizes(self._new, {"parts": stated}))
        part = first_part(self._new, {"parts": stated})
        sample = candidate.vectors.gather(drawn(np.arange(rows), self._config.seed))
        drift = Drift(
            dead_share=0.0,
            delta_rows=0,
            delta_bound=delta_bound(rows),
            growth=round(rows / trained["rows"], 3),
            code_error=worse_by(trained["code_errors"], part, sample),
            imbalance=round(uneven / trained["imbalance"], 3) if part.has_lists else None,
            effort=round(judgement.nprobe / trained["nprobe"], 3),
        )
        return {
            "id": digest([door["id"], source.id, own]),
            "parents": parents,
            "rows": rows,
            "versions": library_versions("faiss-cpu", "pyarrow", "numpy"),
            "parts": stated,
            "parameters": {**door["parameters"], **settings_of(judgement)},
            **measured(judgement, self._config, population=door["recall"]["population"]),
            "trained": trained,
            "drift": drift.as_json(),
            "change": {"from": self._version, "compacted": True},
            "queries": {**door["queries"], "key": digest([door["queries"]["key"], own])},
            "service_bytes_per_vector": round(parts_bytes / rows, 1),
            "bytes_per_vector": round(
                sum(record["bytes"] for record in self._files.values()) / rows, 1
            ),
            "mean": [float(x) for x in self._mean],
        }
