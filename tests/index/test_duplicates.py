"""Near-duplicate groups against connected components by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index import beyond
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.duplicates import DuplicateConfig, DuplicateGroups, build_duplicates
from index.folder import Folder
from index.graph import GraphConfig, NeighbourGraph, build_graph
from index.search import Searcher


@pytest.fixture
def open_index(make_store: Any, tmp_path: Any) -> Any:
    def make(vectors: np.ndarray, k: int = 4, name: str = "ix") -> tuple[Searcher, NeighbourGraph]:
        store = make_store(np.asarray(vectors, np.float32), name=f"{name}-emb")
        build_index(store, Folder.at(tmp_path / name), IndexConfig())
        searcher = Searcher.open(tmp_path / name)
        build_graph(searcher, GraphConfig(k=k))
        return searcher, NeighbourGraph.open(searcher)

    return make


def naive_groups(searcher: Searcher, threshold: float, copies: list[tuple[int, int]]) -> set:
    """Components by repeated joining, as sets of ids; only those of two pictures or more."""
    ids = searcher.ids.tolist()
    vectors = searcher.vectors_of(searcher.ids)
    cosines = vectors @ vectors.T
    group = dict(zip(ids, ids, strict=True))
    pairs = [(ids[a], ids[b]) for a, b in np.argwhere(cosines >= threshold) if a < b] + copies
    for a, b in pairs:
        old, new = group[b], group[a]
        group = {picture: new if name == old else name for picture, name in group.items()}
    groups: dict[int, set[int]] = {}
    for picture, name in group.items():
        groups.setdefault(name, set()).add(picture)
    return {frozenset(members) for members in groups.values() if len(members) > 1}


def as_sets(groups: DuplicateGroups) -> set:
    return {frozenset(groups.members(int(name)).tolist()) for name in set(groups.groups.tolist())}


def random_unit(rng: Any, count: int, dim: int = 24) -> np.ndarray:
    vectors = rng.normal(size=(count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_groups_are_the_components_of_brute_force(open_index: Any) -> None:
    """Pairs, a clump larger than k, a chain, and copies whose vectors differ."""
    rng = np.random.default_rng(1)
    singles = random_unit(rng, 40)
    pairs = singles[:8] + 0.02 * random_unit(rng, 8)
    clump = random_unit(rng, 1) + 0.03 * random_unit(rng, 30)
    start, end = random_unit(rng, 2)
    chain = np.stack([(1 - t) * start + t * end for t in np.linspace(0, 1, 60)])
    searcher, graph = open_index(np.concatenate([singles, pairs, clump, chain]))
    ids = searcher.ids
    hashes = np.random.default_rng(2).integers(0, 256, (len(ids), 32), np.uint8)
    hashes[20] = hashes[30]
    halves = [(ids[:50], hashes[:50]), (ids[50:], hashes[50:])]
    halves.append((np.array([10**9, 10**9 + 1]), hashes[[5, 5]]))  # not in the index
    door = build_duplicates(searcher, graph, halves, DuplicateConfig(threshold=0.98))
    groups = DuplicateGroups.open(searcher)
    expected = naive_groups(searcher, 0.98, [(int(ids[20]), int(ids[30]))])
    assert as_sets(groups) == expected
    assert door["num_groups"] == len(expected)
    assert door["num_pictures"] == sum(map(len, expected))
    assert door["num_copies"] == 1
    assert door["largest"] == 60
    assert groups.group_of(ids[[20, 30, 25]]).tolist() == [ids[20], ids[20], ids[25]]
    assert groups.members(int(ids[25])).tolist() == [ids[25]]
    assert groups.copies_of(ids[[25]]).tolist() == []
    assert groups.copies_of(ids[[20, 25]]).tolist() == [ids[30]]
    assert groups.sizes_of(ids[[20, 25, -1]]).tolist() == [2, 1, 60]
    sizes = groups.sizes()
    assert next(iter(sizes.values())) == 60
    assert sum(sizes.values()) == door["num_pictures"]


def test_clumps_that_the_graph_leaves_apart_are_joined_by_search(open_index: Any) -> None:
    """Each of three clumps fills all its pictures' neighbours, and is near the next."""
    rng = np.random.default_rng(3)
    centre = random_unit(rng, 1)
    steps = [centre + 0.12 * random_unit(rng, 1) for _ in range(3)]
    clumps = [step + 0.004 * random_unit(rng, 12) for step in steps]
    far = random_unit(rng, 20)
    searcher, graph = open_index(np.concatenate([*clumps, far]), k=4)
    door = build_duplicates(searcher, graph, [], DuplicateConfig(threshold=0.97))
    assert door["searches"] > 0
    found = as_sets(DuplicateGroups.open(searcher))
    assert found == naive_groups(searcher, 0.97, [])
    assert len(found) == 1


def test_a_thousand_copies_are_one_group_at_the_cost_of_few_searches(open_index: Any) -> None:
    rng = np.random.default_rng(4)
    copies = np.tile(random_unit(rng, 1), (1000, 1))
    searcher, graph = open_index(np.concatenate([copies, random_unit(rng, 50)]), k=15)
    door = build_duplicates(searcher, graph, [], DuplicateConfig())
    assert (door["num_groups"], door["largest"]) == (1, 1000)
    assert door["searches"] <= 5


