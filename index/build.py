"""Build an index version over an embedding set, tune it, publish it, put it in service.

Killed anywhere, the version in service stays; the next build clears the half one away. Running the
same build again finds its version and does nothing.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    digest,
    library_versions,
    open_door,
    proven_files,
    publish,
)
from index.budget import give_back
from index.card import PAGE, card, card_page, write_page
from index.choose import IndexConfig, candidates
from index.contest import Contest, Outcome
from index.fill import FillParts, fill_here
from index.folder import FileRecord, Folder
from index.id_file import NO_IDS, write_ids
from index.lock import sole_writer
from index.queries import QUERIES, QuerySet, draw_samples, make_queries, queries_key, shared_queries
from index.removed import REMOVED
from index.service import put_in_service
from index.vector_sets import Askable, VectorSet
from index.vector_writer import VectorWriter
from index.vectors import VECTORS, Float16s, Ids, VectorFile, locate, rising
from index.versions import BUILDING, finished_version, new_version, version_names

__all__ = [
    "NOTHING_LEFT_OUT",
    "PAGE",
    "Build",
    "Leave",
    "build_id",
    "build_index",
    "require_unit",
]

logger = logging.getLogger(__name__)

NORM_TOLERANCE = 1e-2
"""Vectors are of unit norm up to float16's rounding, which is a tenth of this."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Leave:
    """Pictures of an embedding set that an index is not to have.

    Args:
        removed: ids left out by hand, rising; the version keeps the list.
        gone: ids whose file is not there any more, rising.
    """

    removed: Ids
    gone: Ids

    @property
    def ids(self) -> Ids:
        """All of them, rising."""
        if not len(self.gone):
            return self.removed
        return rising(self.removed, self.gone)

    @property
    def digest(self) -> str | None:
        """What tells them apart; None for none."""
        return _digest_of(self.ids) if len(self.ids) else None


def _digest_of(ids: Ids) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()


NOTHING_LEFT_OUT = Leave(removed=NO_IDS, gone=NO_IDS)


def build_index(
    store: VectorSet,
    folder: Folder,
    config: IndexConfig,
    *,
    queries: Askable | None = None,
    fill: FillParts = fill_here,
    leave: Leave = NOTHING_LEFT_OUT,
) -> dict[str, Any]:
    """Build the index of an embedding set, or find it built.

    The version in service stays in service until the new one has answered some of its own queries.

    Args:
        store: the embedding set.
        folder: the index's folder, on a local or shared disk.
        config: what the index has to achieve.
        queries: an embedding set of the pictures that will be asked; recall is measured on a
            sample of it. Without it, on held-out pictures of the corpus.
        fill: does the jobs of parts; where, changes no byte.
        leave: pictures of the set that are to be left out.

    Returns:
        The door of the version now in service, with ``version`` and ``reused``.

    Raises:
        ValueError: no picture of the set could be embedded; a vector of it is no unit vector; the
            memory given is too little; another process is building here.
        CorruptArtifactError: the embedding set's files are damaged.
        OSError: the disk is full.

    Cost: one pass to copy the vectors, one for exact answers to the held-out queries, and one for
    each candidate (`index.choose`). Memory: ``config.memory``, or one part and the training sample.
    """
    build = Build(store, folder, config, queries, fill, leave)
    with sole_writer(folder, BUILDING):
        return build.find() or build.publish()


def _require_some(store: VectorSet, queries: Askable | None) -> None:
    """Check that there is something to index and to ask."""
    sizes = [(store.num_rows, store.folder)]
    if queries is not None:
        sizes.append((queries.num_rows, queries.folder))
    for num_rows, place in sizes:
        if not num_rows:
            raise ValueError(
                f"{place}: no picture could be embedded, so there is nothing to index. "
                "Look at the report of the embed job for the reasons."
            )


def build_id(store: VectorSet, config: IndexConfig, queries: Askable | None, leave: Leave) -> str:
    """The identity of what a build makes; see `build_index`."""
    identity: dict[str, Any] = {
        "embeddings_id": store.content,
        "queries_id": None if queries is None else queries.id,
        "parents": store.parents,
        "config": asdict(config),
    }
    if leave.digest is not None:
        identity["left_out"] = leave.digest
    if len(leave.removed):  # the version keeps the list, of whatever else it has no picture
        identity["removed"] = _digest_of(leave.removed)
    return digest(identity)


