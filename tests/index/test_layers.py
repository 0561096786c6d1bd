"""A base and a delta read as one: by id, by row, in order, and by all that reads an index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.choose import IndexConfig
from index.duplicates import DuplicateConfig, DuplicateGroups, build_duplicates
from index.folder import Folder
from index.graph import GraphConfig, NeighbourGraph, build_graph
from index.id_file import read_ids, write_ids
from index.layers import best_of
from index.live import LiveVectors
from index.outliers import outlier_table
from index.projection import MapConfig, build_map, open_map
from index.ranking import Ranking, diverse
from index.removal import remove_pictures
from index.search import Searcher
from index.update import Instructions, update_index
from index.vector_sets import iter_rows
from index.vector_writer import VectorWriter
from index.vectors import VectorFile, unit

DIM = 3


def write_vectors(path, ids):
    """A file of vectors that tell their ids."""
    vectors = np.stack([ids, ids + 0.5, -ids], axis=1).astype(np.float16)
    with VectorWriter(str(path), DIM) as writer:
        writer.add(ids, vectors)
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@settings(max_examples=40, deadline=None)
@given(
    base=st.sets(st.integers(0, 60), min_size=1),
    added=st.sets(st.integers(0, 60)),
    data=st.data(),
)
def test_what_is_alive_reads_as_one_sorted_table(place, base, added, data):
    dead = data.draw(st.sets(st.sampled_from(sorted(base)))) | (base & added)
    ids = {name: np.array(sorted(some), np.int64) for name, some in (("b", base), ("a", added))}
    write_vectors(place / "base.arrow", ids["b"])
    delta = None
    if added:
        write_vectors(place / "delta.arrow", ids["a"])
        delta = VectorFile(place / "delta.arrow")
    dead_ids = np.array(sorted(dead), np.int64)
    live = LiveVectors(VectorFile(place / "base.arrow"), dead_ids, delta)
    expected = np.array(sorted((base - dead) | added), np.int64)
    vectors = np.stack([expected, expected + 0.5, -expected], axis=1).astype(np.float32)
    assert (len(live), live.dim) == (len(expected), DIM)
    np.testing.assert_array_equal(live.ids, expected)
    asked = np.arange(-2, 70)
    np.testing.assert_array_equal(live.contains(asked), np.isin(asked, expected))
    rows = np.array(data.draw(st.lists(st.integers(0, max(0, len(expected) - 1)))), np.intp)
    rows = rows[rows < len(expected)]
    np.testing.assert_array_equal(live.rows_of(expected[rows]), rows)
    np.testing.assert_array_equal(live.gather(rows), vectors[rows])
    for stream, order in ((iter_rows(live, rows, 4), rows), (live.iter_batches(5), slice(None))):
        parts = [(np.empty(0, np.int64), np.empty((0, DIM), np.float32)), *stream]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), expected[order])
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), vectors[order])
    with pytest.raises(KeyError, match="picture 1000 has no vector"):
        live.rows_of(np.array([1000]))


def test_lists_of_ids_come_back(tmp_path):
    ids = np.array([3, 2**62], np.int64)
    write_ids(str(tmp_path / "ids"), ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "ids"), ids)


def test_the_best_of_two_answers_are_the_best_of_all():
    left = np.array([[4, 9]]), np.array([[0.9, 0.5]], np.float32)
    right = np.array([[1, 7, 2]]), np.array([[0.9, 0.5, 0.1]], np.float32)
    ids, scores = best_of([left, right], 4)
    assert ids.tolist() == [[1, 4, 7, 9]], "equal ones by id"
    np.testing.assert_allclose(scores, [[0.9, 0.9, 0.5, 0.5]])


@pytest.fixture(params=["exact", "ivf"])
def searcher(request, make_store, tmp_path, clustered):
    """300 of a corpus, 20 of them dead; 30 came, of which 10 are copies of some that were there."""
    vectors = clustered(320, 12)[0]
    vectors = np.concatenate([vectors, vectors[100:110]])
    folder, config = Folder.at(tmp_path / "ix"), IndexConfig(kind=request.param, num_queries=60)
    told = Instructions(gone=np.array([5, 8]))
    update_index(make_store(vectors[:300], name="one"), folder, config)
    update_index(make_store(vectors, name="two"), folder, config, told=told)
    remove_pictures(folder, np.arange(20, 38) * 3 + 5)
    found = Searcher.open(folder)
    assert (found.door["delta"]["rows"], found.door["dead"]["rows"]) == (30, 20)
    return found


@pytest.fixture(params=["ivf", "hnsw", "pq", "ivf-pq"])
def copied(request, grow):
    """An index of any kind whose delta holds copies of pictures of its base, and the copies."""
    config = IndexConfig(kind=request.param, num_queries=60)
    grow(1200, config)
    grow(np.concatenate([grow.corpus[:1200], grow.corpus[:60]]), config)
    return np.arange(60) * 3 + 5, (np.arange(60) + 1200) * 3 + 5


@pytest.mark.parametrize("kept_bytes", [0, 1 << 22])
def test_a_picture_has_one_score_wherever_it_lies_and_however_it_is_found(
    copied, folder, kept_bytes, monkeypatch
):
    monkeypatch.setattr("index.subset.KEPT_BYTES", kept_bytes)
    searcher = Searcher.open(folder)
    originals, copies = copied
    queries = searcher.vectors_of(originals) + 0.02 * np.random.default_rng(0).normal(size=(60, 8))
    within = searcher.select(searcher.ids[:-1])
    for options in ({}, {"exact": True}, {"within": within}, {"within": within, "exact": True}):
        together = searcher.search(queries, 1300, **options)
        for number, (original, copy) in enumerate(list(zip(originals, copies, strict=True))[:-1]):
            alone = searcher.search(queries[number : number + 1], 20, **options)
            ids = alone.ids[0].tolist()
            assert ids.index(copy) == ids.index(original) + 1, options
            scores = dict(zip(together.ids[number], together.scores[number], strict=True))
            assert scores[original] == scores[copy]
            assert [scores[picture] for picture in ids] == alone.scores[0].tolist()
            tuned = searcher.search(queries[number : number + 1], 20)
            shown = dict(zip(tuned.ids[0], tuned.scores[0], strict=True))
            assert all(scores.get(picture, shown[picture]) == shown[picture] for picture in shown)


def all_of(searcher):
    return searcher.ids, searcher.vectors_of(searcher.ids)


def test_the_graph_and_outliers_are_of_what_is_alive(searcher):
    build_graph(searcher, GraphConfig(k=5))
    graph = NeighbourGraph.open(searcher)
    ids, vectors = all_of(searcher)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    truth = -np.sort(-cosines, axis=1)[:, :5]
    streamed = [np.concatenate(column) for column in zip(*graph.iter_pieces(), strict=True)]
    np.testing.assert_array_equal(streamed[0], ids)
    assert np.isin(streamed[1], ids).all()
    # A stored vector is of unit norm up to float16's rounding; as a query it is made exactly so.
    assert (streamed[2] >= truth - 1e-3).mean() > 0.95
    assert set(outlier_table(graph)["id"].to_pylist()) == set(ids.tolist())


def test_near_duplicates_join_base_and_delta(searcher):
    build_graph(searcher, GraphConfig(k=5))
    build_duplicates(searcher, NeighbourGraph.open(searcher), [], DuplicateConfig(threshold=0.999))
    groups = DuplicateGroups.open(searcher)
    for copy in range(320, 330):
        assert groups.members(copy * 3 + 5).tolist() == [(copy - 220) * 3 + 5, copy * 3 + 5]
    query = searcher.vectors_of([320 * 3 + 5])
    shown = searcher.search(query, 30, exact=True, ranking=Ranking(groups=groups))
    assert len(np.unique(groups.group_of(shown.ids[0]))) == 30


def test_the_map_has_a_place_for_each_that_is_alive(searcher):
    build_map(searcher, MapConfig(method="pca"))
    np.testing.assert_array_equal(open_map(searcher)["id"].to_numpy(), searcher.ids)


def test_variety_is_chosen_from_both_layers(searcher):
    ids, vectors = all_of(searcher)
    # Like no picture: with one itself, all others have the same merit, but for rounding.
    query = unit(vectors[ids == 310 * 3 + 5] + vectors[:1])
    scores = vectors @ query[0]
    pool = np.lexsort((ids, -scores))[:50]
    chosen = pool[diverse(scores[pool], vectors[pool], 8, 0.5)]
    found = searcher.search(query, 8, exact=True, ranking=Ranking(diversity=0.5))
    assert found.ids[0].tolist() == ids[chosen].tolist()
    assert (found.ids[0] >= 300 * 3 + 5).any()
    assert (found.ids[0] < 300 * 3 + 5).any()


def test_more_than_there_are_is_a_short_answer_of_all(searcher):
    hits = searcher.search(np.ones((2, 12)), 1000)
    assert hits.ids.shape == (2, 310)
    assert hits.flags == {"short"}
    assert hits.num_searched == 310
    np.testing.assert_array_equal(np.sort(hits.ids, axis=1), [searcher.ids] * 2)
    assert hits.plan.num_selected == 310
