"""Which lists lie nearest to a query, beside a comparison with every centroid in NumPy."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from scipy.stats import norm

from index.choose import Recipe
from index.coarse import LEVELS, Coarse
from index.part import Part
from index.rank import Ranker
from index.selection import Selection
from index.shelf import open_parts, shelve_parts
from index.template import train_template
from index.vector_writer import VectorWriter
from index.vectors import VectorFile, unit


def directions(num: int, dim: int = 64, *, groups: int = 60, seed: int = 0) -> np.ndarray:
    """Unit vectors float32 [N, D] around some directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, dim))
    found: np.ndarray = unit(
        (centres[rng.integers(0, groups, num)] + rng.normal(size=(num, dim))).astype(np.float32)
    )
    return np.ascontiguousarray(found)


def opened(centroids: np.ndarray) -> Coarse:
    flat = faiss.IndexFlatIP(centroids.shape[1])
    flat.add(centroids)
    return Coarse(flat)


def share_found(lists: np.ndarray, truth: np.ndarray) -> float:
    pairs = zip(lists, truth, strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / len(other) for one, other in pairs]))


def of_many_lists(kind: str, rows: np.ndarray) -> Any:
    """A template of 1,100 lists, whose centroids are the first rows."""
    recipe = Recipe(kind=kind, nlist=1100, why="")  # type: ignore[arg-type]
    return train_template(recipe, 64, rows, np.ascontiguousarray(rows[:1100]))


@pytest.mark.parametrize("wanted", [1, 3, 8, 15])
@pytest.mark.parametrize("dim", [64, 128, 512])
def test_what_codes_propose_holds_the_nearest_lists(wanted: int, dim: int) -> None:
    centroids, queries = directions(1200, dim), directions(300, dim, seed=1)
    coarse = opened(centroids)
    assert coarse.proposed(queries, wanted) is not None
    closeness, lists = coarse.nearest(queries, wanted)
    products = queries @ centroids.T
    truth = np.argsort(-products, axis=1)[:, :wanted]
    assert share_found(lists, truth) > 0.95
    given = np.take_along_axis(products, lists, axis=1)
    np.testing.assert_allclose(closeness, given, atol=1e-5)
    assert (np.diff(closeness, axis=1) <= 0).all(), "nearest first, by exact products"


@pytest.mark.parametrize(
    ("num", "dim", "wanted"), [(1000, 64, 1), (1200, 64, 40), (1200, 65, 2), (1200, 32, 2)]
)
def test_few_lists_and_odd_dimensions_and_many_wanted_are_compared_one_by_one(
    num: int, dim: int, wanted: int
) -> None:
    centroids, queries = directions(num, dim), directions(50, dim, seed=1)
    coarse = opened(centroids)
    assert coarse.proposed(queries, wanted) is None
    truth = np.argsort(-(queries @ centroids.T), axis=1)[:, :wanted]
    assert share_found(coarse.nearest(queries, wanted)[1], truth) == 1


def test_levels_are_the_means_of_what_lies_nearest_to_them() -> None:
    edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
    means = [
        (norm.pdf(low) - norm.pdf(high)) / (norm.cdf(high) - norm.cdf(low))
        for low, high in pairwise(edges)
    ]
    np.testing.assert_allclose(LEVELS, means, atol=2e-4)


