"""Synthetic corpora for the index's tests."""

from collections.abc import Callable

import numpy as np
import pytest

from index.artifact import Folder
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard

PARENTS = {"encoder_id": "encoder-a", "corpus_id": "corpus-1", "corpus_uid": "uid-1"}


def clustered(num_rows: int, dim: int, *, classes: int = 20, noise: float = 0.6, seed: int = 0):
    """Rows sorted by class, as pictures in folders are: vectors [N, D] and class codes [N]."""
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.integers(0, classes, num_rows))
    centres = rng.normal(size=(classes, dim))
    vectors = centres[codes] + noise * rng.normal(size=(num_rows, dim))
    return vectors.astype(np.float32), codes


@pytest.fixture
def make_store(tmp_path) -> Callable[..., EmbeddingStore]:
    """Publish vectors as an embedding set of several shards; ids are 5, 8, 11, ..."""

    def make(vectors, *, name="embeddings", shard_rows=500, parents=PARENTS, layer="backbone"):
        folder = Folder.at(tmp_path / name)
        ids = np.arange(len(vectors), dtype=np.int64) * 3 + 5
        records = []
        for number, start in enumerate(range(0, len(vectors), shard_rows)):
            rows = slice(start, start + shard_rows)
            batch = ShardBatch(
                ids=ids[rows],
                statuses=["ok"] * len(ids[rows]),
                content_hashes=[bytes(32)] * len(ids[rows]),
                vectors=vectors[rows],
            )
            thumbnails = [f"thumbnail {picture}".encode() for picture in ids[rows]]
            records.append(write_shard(folder, f"{number:05d}-aa", batch, thumbnails=thumbnails))
        publish_embeddings(folder, records, {"parents": parents, "config": {"layer": layer}})
        return EmbeddingStore.open(folder)

    return make
