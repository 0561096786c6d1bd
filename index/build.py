"""Build an index version over an embedding set, tune it, publish it, put it in service.

Killed anywhere, the version in service stays; the next build clears the half one away. Running the
same build again finds its version and does nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from index.artifact import FileRecord, Folder, digest, library_versions, publish
from index.choose import IndexConfig, choose_recipe
from index.embeddings import EmbeddingStore
from index.lock import sole_writer
from index.part import Part, train_template
from index.rank import Ranker
from index.tune import card, draw_samples, tune
from index.vectors import Floats, Ids, VectorFile, VectorWriter
from index.versions import (
    finished_version,
    new_version,
    open_current,
    remove_others,
    set_current,
)

__all__ = ["build_index"]

logger = logging.getLogger(__name__)

VECTORS = "vectors.arrow"
ADD_ROWS = 16_384


def build_index(store: EmbeddingStore, folder: Folder, config: IndexConfig) -> dict[str, Any]:
    """Build the index of an embedding set, or find it built.

    Args:
        store: the embedding set.
        folder: the index's folder, on a local or shared disk.
        config: what the index has to achieve.

    Returns:
        The door of the version now in service, with ``version`` and ``reused``.

    Raises:
        ValueError: no picture of the set could be embedded; another process is building here.
        CorruptArtifactError: the embedding set's files are damaged.

    Cost: one pass to copy the vectors, one to add them, one for exact answers to the held-out
    queries. Memory: one part (``config.part_rows`` x 2 D bytes) and the training sample.
    """
    if not store.num_rows:
        raise ValueError(
            f"{store.folder}: no picture could be embedded, so there is nothing to index. "
            "Look at the report of the embed job for the reasons."
        )
    identity = {"embeddings_id": store.id, "parents": store.parents, "config": asdict(config)}
    index_id = digest(identity)
    with sole_writer(folder, "building this index"):
        finished = finished_version(folder, index_id)
        if finished is None:
            version = new_version(folder)
            door = _build_version(store, folder / version, index_id, config)
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


def _build_version(
    store: EmbeddingStore, folder: Folder, index_id: str, config: IndexConfig
) -> dict[str, Any]:
    start = time.perf_counter()
    files = {VECTORS: folder.write_hashed(VECTORS, lambda path: _copy_vectors(store, path))}
    vectors = VectorFile(folder.local_path(VECTORS))
    recipe = choose_recipe(len(vectors), config)
    query_ids, train_rows = draw_samples(vectors, recipe, config)
    logger.info("building %s over %d vectors (%s)", recipe.factory, len(vectors), recipe.why)
    template = train_template(recipe, store.dim, vectors.gather(train_rows), seed=config.seed)
    parts = []
    for name, record, part in _write_parts(folder, vectors, template, config):
        files[name] = record
        parts.append({"file": name, "rows": part.num_rows})
    built_s = time.perf_counter() - start
    opened = [Part.open(folder.local_path(str(part["file"]))) for part in parts]
    tuning = tune(Ranker(opened, vectors), query_ids, config)
    body = {
        "id": index_id,
        "config": asdict(config),
        "parents": {**store.parents, "embeddings_id": store.id},
        "layer": store.layer,
        "metric": "cosine",
        "dim": store.dim,
        "rows": len(vectors),
        "versions": library_versions("faiss-cpu", "pyarrow", "numpy"),
        "recipe": {"factory": recipe.factory, "kind": recipe.kind, "why": recipe.why},
        "parts": parts,
        "parameters": {"nlist": recipe.nlist, "nprobe": tuning.nprobe},
        **card(tuning, config),
        "bytes_per_vector": round(sum(file["bytes"] for file in files.values()) / len(vectors), 1),
        "build_s": round(built_s, 3),
        "tune_s": round(time.perf_counter() - start - built_s, 3),
        "mean": [float(x) for x in store.mean],
    }
    return publish(folder, "index", body, files)


def _copy_vectors(store: EmbeddingStore, path: str) -> None:
    with VectorWriter(path, store.dim) as writer:
        for ids, vectors in store.iter_stored():
            writer.add(ids, vectors)
    if writer.num_rows != store.num_rows:
        raise ValueError(
            f"{store.folder}: {writer.num_rows} vectors, published with {store.num_rows}. "
            "Embed the corpus again."
        )


def _write_parts(
    folder: Folder, vectors: VectorFile, template: Any, config: IndexConfig
) -> Iterator[tuple[str, FileRecord, Part]]:
    for number, start in enumerate(range(0, len(vectors), config.part_rows)):
        name = f"part-{number:05d}.faiss"
        stop = min(start + config.part_rows, len(vectors))
        part = Part.fill(template, _slices(vectors, start, stop))
        yield name, folder.write_hashed(name, part.write), part


def _slices(vectors: VectorFile, start: int, stop: int) -> Iterator[tuple[Ids, Floats]]:
    for first in range(start, stop, ADD_ROWS):
        yield vectors.slice(first, min(first + ADD_ROWS, stop))
