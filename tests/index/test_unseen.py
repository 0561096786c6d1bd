"""What a graph's card states is the recall of pictures that the graph does not have."""

import dataclasses

import numpy as np
import pytest

from index.build import build_index
from index.choose import IndexConfig
from index.layers import open_ranker
from index.measure import exact_top_k, recall_at_k
from index.removal import remove_pictures
from index.search import Searcher
from index.unseen import _Unseen, top_unseen
from index.update import compact_index
from index.vectors import unit

GRAPH = IndexConfig(kind="hnsw", k=1, target_recall=0.8, seed=1)


@pytest.fixture
def built(make_store, folder):
    vectors = np.random.default_rng(0).normal(size=(4000, 48))
    build_index(make_store(vectors, shard_rows=4000), folder, GRAPH)
    return folder


def test_a_stated_recall_is_that_of_new_pictures(built):
    new = unit(np.random.default_rng(1).normal(size=(1500, 48)))

    def require_as_stated():
        searcher = Searcher.open(built)
        _, truth = exact_top_k(new, 1, searcher.iter_batches())
        found = searcher.search(new, 1, thorough=False).scores
        value = recall_at_k(found, np.minimum(truth, 1)).mean()
        assert value >= searcher.door["recall"]["low"]
        assert value >= GRAPH.target_recall

    require_as_stated()
    remove_pictures(built, Searcher.open(built).ids[::50])
    require_as_stated()
    compact_index(built)
    require_as_stated()


def test_nobody_finds_himself_and_links_are_as_before(built):
    searcher = Searcher.open(built)
    ranker = open_ranker(searcher.folder, searcher.door, sparing=False)
    own = searcher.ids[::40]
    queries = unit(searcher.vectors_of(own))
    ids, scores = top_unseen(ranker, queries, own, 5, nprobe=24)
    assert np.mean(ids == own[:, None]) <= 0.01, "where nothing else leads, all are compared"
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_array_equal(ranker.top(queries, 1, nprobe=24)[0][:, 0], own)
    unseen = _Unseen(ranker.parts[0].path, own)
    before = unseen._links.copy()
    unseen.propose(dataclasses.replace(ranker, parts=[unseen.part]), queries, 5, 24)
    np.testing.assert_array_equal(unseen._links, before)


def test_queries_from_outside_are_asked_as_they_are(built):
    searcher = Searcher.open(built)
    ranker = open_ranker(searcher.folder, searcher.door, sparing=True)
    queries = unit(np.random.default_rng(2).normal(size=(20, 48)))
    found = top_unseen(ranker, queries, np.full(20, -1), 5, nprobe=24)
    for given, expected in zip(found, ranker.top(queries, 5, nprobe=24), strict=True):
        np.testing.assert_array_equal(given, expected)
