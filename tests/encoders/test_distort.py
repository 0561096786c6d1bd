import numpy as np
from sklearn.datasets import load_digits

from encoders.baseline import raw_pixel_vectors
from encoders.distort import distort


def digits(num: int, edge: int) -> np.ndarray:
    gray = (255 - load_digits().images[:num] * 15).astype(np.uint8)
    large = gray.repeat(edge // 8, axis=1).repeat(edge // 8, axis=2)
    return np.repeat(large[..., None], 3, axis=3)


def test_a_query_depends_on_seed_and_id_alone():
    pixels, ids = digits(8, 64), np.arange(8)
    queries = distort(pixels, ids, seed=0, size=32)
    assert queries.shape == (8, 32, 32, 3)
    assert queries.dtype == np.uint8
    assert np.array_equal(distort(pixels, list(ids), seed=0, size=32), queries)
    back = distort(pixels[::-1], ids[::-1], seed=0, size=32)[::-1]
    assert np.abs(back.astype(int) - queries).max() <= 1
    for other in (
        distort(pixels, ids, seed=1, size=32),
        distort(pixels, ids + 8, seed=0, size=32),
    ):
        assert (np.abs(other.astype(int) - queries).max((1, 2, 3)) > 20).all()


def test_read_only_pixels_are_left_as_they_are():
    pixels = digits(4, 64)
    before = pixels.copy()
    pixels.setflags(write=False)
    distort(pixels, np.arange(4), seed=0, size=32)
    assert np.array_equal(pixels, before)


def test_a_query_is_hard_for_pixels_but_still_shows_its_picture():
    pixels, ids = digits(300, 64), np.arange(300)
    small = pixels.reshape(300, 32, 2, 32, 2, 3).mean((2, 4)).astype(np.uint8)
    corpus = raw_pixel_vectors(small)
    queries = raw_pixel_vectors(distort(pixels, ids, seed=0, size=32))
    scores = queries @ corpus.T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    found_first, found_in_10 = (rank < 1).mean(), (rank < 10).mean()
    chance = 1 / 300
    assert 3 * chance < found_first < 0.5
    assert found_first < found_in_10 < 0.8
