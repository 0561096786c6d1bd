"""Centroids in cells: the nearest are found, all of them when all are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index import choose
from index.artifact import Folder
from index.build import build_index
from index.choose import IndexConfig, Recipe
from index.coarse import Coarse, put_centroids
from index.measure import TIE
from index.part import Part, train_template
from index.search import Searcher
from index.vectors import unit

NUM_LISTS, DIM = 400, 16


@pytest.fixture(scope="module")
def centroids() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(NUM_LISTS, DIM)))


@pytest.fixture(params=["flat", "in cells"])
def quantizer(request: Any, centroids: np.ndarray) -> Any:
    lists = {"flat": "IVF400,Flat", "in cells": "IVF400(IVF20,Flat),Flat"}[request.param]
    whole = faiss.index_factory(DIM, lists, faiss.METRIC_INNER_PRODUCT)
    put_centroids(whole.quantizer, centroids)
    yield whole.quantizer
    assert whole.nlist == NUM_LISTS


def test_all_lists_come_when_all_are_asked_for(quantizer: Any, centroids: np.ndarray) -> None:
    coarse = Coarse(quantizer)
    np.testing.assert_array_equal(coarse.centroids(), centroids)
    queries = unit(np.random.default_rng(1).normal(size=(5, DIM)))
    closeness, lists = coarse.nearest(queries, NUM_LISTS)
    assert (np.sort(lists, axis=1) == np.arange(NUM_LISTS)).all()
    truth = -np.sort(-(queries @ centroids.T), axis=1)
    np.testing.assert_allclose(closeness, truth, atol=1e-6)


def test_most_of_the_nearest_lists_come_first(quantizer: Any, centroids: np.ndarray) -> None:
    """Random centroids have no cells to speak of: nothing lies more awkwardly."""
    queries = unit(np.random.default_rng(2).normal(size=(200, DIM)))
    _, lists = Coarse(quantizer).nearest(queries, 8)
    truth = np.argsort(-(queries @ centroids.T), axis=1)[:, :8]
    found = [len(set(a) & set(b)) for a, b in zip(lists, truth, strict=True)]
    assert np.mean(found) >= 0.8 * 8


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq"])
def test_an_index_with_cells_answers_exactly_and_within_selections(
    kind: Any, make_store: Any, clustered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "CELLS_FROM", 16)
    vectors, _ = clustered(4000, DIM, classes=50, noise=0.7)
    config = IndexConfig(kind=kind, num_queries=200, part_rows=1500)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    assert "(IVF" in door["recipe"]["factory"]
    assert door["recall"]["low"] >= 0.95
    assert door["parameters"]["nprobe"] < door["parameters"]["nlist"], "without a full scan"
    searcher = Searcher.open(tmp_path / "ix")
    queries = unit(vectors[::100] + 0.1)
    stored = searcher.vectors_of(searcher.ids)
    hits = searcher.search(queries, 10, exact=True)
    truth = -np.sort(-(queries @ stored.T), axis=1)[:, :10]
    np.testing.assert_allclose(hits.scores, truth, atol=TIE)
    monkeypatch.setattr("index.planner.GATHER_NS", 1e9)
    monkeypatch.setattr("index.subset.KEPT_BYTES", 0)
    for rows in (np.arange(0, 4000, 2), np.arange(2500, 3000)):
        hits = searcher.search(queries, 10, within=searcher.select(searcher.ids[rows]))
        truth = -np.sort(-(queries @ stored[rows].T), axis=1)[:, :10]
        assert hits.plan.way == "lists"
        assert (hits.scores >= truth[:, -1:] - TIE).mean() >= 0.95


def test_rows_go_into_lists_near_them(clustered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "CELLS_FROM", 16)
    rows = unit(clustered(3000, DIM, classes=50, noise=0.7)[0])
    centroids = rows[::20]
    template = train_template(Recipe(kind="ivf", nlist=150, why=""), DIM, rows, centroids)
    part = Part.fill(template, [(np.arange(3000), rows)])
    nearest = np.argmax(rows @ centroids.T, axis=1)
    right = sum(
        int((nearest[ids] == number).sum()) for number, ids in enumerate(part.ids_by_list())
    )
    assert right >= 0.95 * 3000
