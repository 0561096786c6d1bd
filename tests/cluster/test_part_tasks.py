"""Parts of an index, filled by Ray's tasks: the same bytes, wherever."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.part_tasks import part_filler
from cluster.where import Where
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.fill import fill_here
from index.folder import FileRecord, Folder
from index.lock import sole_writer
from index.search import Searcher

CONFIG = IndexConfig(kind="ivf-pq", num_queries=20, part_rows=150)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    rng, folder = np.random.default_rng(0), Folder.at(tmp_path / "embeddings")
    batch = ShardBatch(
        ids=np.arange(500, dtype=np.int64),
        statuses=["ok"] * 500,
        content_hashes=[bytes(32)] * 500,
        vectors=rng.normal(size=(500, 8)).astype(np.float32),
    )
    record = write_shard(folder, "00000-aa", batch, thumbnails=[None] * 500)
    parents = {"encoder_id": "e", "corpus_id": "c", "corpus_uid": "u"}
    publish_embeddings(folder, [record], {"parents": parents, "config": {"layer": "backbone"}})
    return EmbeddingStore.open(folder)


def parts(door: dict[str, Any]) -> dict[str, FileRecord]:
    return {one["file"]: door["files"][one["file"]] for one in door["parts"]}


def test_on_one_machine_with_one_actor_parts_are_filled_here(library: Any) -> None:
    assert part_filler(library.context) is fill_here


@pytest.mark.ray
@pytest.mark.parametrize("pools", ["", ", train_pool: train, data_pool: data"])
def test_parts_filled_by_tasks_are_the_same_to_the_byte(
    library: Any, store: EmbeddingStore, tmp_path: Path, local_ray: Any, pools: str
) -> None:
    profile = tmp_path / "ray.yaml"
    profile.write_text(
        "metadata: {lookalike: {profiles: {two: "
        f"{{embed_actors: 2, cpus_per_actor: 1{pools}}}}}}}}}\n"
    )
    where = Where(profile="two", ray_config=profile)
    filler = part_filler(dataclasses.replace(library.context, where=where))
    assert filler is not fill_here
    by_tasks = build_index(store, Folder.at(tmp_path / "tasks"), CONFIG, fill=filler)
    here = build_index(store, Folder.at(tmp_path / "here"), CONFIG)
    assert len(parts(here)) == 4
    assert parts(by_tasks) == parts(here)


def test_two_builds_at_once_and_a_full_disk_in_any_phase_leave_what_there_was(
    store: EmbeddingStore, tmp_path: Path, full_disk: Any
) -> None:
    folder = Folder.at(tmp_path / "ix")
    door = build_index(store, folder, CONFIG)
    other = dataclasses.replace(CONFIG, target_recall=0.9)
    with sole_writer(folder, "building"), pytest.raises(ValueError, match="another process"):
        build_index(store, folder, other)
    sizes = sorted({record["bytes"] for record in door["files"].values()})
    refused = 0
    for size in [0, *(size - 1 for size in sizes)]:
        with full_disk(size), pytest.raises(OSError, match=r"large|space"):
            build_index(store, folder, other)
        refused += 1
        assert Searcher.open(folder).id == door["id"]
    assert refused == len(sizes) + 1
    assert build_index(store, folder, other)["reused"] is False
    assert Searcher.open(folder).door["config"]["target_recall"] == 0.9
