"""Build an index version over an embedding set, tune it, publish it, put it in service.

Killed anywhere, the version in service stays; the next build clears the half one away. Running the
same build again finds its version and does nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    FileRecord,
    Folder,
    digest,
    library_versions,
    open_door,
    publish,
)
from index.budget import give_back
from index.card import card, card_page
from index.choose import IndexConfig, candidates
from index.contest import Contest, Outcome
from index.embeddings import EmbeddingStore
from index.fill import FillParts, fill_here
from index.lock import sole_writer
from index.queries import (
    QuerySet,
    draw_samples,
    make_queries,
    queries_key,
    shared_queries,
)
from index.vectors import VECTORS, Float16s, VectorFile, VectorWriter
from index.versions import (
    finished_version,
    new_version,
    open_current,
    remove_others,
    set_current,
    version_names,
)

__all__ = ["PAGE", "build_index"]

logger = logging.getLogger(__name__)

QUERIES = "queries.arrow"
PAGE = "card.md"
"""What the card says, for people."""
NORM_TOLERANCE = 1e-2
"""Vectors are of unit norm up to float16's rounding, which is a tenth of this."""


def build_index(
    store: EmbeddingStore,
    folder: Folder,
    config: IndexConfig,
    *,
    queries: EmbeddingStore | None = None,
    fill: FillParts = fill_here,
) -> dict[str, Any]:
    """Build the index of an embedding set, or find it built.

    Args:
        store: the embedding set.
        folder: the index's folder, on a local or shared disk.
        config: what the index has to achieve.
        queries: an embedding set of the pictures that will be asked; recall is measured on a
            sample of it. Without it, on held-out pictures of the corpus.
        fill: does the jobs of parts; where, changes no byte.

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
    for given in (store, *([] if queries is None else [queries])):
        if not given.num_rows:
            raise ValueError(
                f"{given.folder}: no picture could be embedded, so there is nothing to index. "
                "Look at the report of the embed job for the reasons."
            )
    config.budget(store.dim).require_enough(store.num_rows)
    asked = None if queries is None else queries.id
    identity = {
        "embeddings_id": store.id,
        "queries_id": asked,
        "parents": store.parents,
        "config": asdict(config),
    }
    index_id = digest(identity)
    with sole_writer(folder, "building this index"):
        finished = finished_version(folder, index_id)
        if finished is None:
            build = _Build(store, folder, config, queries, fill)
            version, door = build.run(new_version(folder), index_id)
        else:
            version, door = finished
        before = _version_in_service(folder)
        if before != version:
            set_current(folder, version, door)
            if before is not None:
                remove_others(folder, keep={version, before})
    return {**door, "version": version, "reused": finished is not None}


def _version_in_service(folder: Folder) -> str | None:
    try:
        return open_current(folder, verify="sizes")[0]
    except ValueError as error:  # absent or damaged: either way to be replaced
        logger.info("no usable index in service: %s", error)
        return None


class _Build:
    """One build of one version."""

    def __init__(
        self,
        store: EmbeddingStore,
        folder: Folder,
        config: IndexConfig,
        asked: EmbeddingStore | None,
        fill: FillParts,
    ) -> None:
        self._store = store
        self._folder = folder
        self._config = config
        self._asked = asked
        self._fill = fill
        self._budget = config.budget(store.dim)

    def run(self, version: str, index_id: str) -> tuple[str, dict[str, Any]]:
        """Write all files of the version, and last its door."""
        start = time.perf_counter()
        folder, store, config = self._folder / version, self._store, self._config
        field = candidates(store.num_rows, store.dim, config)
        files = {VECTORS: folder.write_hashed(VECTORS, lambda path: _copy_vectors(store, path))}
        give_back()
        vectors = VectorFile(folder.local_path(VECTORS), mapped=self._budget.mapped)
        queries = self._queries(vectors)
        files[QUERIES] = folder.write_hashed(QUERIES, queries.write)
        give_back()
        samples = draw_samples(
            vectors,
            0 if self._asked else len(queries.ids),
            self._num_train(field.recipes),
            seed=config.seed,
            num_lists=max((recipe.nlist for recipe in field.recipes), default=1),
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
        files[PAGE] = folder.write_hashed(PAGE, lambda path: _write_text(path, page))
        return version, publish(folder, "index", body, files)

    def _queries(self, vectors: VectorFile) -> QuerySet:
        """Exact answers cost a pass over the corpus: those of an older version are taken over."""
        key = queries_key(self._store, self._config, self._asked)
        shared = shared_queries(self._folder, _doors(self._folder), key)
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
        rows = store.num_rows
        parts = outcome.winner.candidate.parts
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
            **card(outcome, config, dim=store.dim, rows=rows, population=self._population),
            "queries": {
                "file": QUERIES,
                "key": queries_key(store, config, self._asked),
                "embeddings_id": None if self._asked is None else self._asked.id,
            },
            "bytes_per_vector": round(sum(file["bytes"] for file in files.values()) / rows, 1),
            "build_s": round(outcome.winner.build_s, 3),
            "tune_s": round(took_s - outcome.winner.build_s, 3),
            "mean": [float(x) for x in store.mean],
        }

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


def _copy_vectors(store: EmbeddingStore, path: str) -> None:
    with VectorWriter(path, store.dim) as writer:
        for ids, vectors in store.iter_stored():
            _require_unit(store, ids, vectors)
            writer.add(ids, vectors)
    if writer.num_rows != store.num_rows:
        raise CorruptArtifactError(
            f"{store.folder}: {writer.num_rows} vectors, published with {store.num_rows}. "
            "Embed the corpus again."
        )


def _require_unit(store: EmbeddingStore, ids: Any, vectors_ND: Float16s) -> None:
    """FAISS drops rows that are not finite without a word, and zero has no cosine."""
    norms = np.linalg.norm(vectors_ND.astype(np.float32), axis=1)
    bad = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # so that NaN is bad as well
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise CorruptArtifactError(
            f"{store.folder}: the vector of picture {int(ids[first])} has norm {norms[first]}, and "
            "has to be of norm 1, finite and not zero. Embed the corpus again."
        )


def _write_text(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
