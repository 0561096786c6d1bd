import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.build import build_index
from index.choose import IndexConfig
from index.examples import combine_examples
from index.folder import Folder
from index.rank import Ranker
from index.same_encoder import EncoderMismatchError
from index.search import Searcher

DIM = 16


@pytest.fixture
def vectors(clustered):
    return clustered(1200, DIM, noise=0.9)[0]


@pytest.fixture(params=["exact", "ivf"])
def searcher(request, make_store, tmp_path, vectors):
    config = IndexConfig(kind=request.param, num_queries=200, part_rows=500)
    build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    return Searcher.open(tmp_path / "ix")


def brute_force(searcher, query, k, exclude=()):
    stored = searcher.vectors_of(searcher.ids)
    scores = stored @ (query / np.linalg.norm(query))
    pairs = sorted(
        (-float(score), int(picture))
        for picture, score in zip(searcher.ids, scores, strict=True)
        if picture not in exclude
    )
    return [picture for _, picture in pairs[:k]], [-score for score, _ in pairs[:k]]


def test_exact_search_equals_brute_force(searcher):
    queries = np.random.default_rng(0).normal(size=(6, DIM))
    hits = searcher.search(queries, 9, exact=True)
    for q, query in enumerate(queries):
        ids, scores = brute_force(searcher, query, 9)
        assert hits.ids[q].tolist() == ids
        np.testing.assert_allclose(hits.scores[q], scores, atol=1e-6)
    assert hits.ids.dtype == np.int64
    assert hits.scores.dtype == np.float32
    assert (hits.flags, hits.num_searched) == (frozenset(), 1200)


def test_a_picture_is_its_own_nearest(searcher, vectors):
    hits = searcher.search(vectors[::100], 1)
    np.testing.assert_array_equal(hits.ids[:, 0], searcher.ids[::100])
    np.testing.assert_allclose(hits.scores[:, 0], 1, atol=1e-3)
    assert hits.scores.max() <= 1


def test_the_length_of_a_query_does_not_matter(searcher, vectors):
    a, b = searcher.search(vectors[:5], 5), searcher.search(1e20 * vectors[:5].astype(float), 5)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)


@pytest.mark.parametrize("length", [1e-310, 1e-161, 1e-139, 1e139, 1e155, 1e306])
def test_queries_and_examples_may_be_as_long_or_short_as_numbers_go(searcher, vectors, length):
    given = vectors[:2].astype(np.float64)
    plain = searcher.search(given, 9)
    found = searcher.search(length * given, 9)
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-6)
    mean = combine_examples(length * given)
    np.testing.assert_allclose(mean, combine_examples(given), atol=1e-6)


def test_excluded_pictures_never_come_back(searcher, vectors):
    first = searcher.search(vectors[:1], 50).ids[0]
    hits = searcher.search(vectors[:1], 50, exclude_ids=[*first[::2], *first[::2], 10**9, 6])
    assert set(hits.ids[0].tolist()).isdisjoint(first[::2].tolist())
    assert hits.num_searched == 1200 - 25
    expected, _ = brute_force(searcher, vectors[0], 50, exclude=set(first[::2].tolist()))
    exact = searcher.search(vectors[:1], 50, exclude_ids=first[::2], exact=True)
    assert exact.ids[0].tolist() == expected


@pytest.mark.parametrize("strange", [-1, 2**63, 2**64, -(2**63) - 1])
def test_numbers_that_no_picture_can_have_are_unknown_ids(searcher, vectors, strange):
    query = vectors[:1]
    hits = searcher.search(query, 4, exclude_ids=[5, strange])
    assert (hits.num_searched, 5 in hits.ids) == (1199, False)
    assert searcher.range_search(query, -1, exclude_ids=[5, strange]).num_matching == [1199]
    assert searcher.select([strange, 8]).ids.tolist() == [8]
    with pytest.raises(KeyError, match=f"picture {strange} has no vector in this index"):
        searcher.vectors_of([5, strange])


@pytest.mark.parametrize("k", [1195, 1200, 1201, 10**6])
def test_asking_for_more_than_there_is_gives_a_flagged_short_answer(searcher, vectors, k):
    hits = searcher.search(vectors[:2], k)
    assert hits.ids.shape == (2, min(k, 1200))
    assert ("short" in hits.flags) == (k > 1200)
    for row in hits.ids:
        assert sorted(set(row.tolist())) == sorted(row.tolist())
        assert set(row.tolist()) <= set(searcher.ids.tolist())


