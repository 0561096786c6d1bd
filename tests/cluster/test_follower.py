"""A server answers by the newest scan, though the index stays the same version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.collection import Collection, Found
from cluster.follower import Follower
from cluster.query import Example, SearchQuery
from cluster.search_job import flags_of
from index.artifact import MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.duplicates import DuplicateConfig, build_duplicates
from index.embeddings import EmbeddingStore
from index.graph import GraphConfig, NeighbourGraph, build_graph
from index.removal import remove_pictures
from index.search import Searcher
from index.versions import version_names

YOUNG = [f"2026-01-{day:02d}" for day in range(1, 11)]
OLD = [f"2020-01-{day:02d}" for day in range(1, 11)]
RECENT = SearchQuery(like=(Example(id=0),), where="taken >= '2026-01-01'", k=9)


def until(is_so: Callable[[], bool]) -> None:
    """Wait for another thread's work; a test that waits in vain fails."""
    end_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def found(follower: Follower) -> set[int]:
    return set(follower.collection().find(RECENT).hits.ids[0].tolist())


def paint_over(listed: Any, picture: int) -> None:
    path = Path(listed.catalog.rows([picture])[0].uri)
    noise = np.random.default_rng(picture).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def follower(listed: Any, monkeypatch: pytest.MonkeyPatch) -> Follower:
    """Looks for what is newer at every question."""
    monkeypatch.setattr("cluster.follower.CHECK_S", 0.0)
    return Follower(listed.workspace, listed.index)


def test_a_scan_is_followed_by_filters_and_flags_without_another_version(
    listed: Any, follower: Follower
) -> None:
    before = follower.collection()
    assert found(follower) == set(range(1, 10))
    listed.list(YOUNG[:5] + OLD[5:], labels=["new"] * 10)
    assert before.find(RECENT).hits.ids.shape == (1, 9), "who asked before, goes on as before"
    until(lambda: follower.collection() is not before)
    after = follower.collection()
    assert found(follower) == {1, 2, 3, 4}
    assert after.picture(3).label == "new"
    assert after.searcher is before.searcher, "nothing of the index is opened again"
    assert follower.problem is None
    paint_over(listed, 4)
    listed.list(YOUNG)

    def flags() -> list[str]:
        collection = follower.collection()
        hits = collection.find(RECENT).hits
        return flags_of(hits, collection.catalog.rows(hits.ids[0]))

    until(lambda: flags() == ["changed_since_index"])
    assert follower.collection().version == before.version


def test_no_question_fails_and_no_answer_mixes_scans_while_they_are_exchanged(
    listed: Any, follower: Follower
) -> None:
    is_over = threading.Event()
    answers: list[tuple[Collection, Found]] = []
    assert found(follower) == set(range(1, 10))

    def ask() -> None:
        while not is_over.is_set():
            collection = follower.collection()
            answers.append((collection, collection.find(RECENT)))

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for young in (3, 7, 1, 9):
                listed.list(YOUNG[:young] + OLD[young:])
                until(lambda young=young: len(found(follower)) == young - 1)  # type: ignore[misc]
        finally:
            is_over.set()
        for each in asking:
            each.result(timeout=30)
    assert len({id(collection) for collection, _ in answers}) >= 3
    for collection, answer in answers:
        days = collection.catalog.table["taken"].to_pylist()
        young = {picture for picture in range(1, 10) if days[picture].year == 2026}
        assert set(answer.hits.ids[0].tolist()) == young


def test_a_scan_that_cannot_be_read_leaves_the_one_before_answering_and_says_why(
    listed: Any, follower: Follower
) -> None:
    assert found(follower) == set(range(1, 10))
    door = listed.folder("corpora", "digits").local_path("corpus.json")
    content = door.read_text()
    door.write_text(content.replace('"rows"', '"rowz"'))
    until(lambda: follower.collection() and follower.problem is not None)
    assert str(follower.problem).startswith("v000001 goes on answering by an older scan")
    assert str(door) in str(follower.problem)
    assert found(follower) == set(range(1, 10))
    door.write_text(content)
    until(lambda: follower.collection() and follower.problem is None)