def test_without_near_duplicates_there_are_no_groups(open_index: Any) -> None:
    searcher, graph = open_index(np.eye(12))
    door = build_duplicates(searcher, graph, [], DuplicateConfig())
    groups = DuplicateGroups.open(searcher)
    assert (door["num_groups"], door["num_pictures"], groups.sizes()) == (0, 0, {})
    np.testing.assert_array_equal(groups.group_of(searcher.ids), searcher.ids)
    assert groups.members(5).tolist() == [5]


def test_groups_of_another_version_or_none_are_refused(open_index: Any) -> None:
    rng = np.random.default_rng(5)
    searcher, graph = open_index(random_unit(rng, 30), name="one")
    with pytest.raises(MissingArtifactError, match=r"no duplicates yet.*lookalike graph"):
        DuplicateGroups.open(searcher)
    build_duplicates(searcher, graph, [], DuplicateConfig())
    other, _ = open_index(random_unit(rng, 30), name="two")
    searcher.folder.local_path("duplicates").rename(other.folder.local_path("duplicates"))
    with pytest.raises(CorruptArtifactError, match="another index version"):
        DuplicateGroups.open(other)
    with pytest.raises(ValueError, match="allowed is above 0"):
        DuplicateConfig(threshold=1.5)


def test_equal_vectors_reach_the_highest_threshold(open_index: Any) -> None:
    once = random_unit(np.random.default_rng(3), 60)
    searcher, graph = open_index(np.concatenate([once, once]))
    build_duplicates(searcher, graph, [], DuplicateConfig(threshold=1.0))
    ids = searcher.ids.reshape(2, 60).T.tolist()
    assert as_sets(DuplicateGroups.open(searcher)) == {frozenset(pair) for pair in ids}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("many", [0, 10**9])
def test_groups_beyond_the_graph_are_those_of_brute_force(
    open_index: Any, monkeypatch: pytest.MonkeyPatch, many: int, seed: int
) -> None:
    """Clumps and trails of clumps, larger than k; compared in one pass, and one by one."""
    monkeypatch.setattr(beyond, "MANY", many)
    rng = np.random.default_rng(seed)
    parts = [random_unit(rng, 30, 12)]
    for _ in range(3):
        at = random_unit(rng, 1, 12)
        for _ in range(rng.integers(1, 5)):
            parts.append(at + rng.uniform(0.01, 0.1) * random_unit(rng, rng.integers(2, 14), 12))
            at = at + rng.uniform(0.1, 0.3) * random_unit(rng, 1, 12)
    searcher, graph = open_index(rng.permutation(np.concatenate(parts)), k=3)
    vectors = searcher.vectors_of(searcher.ids)
    cosines = np.unique(vectors @ vectors.T)
    cosines = cosines[(cosines > 0.95) & (cosines < 0.99)]
    widest = np.diff(cosines).argmax()  # where no rounding decides
    threshold = float(cosines[widest : widest + 2].mean())
    build_duplicates(searcher, graph, [], DuplicateConfig(threshold=threshold))
    assert as_sets(DuplicateGroups.open(searcher)) == naive_groups(searcher, threshold, [])


def test_a_large_group_of_unequal_copies_costs_a_pass_and_not_a_search_each(
    open_index: Any,
) -> None:
    rng = np.random.default_rng(7)
    copies = random_unit(rng, 1) + 0.12 * random_unit(rng, 600)
    searcher, graph = open_index(np.concatenate([copies, random_unit(rng, 100)]), k=5)
    door = build_duplicates(searcher, graph, [], DuplicateConfig(threshold=0.97))
    assert (door["num_groups"], door["largest"], door["searches"]) == (1, 600, 1)


def test_a_picture_with_nothing_near_outside_its_group_is_not_asked_again(
    open_index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clumps in a row, each near the next, join in several rounds."""
    rng = np.random.default_rng(8)
    axes = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    middles = [np.cos(angle) * axes[0] + np.sin(angle) * axes[1] for angle in 0.18 * np.arange(8)]
    clumps = [middle + 0.02 * random_unit(rng, 30) for middle in middles]
    searcher, graph = open_index(np.concatenate([*clumps, random_unit(rng, 20)]), k=4)
    really, rounds, done = beyond._nearest_outside, [], set()

    def watched(searcher: Any, asked: Any, *rest: Any) -> Any:
        assert not done & set(asked.tolist())
        others, searches = really(searcher, asked, *rest)
        done.update(asked[others < 0].tolist())
        rounds.append(len(asked))
        return others, searches

    monkeypatch.setattr(beyond, "_nearest_outside", watched)
    build_duplicates(searcher, graph, [], DuplicateConfig(threshold=0.98))
    assert as_sets(DuplicateGroups.open(searcher)) == naive_groups(searcher, 0.98, [])
    assert len(rounds) > 8