def test_everything_excluded_gives_an_empty_flagged_answer(searcher, vectors):
    hits = searcher.search(vectors[:3], 5, exclude_ids=searcher.ids)
    assert hits.ids.shape == hits.scores.shape == (3, 0)
    assert (hits.flags, hits.num_searched) == ({"short"}, 0)


def test_no_queries_give_no_answers(searcher):
    assert searcher.search(np.empty((0, DIM)), 4).ids.shape == (0, 4)


@pytest.mark.parametrize("k", [0, -1, 2.5, True, None])
def test_a_senseless_k_is_refused(searcher, vectors, k):
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(vectors[:1], k)


@pytest.mark.parametrize("shape", [(DIM,), (1, DIM + 1), (1, 2, DIM), (0,)])
def test_queries_of_a_wrong_shape_are_refused(searcher, shape):
    with pytest.raises(ValueError, match=rf"needs \[Q, {DIM}\]"):
        searcher.search(np.ones(shape), 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_queries_without_a_direction_are_refused(searcher, bad):
    queries = np.ones((2, DIM))
    queries[1] = bad
    with pytest.raises(ValueError, match="zero or not finite"):
        searcher.search(queries, 3)


def test_another_encoder_or_layer_is_refused_with_a_remedy(searcher):
    searcher.require_encoder("encoder-a", "backbone")
    for encoder in (("encoder-b", "backbone"), ("encoder-a", "projector")):
        with pytest.raises(EncoderMismatchError, match="lookalike embed"):
            searcher.require_encoder(*encoder)


def test_an_unknown_picture_has_no_vector(searcher):
    assert searcher.vectors_of([5, 8]).shape == (2, DIM)
    with pytest.raises(KeyError, match="picture 6 "):
        searcher.vectors_of([5, 6])


def test_the_whole_corpus_streams_in_id_order(searcher):
    ids = np.concatenate([ids for ids, _ in searcher.iter_batches(100)])
    np.testing.assert_array_equal(ids, searcher.ids)
    np.testing.assert_array_equal(ids, np.arange(1200) * 3 + 5)


OPEN_AND_SEARCH = """
import sys
import numpy as np
from index.search import Searcher

searcher = Searcher.open(sys.argv[1])
ids = searcher.search(np.ones((2, searcher.dim)), 3).ids
searcher.search(np.ones((1, searcher.dim)), 3, within=searcher.select(ids[0]))
print([name for name in ("pandas", "torch", "ray") if name in sys.modules])
"""


def test_to_open_and_to_search_an_index_takes_no_heavy_library(searcher):
    folder = str(Path(searcher.folder.local_path("index.json")).parent.parent)
    command = [sys.executable, "-c", OPEN_AND_SEARCH, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


def test_eight_threads_with_their_own_settings_answer_as_one_would(searcher, vectors):
    """A parameter kept in the shared index would leak from one thread into another."""
    ranker: Ranker = searcher._ranker
    jobs = [
        (nprobe, k, exclude)
        for nprobe, k in ((1, 3), (2, 10), (ranker.nlist, 7), (3, 40))
        for exclude in (None, searcher.ids[::2].copy())
    ]
    queries = np.ascontiguousarray(vectors[:40] / np.linalg.norm(vectors[:40], axis=1)[:, None])

    def answer(job):
        nprobe, k, exclude = job
        return ranker.top(queries, k, nprobe=nprobe, exclude=exclude)

    serial = [answer(job) for job in jobs]
    differing = []

    def run(number):
        for _ in range(10):
            ids, scores = answer(jobs[number])
            if not (
                np.array_equal(ids, serial[number][0]) and np.array_equal(scores, serial[number][1])
            ):
                differing.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not differing


@settings(max_examples=15)
@given(data=st.data())
def test_any_filter_and_k_fill_the_answer_as_far_as_possible(shared_searcher, data):
    searcher = shared_searcher
    keep = data.draw(st.integers(0, 30))
    k = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kept = rng.choice(searcher.ids, keep, replace=False)
    exclude = np.setdiff1d(searcher.ids, kept)
    hits = searcher.search(rng.normal(size=(2, DIM)), k, exclude_ids=exclude)
    assert hits.ids.shape == (2, min(k, keep))
    assert np.isin(hits.ids, kept).all()
    assert ("short" in hits.flags) == (k > keep)
    assert np.all(np.diff(hits.scores, axis=1) <= 0)
