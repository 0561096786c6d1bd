"""Range search: all that reach a score and no other, by brute force; and answers as Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.search import Searcher


def truth(searcher: Any, query: np.ndarray, min_score: float) -> list[int]:
    scores = searcher.vectors_of(searcher.ids) @ (query / np.linalg.norm(query))
    order = np.lexsort((searcher.ids, -scores))
    return [int(searcher.ids[row]) for row in order if scores[row] >= min(min_score, 1 - 2**-11)]


@pytest.mark.parametrize("min_score", [-1, 0.0, 0.4, 0.9, 1])
def test_a_range_holds_all_that_reach_the_score(shared_searcher: Any, min_score: float) -> None:
    queries = np.random.default_rng(4).normal(size=(5, 16))
    queries[0] = shared_searcher.vectors_of(shared_searcher.ids[7:8])[0]
    found = shared_searcher.range_search(queries, min_score)
    for number, query in enumerate(queries):
        expected = truth(shared_searcher, query, min_score)
        assert found.of(number)[0].tolist() == expected
        assert found.num_matching[number] == len(expected)
    assert (found.num_searched, found.flags) == (600, frozenset())


@pytest.mark.parametrize("kind", ["exact", "ivf", "pq", "ivf-pq", "hnsw"])
def test_the_score_of_a_result_finds_it(kind: str, publish_store: Any, tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    rng = np.random.default_rng(11)
    vectors = rng.normal(size=(1200, 24)).astype(np.float32)
    vectors[600:] = vectors[:600]
    store = publish_store(folder / "embeddings", vectors)
    build_index(store, folder / "ix", IndexConfig(kind=kind, num_queries=20))
    searcher = Searcher.open(folder / "ix")
    queries = rng.normal(size=(6, 24))
    hits = searcher.search(queries, 30, exact=True)
    whole = searcher.range_search(queries, -1)
    for query, ids, scores in zip(queries, hits.ids, hits.scores, strict=True):
        for limit, place in ((10_000, 8), (10_000, 29), (5, 17)):
            found = searcher.range_search(query[None], float(scores[place]), limit=limit)
            reached = int((scores >= scores[place]).sum())
            assert found.num_matching.tolist() == [reached]
            assert found.ids.tolist() == ids[: min(reached, limit)].tolist()
            assert found.scores.tolist() == scores[: min(reached, limit)].tolist()
    for number, (ids, scores) in enumerate(zip(hits.ids, hits.scores, strict=True)):
        assert whole.of(number)[0][:30].tolist() == ids.tolist()
        assert whole.of(number)[1][:30].tolist() == scores.tolist()


def test_a_limited_range_counts_all_and_lists_the_nearest(
    shared_searcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.vector_sets.iter_rows.__defaults__", (7,))
    query = shared_searcher.vectors_of(shared_searcher.ids[:1])
    found = shared_searcher.range_search(query, -1, limit=5)
    assert found.ids.tolist() == truth(shared_searcher, query[0], -1)[:5]
    assert (found.num_matching.tolist(), found.flags) == ([600], {"limited"})


def test_a_range_within_a_selection_leaves_the_others_out(shared_searcher: Any) -> None:
    query = shared_searcher.vectors_of(shared_searcher.ids[:1])
    chosen = shared_searcher.select(shared_searcher.ids[::3])
    found = shared_searcher.range_search(query, 0.2, within=chosen, exclude_ids=[5])
    expected = [i for i in truth(shared_searcher, query[0], 0.2) if i in set(chosen.ids) and i != 5]
    assert found.ids.tolist() == expected
    assert found.num_searched == 199
    nothing = shared_searcher.select([])
    assert len(shared_searcher.range_search(query, 0.2, within=nothing).ids) == 0


def test_no_queries_have_no_matches(shared_searcher: Any) -> None:
    none = np.empty((0, 16))
    assert len(shared_searcher.range_search(none, -1).num_matching) == 0
    found = shared_searcher.range_search(none, -1, any_of=True)
    assert (found.num_matching.tolist(), found.offsets.tolist()) == ([0], [0, 0])
    assert len(found.ids) == len(found.scores) == 0


@pytest.mark.parametrize("min_score", [-1.01, 1.5, float("nan")])
def test_a_score_that_is_no_cosine_is_refused(shared_searcher: Any, min_score: float) -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        shared_searcher.range_search(np.ones((1, 16)), min_score)
    with pytest.raises(ValueError, match="at least 1"):
        shared_searcher.range_search(np.ones((1, 16)), 0.5, limit=0)
    with pytest.raises(ValueError, match="not finite"):
        shared_searcher.range_search(np.full((1, 16), np.nan), 0.5)


def test_answers_are_arrow_tables_of_one_row_a_result(shared_searcher: Any) -> None:
    queries = shared_searcher.vectors_of(shared_searcher.ids[:3])
    hits = shared_searcher.search(queries, 4)
    table = hits.to_arrow()
    assert table.column_names == ["query", "rank", "id", "score"]
    assert table["query"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["rank"].to_pylist() == [1, 2, 3, 4] * 3
    assert table["id"].to_pylist() == hits.ids.reshape(-1).tolist()
    address = table["id"].chunk(0).buffers()[1].address
    assert address == hits.ids.ctypes.data, "not copied"
    ranges = shared_searcher.range_search(queries, 0.95)
    table = ranges.to_arrow()
    assert table["id"].to_pylist() == ranges.ids.tolist()
    for number in range(3):
        rows = table.filter(np.array(table["query"]) == number)
        assert rows["rank"].to_pylist() == list(range(1, len(ranges.of(number)[0]) + 1))


@pytest.mark.parametrize("dim", [2, 3, 64])
def test_every_copy_reaches_the_highest_score(publish_store: Any, tmp_path: Any, dim: int) -> None:
    once = np.random.default_rng(0).normal(size=(200, dim)).astype(np.float32)
    folder = Folder.at(tmp_path)
    store = publish_store(folder / "set", np.concatenate([once, once]))
    build_index(store, folder / "ix", IndexConfig(num_queries=20))
    searcher = Searcher.open(folder / "ix")
    found = searcher.range_search(searcher.vectors_of(searcher.ids), 1.0)
    for row, picture in enumerate(searcher.ids):
        copies = {int(searcher.ids[row % 200]), int(searcher.ids[row % 200 + 200])}
        assert copies <= set(found.of(row)[0].tolist()), picture
