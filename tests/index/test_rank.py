"""The one way to ranked ids: dead rows, excluded ids, equal scores, parts without lists."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import rank
from index.best import best_first
from index.build import build_index
from index.choose import IndexConfig, exact_recipe
from index.folder import Folder
from index.layers import refine_of
from index.measure import TIE
from index.part import Part
from index.planner import Planner
from index.rank import MAX_DROPPED, Ranker
from index.search import Searcher
from index.selection import Living, Selection
from index.template import train_template
from index.vector_writer import VectorWriter
from index.vectors import VectorFile, unit

NUM_ROWS, DIM, COPIES = 1500, 16, 25


@pytest.fixture(scope="module", params=["exact", "ivf", "ivf-pq", "pq", "hnsw"])
def searcher(request: Any, publish_store: Any, clustered: Any, tmp_path_factory: Any) -> Searcher:
    folder = Folder.at(tmp_path_factory.mktemp("rank"))
    vectors, _ = clustered(NUM_ROWS, DIM, classes=40, noise=0.8)
    vectors[40 : 40 + 3 * COPIES : 3] = vectors[40]
    store = publish_store(folder / "embeddings", vectors)
    build_index(
        store, folder / "ix", IndexConfig(kind=request.param, num_queries=100, part_rows=600)
    )
    return Searcher.open(folder / "ix", verify="sizes")


def parts_of(searcher: Searcher) -> list[Part]:
    return [Part.open(searcher.folder.local_path(part["file"])) for part in searcher.door["parts"]]


def stored(searcher: Searcher) -> VectorFile:
    return VectorFile(searcher.folder.local_path("vectors.arrow"))


def ranker_of(searcher: Searcher, live: Living | None = None) -> Ranker:
    refine = searcher.door["parameters"].get("refine", 1)
    return Ranker(parts_of(searcher), stored(searcher), refine=refine, live=live)


def nearest(searcher: Searcher, query: np.ndarray, k: int, rows: np.ndarray) -> list[int]:
    ids = searcher.ids[rows]
    scores = searcher.vectors_of(ids) @ query
    return [int(picture) for _, picture in sorted(zip(-scores, ids, strict=True))[:k]]


def queries_near(searcher: Searcher, count: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    drawn = searcher.vectors_of(rng.choice(searcher.ids, count))
    return unit(drawn + 0.1 * rng.normal(size=drawn.shape))


@pytest.mark.parametrize("num_excluded", [0, 3, MAX_DROPPED + 1])
@pytest.mark.parametrize("share_dead", [0.02, 0.5, 0.99])
def test_dead_and_excluded_rows_are_never_results(
    searcher: Searcher, share_dead: float, num_excluded: int
) -> None:
    """The dead lie close together, so that a query among them has to look far."""
    queries = queries_near(searcher, 12)
    near = np.argsort(-(searcher.vectors_of(searcher.ids) @ queries[0]))
    dead = near[: round(share_dead * NUM_ROWS)]
    rows = np.setdiff1d(np.arange(NUM_ROWS), dead)
    ranker = ranker_of(searcher, Living(searcher.ids, np.sort(searcher.ids[dead])))
    exclude = np.sort(searcher.ids[near[len(dead) - 1 :][:num_excluded]])
    rows = rows[~np.isin(searcher.ids[rows], exclude)]
    for nprobe in (1, ranker.nlist):
        ids, scores = ranker.top(queries, 10, nprobe=nprobe, exclude=exclude)
        assert ids.shape == scores.shape == (12, min(10, len(rows)))
        assert np.isin(ids, searcher.ids[rows]).all()
    truth = [nearest(searcher, query, 10, rows) for query in queries]
    expected = np.array([searcher.vectors_of(t) @ q for t, q in zip(truth, queries, strict=True)])
    np.testing.assert_allclose(scores, expected, atol=TIE)
    assert ranker.num_available(exclude) == len(rows)


@pytest.mark.parametrize("num_queries", [1, 2])
@pytest.mark.parametrize("k", [10, 100, 200])
def test_where_no_row_may_be_a_result_the_answer_is_empty(
    searcher: Searcher, k: int, num_queries: int
) -> None:
    queries = queries_near(searcher, num_queries)
    alone = Part.open(searcher.folder.local_path(searcher.door["parts"][0]["file"]))
    dead = Living(searcher.ids, searcher.ids)
    for ranker in (ranker_of(searcher, dead), replace(ranker_of(searcher, dead), parts=[alone])):
        ids, scores = ranker.top(queries, k, nprobe=1)
        assert ids.shape == scores.shape == (num_queries, 0)
    ids, _ = ranker_of(searcher).top(queries, k, nprobe=1, exclude=searcher.ids)
    assert ids.shape == (num_queries, 0)


def test_a_selection_never_brings_dead_rows_back(searcher: Searcher) -> None:
    live = Living(searcher.ids, searcher.ids[1::2])
    planner = Planner(ranker_of(searcher, live), parts_of(searcher), 2)
    chosen = searcher.select(searcher.ids[:300])
    for exact in (False, True):
        ids, _, plan = planner.top(
            queries_near(searcher, 5), 400, chosen, np.empty(0, np.int64), exact=exact
        )
        assert sorted(ids[0]) == sorted(searcher.ids[:300:2])
        assert plan.num_selected == 150


def test_equal_scores_come_by_id_in_one_query_and_in_many(searcher: Searcher) -> None:
    queries = queries_near(searcher, 30)
    queries[7] = searcher.vectors_of(searcher.ids[40:41])
    together = searcher.search(queries, 12)
    for number, query in enumerate(queries):
        alone = searcher.search(query[None], 12)
        np.testing.assert_array_equal(alone.ids[0], together.ids[number])
        np.testing.assert_array_equal(alone.scores[0], together.scores[number])
    scores, ids = together.scores[7], together.ids[7]
    assert np.unique(scores).tolist() == [scores[0]], "all of them copies"
    assert (np.diff(ids) > 0).all()


def test_a_part_goes_with_its_last_user_and_waits_for_no_collector(searcher: Searcher) -> None:
    ranker, queries = ranker_of(searcher), queries_near(searcher, 3)
    parts = [*ranker.parts]
    kept = [weakref.ref(part) for part in parts]
    for some in (queries, queries[:1]):
        ranker.top(some, 5, nprobe=1)
        for part in parts:
            assert isinstance(part, Part)
            part.search(some, 5, nprobe=1)
            part.misfits(some)
    gc.disable()
    try:
        del ranker, parts, part
        assert [each() for each in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_as_many_queries_visit_many_lists_at_once_as_memory_allows(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, queries, excluded = ranker_of(searcher), queries_near(searcher, 30), searcher.ids[:3]
    expected = [ranker.top(queries, 7, nprobe=1, exclude=each) for each in (None, excluded)]
    pairs, search = [], Part.search

    def counted(self: Part, queries_QD: np.ndarray, k: int, **how: Any) -> Any:
        pairs.append(len(queries_QD) * how["nprobe"])
        return search(self, queries_QD, k, **how)

    monkeypatch.setattr(Part, "search", counted)
    monkeypatch.setattr(rank, "PAIR_BYTES", rank.MAX_CANDIDATE_BYTES // 7)
    for each, (ids, scores) in zip((None, excluded), expected, strict=True):
        found = ranker.top(queries, 7, nprobe=1, exclude=each)
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], scores)
    assert max(pairs) == 7


def test_one_query_alone_and_among_others_is_answered_alike_and_in_one_piece(
    searcher: Searcher,
) -> None:
    ranker, queries = ranker_of(searcher), queries_near(searcher, 12)
    excluded = searcher.ids[:3]
    for k, nprobe, exclude in ((1, 1, None), (7, 1, None), (7, 1, excluded), (700, 2, None)):
        ids, scores = ranker.top(queries, k, nprobe=nprobe, exclude=exclude)
        for row, query in enumerate(queries):
            alone = ranker.top(query[None], k, nprobe=nprobe, exclude=exclude)
            assert alone[0].flags.c_contiguous
            assert alone[1].flags.c_contiguous
            np.testing.assert_array_equal(alone[0][0], ids[row])
            np.testing.assert_array_equal(alone[1][0], scores[row])
        assert (ids >= 0).all()


def test_best_first_sorts_what_parts_left_side_by_side() -> None:
    ids = np.array([[5, 3, -1, 9, 2], [1, 2, 3, 4, 5]])
    scores = np.array([[0.3, 0.2, -np.inf, 0.3, 0.8], [0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)
    found, best = best_first(ids, scores, 4)
    assert found.tolist() == [[2, 5, 9, 3], [1, 2, 3, 4]]
    np.testing.assert_array_equal(best[0], np.array([0.8, 0.3, 0.3, 0.2], np.float32))


@pytest.mark.parametrize("searcher", ["ivf-pq", "pq"], indirect=True)
def test_parts_together_propose_as_many_candidates_as_one(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[np.ndarray] = []
    ranker, whole = ranker_of(searcher), Ranker.rank

    def counted(self: Ranker, queries: Any, ids: Any, scores: Any, k: int) -> Any:
        compared.append(ids)
        return whole(self, queries, ids, scores, k)

    monkeypatch.setattr(Ranker, "rank", counted)
    queries, rows = queries_near(searcher, 10), np.arange(NUM_ROWS)
    ranker = replace(ranker, refine=4)
    ids, _ = ranker.top(queries, 5, nprobe=ranker.nlist - 1)
    assert len(ranker.parts) == 3
    assert compared[0].shape == (10, ranker.num_wanted(5))
    truth = [nearest(searcher, query, 5, rows) for query in queries]
    assert np.mean([len({*a} & {*b}) / 5 for a, b in zip(ids.tolist(), truth, strict=True)]) > 0.9


@pytest.mark.parametrize("limit", [1, 4 * DIM * 7, 4 * DIM * 100])
@pytest.mark.parametrize("searcher", ["ivf-pq"], indirect=True)
def test_candidates_compared_in_pieces_have_the_same_scores(
    searcher: Searcher, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = queries_near(searcher, 9)
    expected_ids, expected_scores = ranker_of(searcher).top(queries, 5, nprobe=3)
    monkeypatch.setattr("index.rank.MAX_CANDIDATE_BYTES", limit)
    ids, scores = ranker_of(searcher).top(queries, 5, nprobe=3)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [({"nprobe": 3}, 1), ({"refine": 4}, 12), ({"refine": 4, "together": True}, 4)],
)
def test_in_doors_of_before_each_part_proposed_as_many(
    parameters: dict[str, Any], expected: int
) -> None:
    assert refine_of({"parameters": parameters, "parts": [{}, {}, {}]}) == expected


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
@pytest.mark.parametrize("searcher", ["ivf", "ivf-pq"], indirect=True)
def test_a_part_without_lists_beside_parts_with_lists_is_searched_as_a_whole(
    searcher: Searcher, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pictures that came after the build: few, and exact."""
    rng = np.random.default_rng(1)
    late_ids = searcher.ids[-1] + 1 + np.arange(60)
    late = unit(rng.normal(size=(60, DIM))).astype(np.float16)
    file = tmp_path / "vectors.arrow"
    with VectorWriter(str(file), DIM) as writer:
        for ids, rows in stored(searcher).iter_stored():
            writer.add(ids, rows)
        writer.add(late_ids, late)
    vectors = VectorFile(file)
    template = train_template(exact_recipe(""), DIM, np.empty((0, DIM), np.float32))
    small = Part.fill(template, [(late_ids, late.astype(np.float32))])
    refine = searcher.door["parameters"].get("refine", 1)
    parts = [*parts_of(searcher), small]
    ranker = Ranker(parts, vectors, refine=refine)
    queries = unit(late[:20].astype(np.float32) + 0.02 * rng.normal(size=(20, DIM)))
    if share == 1:
        ids, _ = ranker.top(queries, 5, nprobe=1)
        np.testing.assert_array_equal(ids[:, 0], late_ids[:20])
        return
    monkeypatch.setattr("index.planner.GATHER_NS", 1e9)
    monkeypatch.setattr("index.subset.KEPT_BYTES", 0)
    rows = np.union1d(rng.choice(NUM_ROWS, round(share * NUM_ROWS)), NUM_ROWS + np.arange(60))
    chosen = Selection(vectors.ids, rows)
    tuned = min(searcher.door["parameters"]["nprobe"], ranker.nlist // 2)  # not all: a scan
    planner = Planner(ranker, parts, tuned)
    ids, scores, plan = planner.top(queries, 5, chosen, np.empty(0, np.int64))
    assert plan.way == "lists"
    np.testing.assert_array_equal(ids[:, 0], late_ids[:20])
    truth = -np.sort(-(queries @ vectors.gather(rows).T), axis=1)[:, :5]
    assert (scores >= truth[:, -1:] - TIE).mean() >= 0.95
    assert plan.num_compared is not None
    assert 60 <= plan.num_compared <= len(rows)
    only_late = Selection(vectors.ids, NUM_ROWS + np.arange(60))
    ids, _, plan = planner.top(queries, 5, only_late, np.empty(0, np.int64))
    assert (plan.way, plan.is_exact) == ("subset", True)
    np.testing.assert_array_equal(ids[:, 0], late_ids[:20])


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_scores_that_rounding_takes_over_one_are_equal_and_come_by_id(
    kind: str, publish_store: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    near = np.repeat(unit(rng.normal(size=(15, 6))), 20, 0) + 0.0003 * rng.normal(size=(300, 6))
    folder = Folder.at(tmp_path)
    store = publish_store(folder / "embeddings", near.astype(np.float32))
    build_index(store, folder / "ix", IndexConfig(kind=kind, num_queries=20))
    searcher = Searcher.open(folder / "ix")
    queries = np.concatenate([near[::10], -near[::10]])
    found = [searcher.search(queries, k) for k in (8, 40, 300)]
    found += [searcher.search(query[None], k) for query in queries for k in (8, 40, 300)]
    rows = [row for hits in found for row in zip(hits.ids, hits.scores, strict=True)]
    reach = searcher.range_search(queries, -1)
    rows += [reach.of(number) for number in range(len(queries))]
    assert max((scores[:8] == 1).sum() for _, scores in rows) > 4
    assert max((scores[-8:] == -1).sum() for _, scores in rows) > 4
    for ids, scores in rows:
        assert scores.dtype == np.float32
        order = np.lexsort((ids, -scores))
        np.testing.assert_array_equal(order, np.arange(len(ids)))