class Build:
    """One build of one version; see `build_index` for the arguments and what is raised."""

    def __init__(
        self,
        store: VectorSet,
        folder: Folder,
        config: IndexConfig,
        asked: Askable | None,
        fill: FillParts,
        leave: Leave,
    ) -> None:
        _require_some(store, asked)
        self._store = store
        self._folder = folder
        self._config = config
        self._asked = asked
        self._fill = fill
        self._leave = leave
        self._mean: Any = store.mean
        num_left_out = len(leave.removed) + len(leave.gone)
        self._budget = replace(config.budget(store.dim), num_left_out=num_left_out)
        self._budget.require_enough(store.num_rows)

    @property
    def id(self) -> str:
        """Identity of what it makes."""
        return build_id(self._store, self._config, self._asked, self._leave)

    def find(self) -> dict[str, Any] | None:
        """Put a finished version of the same in service, if there is one. Call as `sole_writer`."""
        finished = finished_version(self._folder, self.id)
        if finished is None:
            return None
        version, door = finished
        whole = proven_files(self._folder / version, door)
        put_in_service(self._folder, version, door, proven=whole)
        return {**door, "version": version, "reused": True}

    def publish(self) -> dict[str, Any]:
        """Build a version and put it in service. Call as `sole_writer`."""
        version, door = self._run(new_version(self._folder), self.id)
        put_in_service(self._folder, version, door)
        return {**door, "version": version, "reused": False}

    def _run(self, version: str, index_id: str) -> tuple[str, dict[str, Any]]:
        """Write all files of the version, and last its door."""
        start = time.perf_counter()
        folder, store, config = self._folder / version, self._store, self._config
        field = candidates(store.num_rows, store.dim, config)
        files = {VECTORS: folder.write_hashed(VECTORS, self._copy_vectors)}
        give_back()
        vectors = VectorFile(folder.local_path(VECTORS), mapped=self._budget.mapped)
        if len(self._leave.ids):
            field = candidates(len(vectors), store.dim, config)
        if len(self._leave.removed):
            write = partial(write_ids, ids=self._leave.removed)
            files[REMOVED] = folder.write_hashed(REMOVED, write)
        queries = self._queries(vectors)
        files[QUERIES] = folder.write_hashed(QUERIES, queries.write)
        give_back()
        samples = draw_samples(
            vectors,
            0 if self._asked else len(queries.ids),
            self._num_train(field.recipes),
            seed=config.seed,
            least_train=max((recipe.least_train_rows for recipe in field.recipes), default=1),
        )
        outcome = Contest(
            folder=folder,
            vectors=vectors,
            queries=queries,
            config=config,
            budget=self._budget,
            fill=self._fill,
        ).hold(field, samples)
        files |= outcome.winner.files
        body = self._body(outcome, index_id, files, time.perf_counter() - start)
        page = card_page(version, body)
        files[PAGE] = folder.write_hashed(PAGE, partial(write_page, text=page))
        return version, publish(folder, "index", body, files)

    def _copy_vectors(self, path: str) -> None:
        store, leave, num_read = self._store, self._leave.ids, 0
        total = np.zeros(store.dim)
        with VectorWriter(path, store.dim) as writer:
            for ids, vectors in store.iter_stored():
                num_read += len(ids)
                require_unit(store, ids, vectors)
                if not len(leave):
                    writer.add(ids, vectors)
                    continue
                stay = ~locate(leave, ids)[1]
                writer.add(ids[stay], vectors[stay])
                total += vectors[stay].sum(axis=0, dtype=np.float64)
        if num_read != store.num_rows:
            raise CorruptArtifactError(
                f"{store.folder}: {num_read} vectors, published with {store.num_rows}. "
                "Embed the corpus again."
            )
        if not writer.num_rows:
            raise ValueError(
                f"{store.folder}: all of its {num_read} pictures are left out, so there is nothing "
                "to index. Take some back: lookalike remove --index NAME --restore"
            )
        if len(leave):
            self._mean = total / writer.num_rows

    def _queries(self, vectors: VectorFile) -> QuerySet:
        """Exact answers cost a pass over the corpus: those of an older version are taken over."""
        shared = shared_queries(self._folder, _doors(self._folder), self._queries_key)
        if shared is not None:
            return shared
        block_rows = self._budget.block_rows
        return make_queries(vectors, self._config, self._asked, block_rows=block_rows)

    def _num_train(self, recipes: list[Any]) -> int:
        wanted = max((recipe.train_rows(self._config) for recipe in recipes), default=0)
        return min(wanted, self._budget.max_train_rows)

    def _body(
        self, outcome: Outcome, index_id: str, files: dict[str, FileRecord], took_s: float
    ) -> dict[str, Any]:
        store, config = self._store, self._config
        parts = outcome.winner.candidate.parts
        rows = sum(part.num_rows for part in parts)
        removed = len(self._leave.removed)
        return {
            "id": index_id,
            "config": asdict(config),
            "parents": {**store.parents, "embeddings_id": store.id},
            "layer": store.layer,
            "metric": "cosine",
            "dim": store.dim,
            "rows": rows,
            "versions": library_versions("faiss-cpu", "pyarrow", "numpy"),
            "parts": [{"file": part.path.name, "rows": part.num_rows} for part in parts],
            **(
                {"schema_version": 2, "removed": {"file": REMOVED, "rows": removed}}
                if removed
                else {}
            ),
            **card(outcome, config, dim=store.dim, rows=rows, population=self._population),
            "queries": {
                "file": QUERIES,
                "key": self._queries_key,
                "embeddings_id": None if self._asked is None else self._asked.id,
                "embeddings": None
                if self._asked is None
                else self._asked.parents.get("embeddings"),
            },
            "bytes_per_vector": round(sum(file["bytes"] for file in files.values()) / rows, 1),
            "build_s": round(outcome.winner.build_s, 3),
            "tune_s": round(took_s - outcome.winner.build_s, 3),
            "mean": [float(x) for x in self._mean],
        }

    @property
    def _queries_key(self) -> str:
        leave = self._leave.digest
        return queries_key(self._store.content, self._config, self._asked, left_out=leave)

    @property
    def _population(self) -> str:
        if self._asked is None:
            return "held-out pictures of the corpus itself; other pictures may be harder"
        name = self._asked.parents.get("embeddings", self._asked.id[:12])
        return f"pictures of the embedding set {name}"


def _doors(folder: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in reversed(version_names(folder)):
        try:
            yield name, open_door(folder / name, "index", verify="sizes")
        except ArtifactError as error:
            logger.info("%s: nothing to share: %s", name, error)


def require_unit(store: VectorSet, ids: Any, vectors_ND: Float16s) -> None:
    """FAISS drops rows that are not finite without a word, and zero has no cosine."""
    norms = np.linalg.norm(vectors_ND.astype(np.float32), axis=1)
    bad = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # so that NaN is bad as well
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise CorruptArtifactError(
            f"{store.folder}: the vector of picture {int(ids[first])} has norm {norms[first]}, and "
            "has to be of norm 1, finite and not zero. Embed the corpus again."
        )
