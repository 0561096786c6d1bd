"""What a card does not speak of: more results than its k, and queries that are no picture."""

import numpy as np
import pytest

from index.artifact import open_door
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.removal import remove_pictures
from index.search import Searcher
from index.update import update_index

DIM, NUM_QUERIES = 24, 30


@pytest.fixture(scope="module", params=["ivf", "ivf-pq", "hnsw"])
def searcher(request, publish_store, clustered, tmp_path_factory):
    folder = Folder.at(tmp_path_factory.mktemp("thorough"))
    vectors, _ = clustered(8000, DIM, classes=120)
    store = publish_store(folder / "embeddings", vectors)
    build_index(store, folder / "ix", IndexConfig(kind=request.param))
    return Searcher.open(folder / "ix")


def asked(searcher, what):
    rng = np.random.default_rng(0)
    first, second, third = searcher.vectors_of(
        rng.choice(searcher.ids, (3, NUM_QUERIES), replace=False).ravel()
    ).reshape(3, NUM_QUERIES, -1)
    return {
        "pictures": first,
        "unlike": -first,
        "like and unlike": first - second,
        "mean": first + second + third,
        "noise": rng.normal(size=(NUM_QUERIES, DIM)),
    }[what]


def recall(searcher, queries, k, **options):
    found, truth = (
        searcher.search(queries, k, **how).ids.tolist() for how in (options, {"exact": True})
    )
    return np.mean([len({*a} & {*b}) / k for a, b in zip(found, truth, strict=True)])


@pytest.mark.parametrize("what", ["unlike", "like and unlike", "mean", "noise"])
def test_a_query_that_is_no_picture_of_the_corpus_finds_its_nearest_too(searcher, what):
    queries = asked(searcher, what)
    tuned = recall(searcher, queries, 10, thorough=False)
    assert recall(searcher, queries, 10) > max(0.85, tuned), "told by how far its results lie"
    assert recall(searcher, queries, 10, thorough=True) > 0.9
    assert tuned < 0.9 or searcher.door["recipe"]["kind"] == "hnsw"


@pytest.mark.parametrize("k", [30, 200])
def test_more_results_than_the_card_speaks_of_are_found_as_well(searcher, k):
    queries = asked(searcher, "pictures")
    assert recall(searcher, queries, k) > 0.97
    if searcher.door["recipe"]["kind"] != "hnsw":
        assert recall(searcher, queries, 200, thorough=False) < 0.9
        plan = searcher.search(queries, k).plan
        assert (plan.way, plan.is_exact) == ("lists", False)
        assert plan.num_compared > k


def test_a_picture_is_searched_as_it_was_tuned(searcher):
    queries = asked(searcher, "pictures")
    usual = searcher.door["recall"]["usual"]
    assert len(usual) == 10
    assert usual == sorted(usual, reverse=True)
    found, tuned = (searcher.search(queries, 10, thorough=how) for how in (None, False))
    assert tuned.plan.way == found.plan.way == "tuned"
    far = tuned.scores[:, -1] < usual[-1]
    assert far.mean() < 0.1
    np.testing.assert_array_equal(found.ids[~far], tuned.ids[~far])


def test_excluded_pictures_are_no_results_of_a_thorough_search(searcher):
    queries = asked(searcher, "pictures")[:3]
    nearest = searcher.search(queries, 60).ids
    others = searcher.search(queries, 60, exclude_ids=nearest[:, 0])
    assert others.ids.shape == (3, 60)
    assert not np.isin(others.ids, nearest[:, 0]).any()


def test_a_changed_version_goes_on_until_nothing_new_comes_as_well(make_store, clustered, tmp_path):
    vectors = np.random.default_rng(0).permutation(clustered(6000, DIM, classes=100)[0])
    folder, config = Folder.at(tmp_path / "ix"), IndexConfig(kind="ivf")
    for rows in (5900, 6000):
        store = make_store(vectors[:rows], name=f"rows-{rows}")
        assert isinstance(store, EmbeddingStore)
        update_index(store, folder, config)
    remove_pictures(folder, np.array([5, 8, 11]))
    searcher = Searcher.open(folder)
    assert searcher.door["delta"]
    assert searcher.door["dead"]
    assert len(open_door(searcher.folder, "index")["recall"]["usual"]) == 10
    queries = asked(searcher, "unlike")
    assert recall(searcher, queries, 10) > 0.9
    found = searcher.search(queries, 100)
    assert not np.isin(found.ids, [5, 8, 11]).any()
    assert found.num_searched == len(searcher) == 5997