def test_a_version_that_cannot_be_opened_does_not_keep_scans_from_being_followed(
    listed: Any, follower: Follower
) -> None:
    assert found(follower) == set(range(1, 10))
    folder = listed.folder("indexes", listed.index)
    store = EmbeddingStore.open(listed.folder("embeddings", listed.index))
    build_index(store, folder, IndexConfig(num_queries=2, seed=1))
    vectors = folder.local_path("v000002/vectors.arrow")
    vectors.write_bytes(vectors.read_bytes()[:-1])
    until(lambda: follower.collection() and follower.problem is not None)
    listed.list(YOUNG[:5] + OLD[5:])
    until(lambda: found(follower) == {1, 2, 3, 4})
    assert follower.collection().version == "v000001"
    assert "not the version put in service" in str(follower.problem)


def group(follower: Follower, threshold: float) -> None:
    """As `lookalike graph --threshold` does, on the version that is open."""
    searcher = follower.collection().searcher
    build_graph(searcher, GraphConfig(k=3))
    graph = NeighbourGraph.open(searcher)
    build_duplicates(searcher, graph, [], DuplicateConfig(threshold=threshold))


def threshold_of(follower: Follower) -> float | None:
    try:
        return follower.collection().duplicates.threshold
    except MissingArtifactError:
        return None


def test_near_duplicates_found_again_with_another_threshold_are_those_that_collapse(
    listed: Any, follower: Follower
) -> None:
    before = follower.collection()
    assert threshold_of(follower) is None
    group(follower, 0.9999)
    until(lambda: threshold_of(follower) == 0.9999)
    group(follower, 0.01)
    until(lambda: threshold_of(follower) == 0.01)
    every = SearchQuery(like=(Example(id=0),), k=9, collapse_duplicates=True)
    assert len(follower.collection().find(every).hits.ids[0]) == 1
    assert follower.collection().searcher is before.searcher
    listed.list(YOUNG[:5] + OLD[5:])
    until(lambda: found(follower) == {1, 2, 3, 4})
    group(follower, 0.9999)
    until(lambda: threshold_of(follower) == 0.9999)
    assert found(follower) == {1, 2, 3, 4}
    assert follower.problem is None


def test_damaged_near_duplicates_leave_those_before_answering_and_say_why(
    listed: Any, follower: Follower
) -> None:
    group(follower, 0.9999)
    until(lambda: threshold_of(follower) == 0.9999)
    door = follower.collection().searcher.folder.local_path("duplicates/duplicates.json")
    content = door.read_text()
    door.write_text(content.replace('"rows"', '"rowz"'))
    until(lambda: follower.collection() and follower.problem is not None)
    assert "goes on collapsing by the near-duplicates of before" in str(follower.problem)
    assert threshold_of(follower) == 0.9999
    door.write_text(content)
    until(lambda: follower.collection() and follower.problem is None)


def test_whoever_keeps_a_version_collapses_near_duplicates_after_it_was_deleted(
    listed: Any, follower: Follower
) -> None:
    group(follower, 0.01)
    pinned = Follower(listed.workspace, listed.index).collection()
    folder = listed.folder("indexes", listed.index)
    for picture in (8, 9):
        remove_pictures(folder, np.array([picture]))
    assert version_names(folder) == ["v000002", "v000003"]
    every = SearchQuery(like=(Example(id=0),), k=9, collapse_duplicates=True)
    assert len(pinned.find(every).hits.ids[0]) == 1


def test_what_a_long_search_has_to_know_is_found_before_a_version_answers(
    listed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.open(listed.workspace, listed.index)
    search, asked = Searcher.search, []

    def noted(searcher: Searcher, *given: Any, **options: Any) -> Any:
        asked.append(options.get("thorough"))
        return search(searcher, *given, **options)

    monkeypatch.setattr(Searcher, "search", noted)
    collection.prepare()
    assert asked == [True]
