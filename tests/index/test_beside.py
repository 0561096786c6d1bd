"""What is made beside an index version, while others put newer versions in service."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from index import graph as graph_module
from index.artifact import MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.duplicates import DuplicateConfig, build_duplicates
from index.folder import Folder
from index.graph import GraphConfig, NeighbourGraph, build_graph
from index.projection import MapConfig, build_map
from index.removal import remove_pictures
from index.search import Searcher
from index.versions import open_current, version_names


@pytest.fixture
def folder(make_store: Any, clustered: Any, tmp_path: Path) -> Folder:
    build_index(make_store(clustered(300, 12)[0]), Folder.at(tmp_path / "ix"), IndexConfig())
    return Folder.at(tmp_path / "ix")


def remove_some(folder: Folder, count: int) -> None:
    """So many changes, of one picture each."""
    for _ in range(count):
        remove_pictures(folder, Searcher.open(folder).ids[:1])


def test_a_graph_under_way_is_finished_though_two_changes_follow(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "PIECE_ROWS", 128)
    searcher = Searcher.open(folder)
    done: list[int] = []

    def advance(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            remove_some(folder, 2)

    build_graph(searcher, GraphConfig(k=6), advance)
    assert sum(len(ids) for ids, _, _ in NeighbourGraph.open(searcher).iter_pieces()) == 300
    assert version_names(folder) == ["v000001", "v000002", "v000003"]
    remove_some(folder, 1)
    assert version_names(folder) == ["v000003", "v000004"], "nobody is at work on the others"


def test_what_is_to_lie_beside_a_deleted_version_says_so_and_makes_no_folder(
    folder: Folder,
) -> None:
    searcher = Searcher.open(folder)
    build_graph(searcher, GraphConfig(k=6))
    graph = NeighbourGraph.open(searcher)
    remove_some(folder, 2)
    assert version_names(folder) == ["v000002", "v000003"]
    for make in (
        lambda: build_graph(searcher, GraphConfig(k=7)),
        lambda: build_duplicates(searcher, graph, [], DuplicateConfig()),
        lambda: build_map(searcher, MapConfig(method="pca")),
    ):
        with pytest.raises(MissingArtifactError, match=r"v000001 was replaced .* Run .* again"):
            make()
    assert version_names(folder) == ["v000002", "v000003"]


def test_of_a_deleted_version_it_is_not_said_that_its_graph_was_never_made(folder: Folder) -> None:
    searcher = Searcher.open(folder)
    with pytest.raises(MissingArtifactError, match=r"has no graph yet\. Make it"):
        NeighbourGraph.open(searcher)
    build_graph(searcher, GraphConfig(k=6))
    remove_some(folder, 2)
    with pytest.raises(MissingArtifactError, match=r"v000001 was replaced .* deleted"):
        NeighbourGraph.open(searcher)


def test_a_version_that_cannot_be_deleted_undoes_no_change(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        remove_some(folder, 2)
        assert "v000001 is not deleted" in caplog.text
        assert "Directory not empty" in caplog.text
        remove_some(folder, 1)
    assert open_current(folder)[0] == "v000004"
    remove_some(folder, 1)
    assert version_names(folder) == ["v000004", "v000005"]
