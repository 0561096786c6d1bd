import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import kmeans
from index.kmeans import allot, train_centroids
from index.vectors import unit


def quantisation(centroids, rows):
    return float((rows @ centroids.T).max(axis=1).mean())


@pytest.fixture(scope="module")
def sample(clustered):
    return unit(np.random.default_rng(1).permutation(clustered(6000, 16, classes=80)[0]))


def test_two_levels_are_nearly_as_good_as_one(sample, monkeypatch):
    one = train_centroids(sample, 100, seed=0)
    monkeypatch.setattr(kmeans, "ONE_LEVEL", 50)
    two = train_centroids(sample, 100, seed=0)
    assert one.shape == two.shape == (100, 16)
    at_random = quantisation(sample[:100], sample)
    gain = quantisation(one, sample) - at_random
    assert gain > 0.1
    assert quantisation(two, sample) - at_random > 0.85 * gain
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("one_level", [50, 4096])
def test_the_same_seed_gives_the_same_centroids(sample, monkeypatch, one_level):
    monkeypatch.setattr(kmeans, "ONE_LEVEL", one_level)
    a, b, c = (train_centroids(sample, 100, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_two_levels_take_copies_of_one_picture(monkeypatch):
    monkeypatch.setattr(kmeans, "ONE_LEVEL", 10)
    same = unit(np.ones((500, 8)))
    assert train_centroids(same, 30, seed=0).shape == (30, 8)


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any),
    share=st.floats(0.01, 1),
)
def test_lists_are_divided_whole_and_none_gets_more_than_its_rows(counts, share):
    counts = np.array(counts)
    total = max(1, int(share * counts.sum()))
    shares = allot(total, counts)
    assert shares.sum() == total
    assert (shares <= counts).all()
    assert (np.abs(shares - total * counts / counts.sum()) <= 1).all()
