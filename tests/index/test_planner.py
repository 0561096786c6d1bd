"""Search within a selection: recall by brute force, whatever the share and wherever it lies."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from index import planner, subset
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.measure import TIE
from index.search import Searcher
from index.selection import Selection

NUM_ROWS, DIM = 6000, 24
SHARES = (1.0, 0.999, 0.5, 0.1, 0.01, 0.001)


@pytest.fixture(scope="module", params=["exact", "ivf", "ivf-pq", "pq", "hnsw"])
def searcher(request: Any, publish_store: Any, clustered: Any, tmp_path_factory: Any) -> Searcher:
    folder = Folder.at(tmp_path_factory.mktemp("planner"))
    vectors, _ = clustered(NUM_ROWS, DIM, classes=60, noise=0.6)
    store = publish_store(folder / "embeddings", vectors, shard_rows=3000)
    config = IndexConfig(kind=request.param, num_queries=200, part_rows=2500)
    build_index(store, folder / "ix", config)
    return Searcher.open(folder / "ix", verify="sizes")


@pytest.fixture(params=["chosen", "lists"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The planner's own choice, and lists whenever there are some, as in a corpus of millions."""
    if request.param == "lists":
        monkeypatch.setattr(planner, "GATHER_NS", 1e9)
        monkeypatch.setattr(subset, "KEPT_BYTES", 0)
    return str(request.param)


def selections(searcher: Searcher, share: float) -> dict[str, np.ndarray]:
    """Rows with nothing in common; of some clusters alone; and of one side of space."""
    rng = np.random.default_rng(3)
    count = max(1, round(share * NUM_ROWS))
    vectors = searcher.vectors_of(searcher.ids)
    return {
        "uncorrelated": rng.choice(NUM_ROWS, count, replace=False),
        "clusters": np.roll(np.arange(NUM_ROWS), -1234)[:count],  # rows are sorted by cluster
        "one side": np.argsort(-(vectors @ rng.normal(size=DIM)))[:count],
    }


def best_scores(searcher: Searcher, queries: np.ndarray, k: int, rows: np.ndarray) -> np.ndarray:
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = units @ searcher.vectors_of(searcher.ids[np.sort(rows)]).T
    return -np.sort(-scores, axis=1)[:, :k]


@pytest.mark.parametrize("share", SHARES)
def test_recall_holds_at_every_share_of_pictures(
    searcher: Searcher, way: str, share: float
) -> None:
    rng = np.random.default_rng(5)
    queries = searcher.vectors_of(rng.choice(searcher.ids, 40)) + 0.05 * rng.normal(size=(40, DIM))
    for name, rows in selections(searcher, share).items():
        chosen = searcher.select(searcher.ids[rows])
        hits = searcher.search(queries, 10, within=chosen)
        truth = best_scores(searcher, queries, 10, rows)
        assert hits.ids.shape == truth.shape == (40, min(10, len(rows)))
        assert np.isin(hits.ids, searcher.ids[rows]).all(), name
        recall = (hits.scores >= truth[:, -1:] - TIE).mean()
        assert recall >= (1.0 if hits.plan.is_exact else 0.95), (name, recall, hits.plan)
        assert ("short" in hits.flags) == (len(rows) < 10)
        if share == 1:
            assert hits.plan.way in ("tuned", "exact"), "no filter at all"
        elif way == "lists":
            kind = searcher.door["recipe"]["kind"]
            assert hits.plan.way == {"exact": "scan", "hnsw": "subset"}.get(kind, "lists")
        exact = searcher.search(queries, 10, within=chosen, exact=True)
        np.testing.assert_allclose(exact.scores, truth, atol=1e-6)
        assert exact.plan.is_exact


def test_a_selection_of_another_version_is_refused(searcher: Searcher) -> None:
    other = Selection.of_ids(searcher.ids[:-1], searcher.ids[:5])
    for ask in (
        lambda: searcher.search(np.ones((1, DIM)), 3, within=other),
        lambda: searcher.range_search(np.ones((1, DIM)), 0.5, within=other),
    ):
        with pytest.raises(ValueError, match="Select from the version that is searched"):
            ask()
    equal = Selection.of_ids(searcher.ids.copy(), searcher.ids[:5])
    assert searcher.search(np.ones((1, DIM)), 3, within=equal).ids.shape == (1, 3)


def test_nothing_selected_gives_an_empty_flagged_answer(searcher: Searcher, way: str) -> None:
    hits = searcher.search(np.ones((2, DIM)), 5, within=searcher.select([10**9]))
    assert hits.ids.shape == (2, 0)
    assert (hits.flags, hits.plan.num_selected) == ({"short"}, 0)