def test_centroids_that_are_equal_or_flat_in_a_dimension_are_lists_all_the_same() -> None:
    centroids = np.repeat(directions(600, 64), 2, axis=0)
    centroids[:, 3] = 0
    centroids = np.ascontiguousarray(centroids / np.linalg.norm(centroids, axis=1, keepdims=True))
    queries = np.ascontiguousarray(centroids[::40])
    coarse = opened(centroids)
    closeness, lists = coarse.nearest(queries, 2)
    np.testing.assert_allclose(closeness, 1, atol=1e-5)
    assert (np.sort(lists, axis=1)[:, 0] // 2 == np.arange(0, 1200, 40) // 2).all()


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq"])
def test_a_part_of_many_lists_visits_the_nearest_and_all_lists_are_exact(kind: str) -> None:
    rows, queries = directions(6000), directions(40, seed=1)
    template = of_many_lists(kind, rows)
    part = Part.fill(template, [(np.arange(6000), rows)])
    assert part.coarse is not None
    assert part.coarse.proposed(queries, 4) is not None
    scores, ids = part.search(queries, 5, nprobe=4)
    lists = part.coarse.nearest(queries, 4)[1]
    ids_of = [*part.ids_by_list()]
    allowed = [np.concatenate([ids_of[number] for number in row]) for row in lists]
    for found, may in zip(ids, allowed, strict=True):
        assert np.isin(found[found >= 0], may).all()
    one_by_one = np.concatenate([part.search(q[None], 5, nprobe=4)[1] for q in queries])
    np.testing.assert_array_equal(ids, one_by_one)
    if kind == "ivf":
        for query, row, may in zip(queries, scores, allowed, strict=True):
            best = np.sort(rows[may].astype(np.float16) @ query)[::-1][:5]
            np.testing.assert_allclose(row[: len(best)], best, atol=1e-3)
        exact = part.search(queries, 5, nprobe=1100)[1]
        truth = np.argsort(-(queries @ rows.astype(np.float16).astype(np.float32).T), axis=1)
        np.testing.assert_array_equal(exact[:, 0], truth[:, 0])


def test_lists_behind_codes_give_to_the_bit_what_lists_named_one_by_one_do(tmp_path: Path) -> None:
    rows, queries = directions(6000), directions(40, seed=1)
    template = of_many_lists("ivf", rows)
    filled = Part.fill(template, [(np.arange(6000), rows)])
    few = Selection(np.arange(6000), np.arange(0, 6000, 3)).selector
    filled.search(queries, 5, nprobe=4)  # a part that was searched is written as before
    filled.write(str(tmp_path / "part.faiss"))
    for part in (filled, Part.open(tmp_path / "part.faiss")):
        assert part.coarse is not None
        for effort, selector in ((1, None), (4, None), (4, few), (17, few)):
            named = part.coarse.nearest(queries, effort)
            expected = part.search(queries, 5, nprobe=effort, selector=selector, nearest=named)
            found = part.search(queries, 5, nprobe=effort, selector=selector)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(filled.lists_of(rows[:1100]), np.arange(1100))


def test_the_list_that_a_vector_belongs_to_is_compared_with_all() -> None:
    centroids, vectors = directions(1500), directions(2000, seed=1)
    lists = opened(centroids).lists_of(vectors)
    np.testing.assert_array_equal(lists, (vectors @ centroids.T).argmax(axis=1))


def test_lists_of_the_same_centroids_alone_are_shared() -> None:
    centroids = directions(1100)
    coarse = opened(centroids)
    assert coarse.is_like(coarse.apart())
    moved = centroids.copy()
    moved[7, 0] += 1e-3
    assert not coarse.is_like(opened(moved))
    assert not coarse.is_like(opened(centroids[:1000]))


@pytest.mark.parametrize("opened_by", [open_parts, shelve_parts])
@pytest.mark.parametrize("kind", ["ivf", "ivf-pq"])
def test_parts_of_the_same_centroids_visit_lists_that_are_found_once(
    kind: str, opened_by: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = directions(5000), directions(30, seed=1)
    template = of_many_lists(kind, rows)
    paths = []
    for number, ids in enumerate(np.array_split(np.arange(5000), 3)):
        paths.append(tmp_path / f"{number}.faiss")
        Part.fill(template, [(ids, rows[ids])]).write(str(paths[-1]))
    with VectorWriter(str(tmp_path / "vectors.arrow"), 64) as writer:
        writer.add(np.arange(5000), rows.astype(np.float16))
    vectors = VectorFile(tmp_path / "vectors.arrow")
    alone = Ranker([Part.open(path) for path in paths], vectors, refine=4)
    together = opened_by(paths)
    shared = Ranker(together, vectors, refine=4)
    expected = alone.top(queries, 5, nprobe=3)
    calls = []
    nearest = Coarse.nearest

    def counted(self: Coarse, *asked: Any) -> Any:
        calls.append(self)
        return nearest(self, *asked)

    monkeypatch.setattr(Coarse, "nearest", counted)
    for found, same in zip(shared.top(queries, 5, nprobe=3), expected, strict=True):
        np.testing.assert_array_equal(found, same)
    assert calls == [together[0].coarse]


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq"])
def test_a_part_of_many_lists_goes_with_its_last_user(kind: str) -> None:
    rows, queries = directions(4000), directions(8, seed=1)
    template = of_many_lists(kind, rows)
    part = Part.fill(template, [(np.arange(4000), rows)])
    kept = weakref.ref(part)
    gc.disable()  # a reference to itself would keep the memory until the collector comes by
    try:
        part.search(queries, 5, nprobe=4)
        del part
        assert kept() is None
    finally:
        gc.enable()


def test_threads_get_what_one_gets() -> None:
    coarse, queries = opened(directions(2000)), directions(64, seed=1)
    alone = {count: coarse.nearest(queries, count)[1] for count in (1, 4, 9)}
    fresh, right = opened(directions(2000)), []

    def ask(count: int) -> None:
        answers = [fresh.nearest(queries, count)[1] for _ in range(20)]
        right.append(all(np.array_equal(one, alone[count]) for one in answers))

    threads = [threading.Thread(target=ask, args=(count,)) for count in (1, 4, 9, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_threads_that_ask_a_fresh_part_at_once_get_what_one_gets() -> None:
    rows, queries = directions(4000), directions(8, seed=1)
    template = of_many_lists("ivf", rows)
    part = Part.fill(template, [(np.arange(4000), rows)])
    alone = {count: part.search(queries, 6, nprobe=count)[1] for count in (1, 3, 9)}
    for _ in range(5):
        fresh = Part.fill(template, [(np.arange(4000), rows)])
        with ThreadPoolExecutor(6) as pool:
            asked = [
                (count, pool.submit(fresh.search, queries, 6, nprobe=count))
                for count in (1, 3, 9) * 4
            ]
            for count, found in asked:
                np.testing.assert_array_equal(found.result()[1], alone[count])
