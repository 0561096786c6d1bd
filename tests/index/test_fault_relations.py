"""Graph, near-duplicates and map: killed at every step, and with every file damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from index.artifact import MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.duplicates import DuplicateGroups
from index.folder import Folder
from index.graph import NeighbourGraph
from index.projection import open_map
from index.removal import remove_pictures
from index.search import Searcher

FIND = """
    import sys
    from index import graph
    from index.folder import Folder
    from index.duplicates import DuplicateConfig, build_duplicates
    from index.projection import MapConfig, build_map
    from index.search import Searcher

    graph.PIECE_ROWS = 16

    def run(home):
        searcher = Searcher.open(Folder.at(home), threads=1)
        graph.build_graph(searcher, graph.GraphConfig(k=3, num_checked=5))
        found = graph.NeighbourGraph.open(searcher)
        build_duplicates(searcher, found, [], DuplicateConfig(threshold=0.9))
        build_map(searcher, MapConfig(method="pca"))
"""

CARRY = """
    import sys
    from index import graph
    from index.folder import Folder
    from index.carry import carry_graph, carry_map, find_earlier
    from index.duplicates import DuplicateConfig, build_duplicates
    from index.search import Searcher

    graph.PIECE_ROWS = 16

    def run(home):
        searcher = Searcher.open(Folder.at(home), threads=1)
        earlier = find_earlier(searcher)
        carry_graph(searcher, graph.GraphConfig(k=3, num_checked=5), earlier)
        found = graph.NeighbourGraph.open(searcher)
        build_duplicates(searcher, found, [], DuplicateConfig(threshold=0.9))
        carry_map(searcher, found, earlier)
"""


@pytest.fixture(scope="module")
def version(publish_store: Any, clustered: Any, tmp_path_factory: Any) -> Path:
    """An index of forty pictures, and nothing beside it."""
    root = tmp_path_factory.mktemp("relations")
    store = publish_store(Folder.at(root / "embeddings"), clustered(40, 8, noise=0.2)[0])
    build_index(store, Folder.at(root / "ix"), IndexConfig(kind="exact", num_queries=10))
    return root / "ix"


def answers(home: Path) -> list[Any]:
    """All that the three say, as plain values."""
    searcher = Searcher.open(Folder.at(home))
    pieces = [
        [part.tolist() for part in piece] for piece in NeighbourGraph.open(searcher).iter_pieces()
    ]
    return [pieces, DuplicateGroups.open(searcher).sizes(), open_map(searcher).to_pydict()]


@pytest.mark.slow
@pytest.mark.parametrize("job", [FIND, CARRY], ids=["found", "carried"])
def test_whatever_is_killed_the_next_run_finds_the_same(
    version: Path, forge: Any, tmp_path: Path, job: str
) -> None:
    home = shutil.copytree(version, tmp_path / "ix")
    if job == CARRY:
        assert forge.run(FIND, home)["ended"] == "done"
        remove_pictures(Folder.at(home), Searcher.open(Folder.at(home)).ids[[7, 21]])
    whole = shutil.copytree(home, tmp_path / "whole")
    assert (ended := forge.run(job, whole))["ended"] == "done", ended
    oracle = answers(whole)

    def check(home: Path, is_done: bool) -> None:
        try:
            assert answers(home) == oracle
        except MissingArtifactError:
            assert not is_done
        assert Searcher.open(Folder.at(home)).search(searched, 3).ids.shape == (1, 3)

    searched = Searcher.open(Folder.at(home)).vectors_of([5])
    assert forge.walk(job, home, check) > 20


def test_all_damage_is_noticed(
    version: Path, forge: Any, tmp_path: Path, assert_noticed: Any
) -> None:
    home = shutil.copytree(version, tmp_path / "ix")
    assert forge.run(FIND, home)["ended"] == "done"
    (found,) = home.glob("v*")
    for kind, num_files in (("graph", 4), ("duplicates", 2), ("map", 2)):
        assert len(assert_noticed(found / kind, lambda: answers(home))) == num_files
