"""Synthetic corpora for the index's tests."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder
from index.search import Searcher
from index.update import Instructions, update_index

GROWN = IndexConfig(kind="ivf", num_queries=60)
PARENTS = {"encoder_id": "encoder-a", "corpus_id": "corpus-1", "corpus_uid": "uid-1"}


def sorted_clusters(num_rows, dim, *, classes=20, noise=0.6, seed=0):
    """Rows sorted by class, as pictures in folders are: vectors [N, D] and class codes [N]."""
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.integers(0, classes, num_rows))
    centres = rng.normal(size=(classes, dim))
    vectors = centres[codes] + noise * rng.normal(size=(num_rows, dim))
    return vectors.astype(np.float32), codes


def write_store(folder, vectors, *, ids=None, shard_rows=500, parents=PARENTS, layer="backbone"):
    """Publish vectors as an embedding set of several shards; ids are 5, 8, 11, ... unless given."""
    if ids is None:
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


@pytest.fixture(scope="session")
def clustered() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return sorted_clusters


@pytest.fixture(scope="session")
def publish_store() -> Callable[..., EmbeddingStore]:
    return write_store


@pytest.fixture
def make_store(tmp_path) -> Callable[..., EmbeddingStore]:
    def make(vectors, *, name="embeddings", **options):
        return write_store(Folder.at(tmp_path / name), vectors, **options)

    return make


@pytest.fixture(scope="session")
def shared_searcher(tmp_path_factory) -> Searcher:
    """One small inverted-list index, for tests that only read."""
    folder = Folder.at(tmp_path_factory.mktemp("shared"))
    store = write_store(folder / "embeddings", sorted_clusters(600, 16)[0])
    build_index(store, folder / "ix", IndexConfig(kind="ivf", num_queries=100))
    return Searcher.open(folder / "ix")


@pytest.fixture
def folder(tmp_path):
    return Folder.at(tmp_path / "ix")


@pytest.fixture
def grow(make_store, folder, clustered):
    """Indexes the first so many of a corpus's vectors, or others."""
    corpus = np.random.default_rng(0).permutation(clustered(2000, 8)[0])

    made = itertools.count()

    def run(vectors, config=GROWN, **options):
        given = corpus[:vectors] if isinstance(vectors, int) else vectors
        store = make_store(given, name=f"set-{next(made)}")
        return update_index(store, folder, config, told=Instructions(**options))

    run.corpus = corpus
    return run
