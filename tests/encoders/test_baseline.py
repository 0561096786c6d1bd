import numpy as np
import pytest

from encoders.baseline import raw_pixel_vectors


@pytest.fixture
def pixels():
    coarse = np.random.default_rng(0).integers(60, 180, (6, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def test_vectors_are_centred_area_means_of_unit_norm(pixels):
    vectors = raw_pixel_vectors(pixels)
    assert vectors.shape == (6, 3 * 16 * 16)
    assert vectors.dtype == np.float32
    for row in range(6):
        small = pixels[row].reshape(16, 2, 16, 2, 3).mean((1, 3)).transpose(2, 0, 1)
        small -= small.mean((1, 2), keepdims=True)
        np.testing.assert_allclose(vectors[row], small.ravel() / np.linalg.norm(small), atol=1e-5)


def test_brightness_and_contrast_hardly_count(pixels):
    vectors = raw_pixel_vectors(pixels)
    brighter = raw_pixel_vectors(pixels + np.uint8(40))
    np.testing.assert_allclose((vectors * brighter).sum(1), 1, atol=1e-4)


def test_a_picture_smaller_than_the_edge_keeps_all_its_pixels():
    tiny = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert raw_pixel_vectors(tiny).shape == (2, 192)


def test_a_picture_of_one_colour_has_a_unit_vector_that_tells_its_colour():
    flat = np.full((2, 32, 32, 3), 200, np.uint8)
    flat[1, ..., 0] = 10
    vectors = raw_pixel_vectors(flat)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] < 0.9
    assert not raw_pixel_vectors(np.zeros((1, 32, 32, 3), np.uint8)).any()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        raw_pixel_vectors(np.zeros((2, 32, 32, 3), np.float32))
