"""Float16 vectors of unit norm: a search by inner product finds what float32 would find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from index.rounding import unit_float16
from index.vectors import Floats, unit

K = 10


def clustered(dim: int, noise: float, rows: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((50, dim), np.float32)
    around = noise * rng.standard_normal((rows, dim), np.float32)
    return unit(centres[rng.integers(0, len(centres), rows)] + around)


def norms(vectors_ND: NDArray[np.float16]) -> NDArray[np.float64]:
    return np.linalg.norm(vectors_ND.astype(np.float64), axis=1)


def recall(vectors: Floats, stored: NDArray[np.float16], queries: Floats) -> float:
    answers = [
        np.argpartition(-(queries @ searched.T), K, axis=1)[:, :K]
        for searched in (vectors, stored.astype(np.float32))
    ]
    shared = [len(np.intersect1d(true, found)) for true, found in zip(*answers, strict=True)]
    return float(np.mean(shared)) / K


@pytest.mark.parametrize(("dim", "noise"), [(128, 0.05), (128, 0.2), (512, 0.05)])
def test_the_nearest_are_those_of_float32(dim: int, noise: float) -> None:
    vectors, queries = clustered(dim, noise, 10_000, 1), clustered(dim, noise, 200, 2)
    ours = recall(vectors, unit_float16(vectors), queries)
    assert ours >= 0.99
    assert ours > recall(vectors, vectors.astype(np.float16), queries) + 0.001


@pytest.mark.parametrize("dim", [64, 128, 2048])
def test_the_norm_stays_one(dim: int) -> None:
    vectors = clustered(dim, 1.0, 2000, 1)
    assert np.abs(norms(unit_float16(vectors)) - 1).max() <= 2e-6


rows_of_any_kind = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 40)),
    elements=st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1e-7, 6e-8, 1.0]),
).filter(lambda rows: bool((np.linalg.norm(rows, axis=1) > 1e-30).all()))


@given(rows_of_any_kind)
def test_each_number_is_one_of_the_two_it_lies_between(rows: Floats) -> None:
    exact = unit(rows)
    stored = unit_float16(exact)
    nearest = exact.astype(np.float16)
    below = np.where(nearest <= exact, nearest, np.nextafter(nearest, np.float16(-np.inf)))
    above = np.where(nearest >= exact, nearest, np.nextafter(nearest, np.float16(np.inf)))
    assert ((stored == below) | (stored == above)).all()
    assert (np.abs(norms(stored) - 1) <= np.abs(norms(nearest) - 1) + 1e-6).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    vectors = clustered(96, 0.3, 50, 3)
    alone = np.concatenate([unit_float16(row[None]) for row in vectors])
    np.testing.assert_array_equal(unit_float16(vectors), alone)


def test_what_is_stored_is_stored_again_as_it_is() -> None:
    stored = unit_float16(clustered(128, 0.3, 2000, 4))
    np.testing.assert_array_equal(unit_float16(unit(stored)), stored)


def test_none_are_none() -> None:
    assert unit_float16(np.empty((0, 8), np.float32)).shape == (0, 8)
