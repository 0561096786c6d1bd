"""Codes of 4 bits: of what is left of vectors without the centroids of their lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index.build import build_index
from index.choose import IndexConfig, Recipe
from index.coarse import Coarse
from index.folder import Folder
from index.measure import recall_at_k
from index.part import Part
from index.search import Searcher
from index.template import train_template

NUM_ROWS, DIM, NUM_LISTS = 6000, 32, 50


@pytest.fixture(scope="module")
def rows(clustered: Any) -> np.ndarray:
    """Clusters that lie far apart, for what is inside of them."""
    vectors, _ = clustered(NUM_ROWS, DIM, classes=NUM_LISTS, noise=0.3)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(units, np.float32)


def part_of(rows: np.ndarray, *, residual: bool = True) -> Part:
    recipe = Recipe(kind="ivf-pq", nlist=NUM_LISTS, why="")
    means = rows.reshape(NUM_LISTS, -1, DIM).mean(axis=1)
    template = train_template(recipe, DIM, rows, np.ascontiguousarray(means))
    if not residual:  # as before 2026-11-28
        template.by_residual = False
        template.train(rows)
    return Part.fill(template, [(np.arange(NUM_ROWS), rows)])


def queries_near(rows: np.ndarray) -> np.ndarray:
    drawn = np.random.default_rng(1).choice(NUM_ROWS, 60, replace=False)
    noisy = rows[drawn] + 0.05 * np.random.default_rng(2).normal(size=(60, DIM))
    units = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return np.ascontiguousarray(units, np.float32)


def recall(ids: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> float:
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    return float(np.mean([np.isin(t, i).mean() for t, i in zip(truth, ids, strict=True)]))


def test_codes_of_residuals_tell_near_pictures_apart_where_codes_of_vectors_do_not(
    rows: np.ndarray,
) -> None:
    queries = queries_near(rows)
    found = {
        residual: recall(
            part_of(rows, residual=residual).search(queries, 40, nprobe=5)[1], queries, rows
        )
        for residual in (True, False)
    }
    assert found[True] >= 0.8
    assert found[True] >= found[False] + 0.15


@pytest.mark.parametrize("residual", [True, False], ids=["residuals", "vectors"])
def test_lists_named_one_by_one_give_what_the_nearest_do(
    rows: np.ndarray, residual: bool, tmp_path: Path
) -> None:
    queries = queries_near(rows)
    part_of(rows, residual=residual).write(str(tmp_path / "part.faiss"))
    part = Part.open(tmp_path / "part.faiss")
    assert part.coarse is not None
    expected = part.search(queries, 10, nprobe=4)
    nearest = part.coarse.nearest(queries, 4)[1]
    padded = np.full((60, 8), -1)
    padded[:, :4] = nearest[:, ::-1]
    parameters = faiss.SearchParametersIVF(nprobe=8)
    scores, ids = part.search_lists(queries, 10, padded, parameters)
    np.testing.assert_allclose(scores, expected[0], atol=2e-3)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(ids, expected[1], strict=True)]) > 0.95


def test_a_centroid_that_lies_in_the_way_of_a_query_is_told_as_near_as_it_is(
    rows: np.ndarray,
) -> None:
    part, queries = part_of(rows), queries_near(rows)
    assert part.coarse is not None
    lists = np.random.default_rng(3).integers(-1, NUM_LISTS, (60, 7))
    closeness = part.coarse.closeness(queries, lists)
    centroids = part.coarse.centroids()
    for query, row, found in zip(queries, lists, closeness, strict=True):
        named = row >= 0
        np.testing.assert_allclose(found[named], centroids[row[named]] @ query, atol=1e-6)
    assert Coarse.closeness(part.coarse, queries[:0], lists[:0]).shape == (0, 7)


def test_misfits_are_those_of_what_the_codes_stand_for(rows: np.ndarray) -> None:
    of_residuals, of_vectors = part_of(rows), part_of(rows, residual=False)
    (near, left), (near_too, whole) = of_residuals.misfits(rows), of_vectors.misfits(rows)
    np.testing.assert_allclose(near, near_too, rtol=1e-4)
    assert left.mean() < 0.5 * whole.mean()
    assert left.mean() < 0.5 * near.mean(), "a code says more than the centroid alone"
    far = np.random.default_rng(4).normal(size=(500, DIM)).astype(np.float32)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    assert of_residuals.misfits(far)[1].mean() > 2 * left.mean()


@pytest.mark.parametrize("kind", ["pq", "ivf-pq"])
def test_fewer_results_than_the_cards_are_found_as_well_as_those(
    kind: Any, rows: np.ndarray, publish_store: Any, folder: Folder
) -> None:
    store = publish_store(folder / "embeddings", rows)
    build_index(store, folder / "ix", IndexConfig(kind=kind, num_queries=200))
    searcher = Searcher.open(folder / "ix", verify="sizes")
    assert not searcher.search(rows[:1], 1).plan.is_exact
    half = searcher.select(searcher.ids[::2])
    for k in (1, 3):
        for within in (None, half):
            found, truth = (
                np.concatenate(
                    [
                        searcher.search(
                            searcher.vectors_of([one]),
                            k,
                            exclude_ids=[one],
                            within=within,
                            exact=exact,
                        ).scores
                        for one in searcher.ids[7::40].tolist()
                    ]
                )
                for exact in (False, True)
            )
            assert recall_at_k(found, truth).mean() >= 0.95, (k, within)


def test_codes_that_were_no_good_without_a_filter_do_not_answer_with_one(
    publish_store: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32) + 3
    store = publish_store(folder / "embeddings", vectors)
    build_index(store, folder / "ix", IndexConfig(kind="ivf-pq", num_queries=200))
    searcher = Searcher.open(folder / "ix")
    queries = searcher.vectors_of(searcher.ids[:100]) + np.float32(0.01)
    assert searcher.search(queries, 1).plan.way == "exact", "what the case is about"
    monkeypatch.setattr("index.planner.GATHER_NS", 1e9)
    monkeypatch.setattr("index.subset.KEPT_BYTES", 0)
    chosen = searcher.select(searcher.ids[::2])
    found, truth = (searcher.search(queries, 1, within=chosen, exact=e) for e in (False, True))
    assert found.plan.is_exact
    assert found.ids.tolist() == truth.ids.tolist()