@pytest.mark.parametrize("num_excluded", [1, 1500])
def test_excluded_pictures_are_no_results_of_a_selection(
    searcher: Searcher, way: str, num_excluded: int
) -> None:
    chosen = searcher.select(searcher.ids[::2])
    exclude = searcher.ids[:num_excluded]
    query = searcher.vectors_of(searcher.ids[:1])
    hits = searcher.search(query, 10, within=chosen, exclude_ids=exclude)
    assert not np.isin(hits.ids, exclude).any()
    assert hits.num_searched == 3000 - (num_excluded + 1) // 2
    everything = searcher.search(query, 10**6, within=chosen, exclude_ids=exclude)
    assert sorted(everything.ids[0]) == sorted(np.setdiff1d(chosen.ids, exclude))
    assert everything.flags == {"short"}


@pytest.mark.parametrize("k", [1, 5])
def test_a_selection_far_from_the_query_is_found_in_few_comparisons(
    searcher: Searcher, way: str, k: int
) -> None:
    """Lists without a selected picture are passed over, however near they are."""
    vectors = searcher.vectors_of(searcher.ids)
    recalls = []
    for query in vectors[::400]:
        far = np.argsort(vectors @ query)[:1500]
        hits = searcher.search(query[None], k, within=searcher.select(searcher.ids[far]))
        truth = best_scores(searcher, query[None], k, far)
        recalls.append((hits.scores >= truth[:, -1:] - TIE).mean())
        assert hits.plan.num_compared is not None
        assert k <= hits.plan.num_compared <= 1500
    assert np.mean(recalls) >= 0.9


def test_threads_with_selections_of_their_own_answer_as_one_would(
    searcher: Searcher, way: str
) -> None:
    queries = searcher.vectors_of(searcher.ids[:20])
    chosen = [searcher.select(searcher.ids[start::7]) for start in range(7)]
    serial = [searcher.search(queries, 6, within=one).ids for one in chosen]
    differing = []

    def run(number: int) -> None:
        for _ in range(5):
            found = searcher.search(queries, 6, within=chosen[number]).ids
            if not np.array_equal(found, serial[number]):
                differing.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not differing


def test_ids_that_lie_thin_are_selected_without_a_bitmap_as_long_as_the_last() -> None:
    ids = np.array([3, 10**12, 2**62], np.int64)
    chosen = Selection.of_ids(ids, np.array([10**12, 7, 3, 3]))
    assert chosen.ids.tolist() == [3, 10**12]
    assert [bool(chosen.selector.is_member(int(i))) for i in ids] == [True, True, False]
    dense = Selection.of_ids(np.arange(20), np.array([0, 7, 8, 19]))
    members = [i for i in range(40) if dense.selector.is_member(i)]
    assert members == [0, 7, 8, 19]
    assert Selection.of_ids(ids, np.array([5])).selector is not None


def test_many_queries_at_once_are_answered_as_one_by_one(searcher: Searcher, way: str) -> None:
    """In blocks too: each query walks through the lists by itself."""
    rng = np.random.default_rng(8)
    queries = rng.normal(size=(30, DIM))
    for rows in selections(searcher, 0.3).values():
        chosen = searcher.select(searcher.ids[rows])
        together = searcher.search(queries, 7, within=chosen)
        singly = [searcher.search(query[None], 7, within=chosen) for query in queries]
        np.testing.assert_array_equal(together.ids, np.concatenate([one.ids for one in singly]))
        assert all(len(set(row)) == 7 for row in together.ids.tolist()), "no list is visited twice"


def test_clusters_whose_centres_have_nothing_in_common_are_found_by_far_queries(
    publish_store: Any, clustered: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cluster lies between a query and those selected: its neighbours lie anywhere."""
    monkeypatch.setattr(planner, "GATHER_NS", 1e9)
    monkeypatch.setattr(subset, "KEPT_BYTES", 0)
    vectors, _ = clustered(12_000, 64, classes=400, noise=0.7)
    store = publish_store(Folder.at(tmp_path / "set"), vectors)
    build_index(store, Folder.at(tmp_path / "ix"), IndexConfig(kind="ivf", num_queries=200))
    found = Searcher.open(tmp_path / "ix", verify="sizes")
    rows = np.arange(6000)  # rows are sorted by cluster
    chosen = found.select(found.ids[rows])
    queries = found.vectors_of(found.ids[6000::60])
    hits = found.search(queries, 10, within=chosen)
    assert hits.plan.way == "lists"
    truth = best_scores(found, queries, 10, rows)
    assert (hits.scores >= truth[:, -1:] - TIE).mean() >= 0.95
