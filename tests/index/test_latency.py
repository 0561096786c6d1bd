"""Timing a search in parts: what each proposes, and the ranking of all of it, are the search."""

import numpy as np
import pytest

from index.best import NONE
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.latency import latency_in_parts, latency_of
from index.queries import QuerySet
from index.rank import Ranker
from index.search import Searcher
from index.shelf import ShelvedPart
from index.vectors import VECTORS, VectorFile

K, REFINE = 7, 4


@pytest.fixture(scope="module", params=["ivf", "ivf-pq", "hnsw"])
def opened(request, publish_store, clustered, tmp_path_factory):
    folder = Folder.at(tmp_path_factory.mktemp("latency"))
    vectors, _ = clustered(1500, 16, classes=40, noise=0.8)
    config = IndexConfig(kind=request.param, num_queries=60, part_rows=600)
    build_index(publish_store(folder / "embeddings", vectors), folder / "ix", config)
    searcher = Searcher.open(folder / "ix")
    queries = searcher.vectors_of(searcher.ids[::25])
    version = searcher.folder
    parts = [ShelvedPart(version.local_path(part["file"])) for part in searcher.door["parts"]]
    return request.param, parts, VectorFile(version.local_path(VECTORS)), queries


def test_what_parts_propose_in_turn_and_its_ranking_are_the_whole_search(opened):
    kind, parts, vectors, queries = opened
    whole = Ranker(parts, vectors, refine=REFINE)
    alone = [Ranker([part], vectors, refine=REFINE) for part in parts]
    shares = []
    for nprobe in (1, 3, parts[0].nlist):
        for query in queries:
            found = [one.propose(query[None], K, nprobe=nprobe) for one in alone]
            both = whole.joined([whole.joined(found[:2], K), *found[2:]], K)
            ids, scores = whole.rank(query[None], *reversed(both), K)
            if (ids == NONE).any():
                continue  # a search would visit more lists
            expected_ids, expected_scores = whole.top(query[None], K, nprobe=nprobe)
            shares.append(len({*ids[0]} & {*expected_ids[0]}) / K)
            if shares[-1] == 1:
                np.testing.assert_array_equal(ids, expected_ids)
                np.testing.assert_array_equal(scores, expected_scores)
    assert len(shares) > len(queries)
    # Many codes have equal scores, and which of them are cut off depends on the order.
    assert np.mean(shares) > 0.9 if kind == "ivf-pq" else min(shares) == 1


def test_a_latency_is_of_so_many_queries_and_none_without(opened):
    _, parts, vectors, queries = opened
    asked = QuerySet(
        ids=np.full(len(queries), -1),
        vectors=queries,
        true_ids=np.zeros((len(queries), K), np.int64),
        true_scores=np.ones((len(queries), K), np.float32),
        judging=np.ones(len(queries), bool),
    )
    found = latency_in_parts(parts, vectors, asked, 2, REFINE)
    assert found.n == len(queries)
    assert 0 < found.p50 <= found.p95 <= found.p99
    assert latency_of(Ranker(parts, vectors), asked, 2).n == len(queries)
    assert latency_in_parts(parts, vectors, asked.some(0), 2, REFINE) is None
    assert latency_of(Ranker(parts, vectors), asked.some(0), 2) is None
