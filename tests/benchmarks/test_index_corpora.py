"""What indexes are compared on."""

import argparse

import numpy as np
import pytest

from benchmarks import index_corpora
from benchmarks.index_corpora import SOURCES, seen_again, write_corpus
from index.rounding import unit_float16
from index.vectors import unit

ASKED = {"vectors": 700, "queries": 9, "k": 5, "dim": 16, "clusters": 20, "noise": 1.0}


@pytest.fixture
def pictures(monkeypatch):
    """In place of Fashion-MNIST: pictures of ten kinds, and an encoder that is hardly trained."""

    def drawn(split):
        rng = np.random.default_rng(len(split))
        classes = rng.integers(0, 10, 96)
        pixels = rng.integers(0, 20, (96, 32, 32, 3)) + 20 * classes[:, None, None, None]
        return pixels.astype(np.uint8), classes

    monkeypatch.setattr(index_corpora, "fashion_mnist", drawn)
    monkeypatch.setattr(index_corpora, "STEPS", 1)
    monkeypatch.setattr(index_corpora, "BATCH", 32)
    monkeypatch.setattr(index_corpora, "BLOCK_ROWS", 300)


@pytest.mark.parametrize("source", SOURCES)
def test_vectors_are_what_float16_keeps_and_answers_are_exact(tmp_path, pictures, source):
    write_corpus(tmp_path, argparse.Namespace(source=source, **ASKED))
    vectors, queries, truth = (
        np.load(tmp_path / f"{name}.npy") for name in ("vectors", "queries", "truth")
    )
    assert (vectors.dtype, len(vectors), len(queries)) == (np.float32, 700, 9)
    assert (vectors == vectors.astype(np.float16)).all()
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    settled = vectors[np.abs(norms - 1) < 3e-7]
    assert len(settled), "else an index of ours would hold other vectors than the rest"
    np.testing.assert_array_equal(unit_float16(unit(settled)), settled)
    scores = queries @ vectors.T
    np.testing.assert_allclose(
        np.take_along_axis(scores, truth, axis=1), -np.sort(-scores, axis=1)[:, :5], atol=1e-6
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "vectors.npy", "queries.npy", "truth.npy"
    }  # fmt: skip


def test_a_picture_that_is_seen_again_is_another_and_alike():
    rng = np.random.default_rng(0)
    pictures = np.repeat(rng.integers(40, 200, (40, 8, 8, 1), np.uint8), 4, axis=1).repeat(4, 2)
    pictures = np.repeat(pictures, 3, axis=3)
    again = seen_again(pictures, np.random.default_rng(1))
    assert (again.shape, again.dtype) == (pictures.shape, np.uint8)
    assert (seen_again(pictures, np.random.default_rng(1)) == again).all()
    assert (again != pictures).reshape(40, -1).any(axis=1).all()
    levels, others = pictures.mean(axis=(1, 2, 3)), again.mean(axis=(1, 2, 3))
    assert np.corrcoef(levels, others)[0, 1] > 0.2
    assert abs(others.mean() / levels.mean() - 1) < 0.25
