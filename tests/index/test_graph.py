"""Neighbours of all pictures by brute force, and a graph that belongs to one index version."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import graph as graph_module
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.graph import GraphConfig, NeighbourGraph, build_graph
from index.outliers import outlier_table
from index.search import Searcher
from index.vectors import unit

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def searcher(make_store: Any, clustered: Any, tmp_path: Any) -> Searcher:
    build_index(make_store(clustered(300, 12)[0]), Folder.at(tmp_path / "ix"), IndexConfig())
    return Searcher.open(tmp_path / "ix")


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pieces, searched in some blocks each."""
    monkeypatch.setattr(graph_module, "PIECE_ROWS", 128)
    monkeypatch.setattr(graph_module, "SEARCH_ROWS", 50)


def read(graph: NeighbourGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = zip(*graph.iter_pieces(), strict=True)
    return tuple(np.concatenate(column) for column in columns)  # type: ignore[return-value]


def test_neighbours_are_those_of_brute_force(searcher: Searcher, pieces: None) -> None:
    done: list[int] = []
    door = build_graph(searcher, GraphConfig(k=6), done.append)
    assert sum(done) == 300
    assert (door["rows"], door["k"], len(door["pieces"])) == (300, 6, 3)
    assert door["recall"]["value"] == 1.0, "the index is an exact scan"
    ids, neighbours, scores = read(NeighbourGraph.open(searcher))
    vectors = searcher.vectors_of(searcher.ids)
    cosines = unit(vectors) @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    np.testing.assert_array_equal(ids, searcher.ids)
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :6], atol=1e-5)
    expected = searcher.ids[np.argsort(-cosines, axis=1, kind="stable")[:, :6]]
    assert (neighbours == expected).mean() > 0.99
    assert not (neighbours == ids[:, None]).any()


def test_copies_are_neighbours_and_a_picture_is_not_its_own(make_store: Any, tmp_path: Any) -> None:
    vectors = np.tile(np.random.default_rng(0).normal(size=(1, 8)), (30, 1)).astype(np.float32)
    build_index(make_store(vectors), Folder.at(tmp_path / "ix"), IndexConfig())
    searcher = Searcher.open(tmp_path / "ix")
    build_graph(searcher, GraphConfig(k=5))
    ids, neighbours, _ = read(NeighbourGraph.open(searcher))
    assert not (neighbours == ids[:, None]).any()
    assert all(len(set(row)) == 5 for row in neighbours.tolist())


def test_a_small_corpus_has_fewer_neighbours_and_one_picture_none(
    make_store: Any, tmp_path: Any
) -> None:
    build_index(make_store(np.eye(4)), Folder.at(tmp_path / "ix"), IndexConfig())
    assert build_graph(Searcher.open(tmp_path / "ix"), GraphConfig())["k"] == 3
    store = make_store(np.eye(4)[:1], name="one")
    build_index(store, Folder.at(tmp_path / "one-ix"), IndexConfig())
    with pytest.raises(ValueError, match="neighbours need two"):
        build_graph(Searcher.open(tmp_path / "one-ix"), GraphConfig())


DYING = """
import os, signal, sys
from index import graph
from index.search import Searcher
graph.PIECE_ROWS, graph.SEARCH_ROWS = 128, 50
done = []
def advance(count):
    done.append(count)
    if sum(done) > 200:
        os.kill(os.getpid(), signal.SIGKILL)
graph.build_graph(Searcher.open(sys.argv[1]), graph.GraphConfig(k=6), advance)
"""


def test_a_killed_build_goes_on_from_whole_pieces_and_not_from_damaged_ones(
    searcher: Searcher, pieces: None
) -> None:
    location = str(searcher.folder.local_path().parent)
    command = [sys.executable, "-c", DYING, location]
    ended = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    folder = searcher.folder / "graph"
    whole = [name for name in folder.names() if name.startswith("piece-")]
    assert len(whole) == 1
    with pytest.raises(MissingArtifactError, match="lookalike graph"):
        NeighbourGraph.open(searcher)
    path = folder.local_path(whole[0])
    stamp = path.stat().st_mtime_ns
    damaged = folder.local_path("piece-00001-" + whole[0].split("-")[2] + "-0123456789ab.arrow")
    damaged.write_bytes(b"half")
    door = build_graph(searcher, GraphConfig(k=6))
    assert path.stat().st_mtime_ns == stamp, "not searched again"
    assert whole[0] in door["pieces"]
    assert not damaged.exists()
    NeighbourGraph.open(searcher)
    again = build_graph(searcher, GraphConfig(k=6))
    assert again == door
    other = build_graph(searcher, GraphConfig(k=7))
    assert other["k"] == NeighbourGraph.open(searcher).k == 7


def test_another_versions_graph_and_a_damaged_one_are_refused(
    searcher: Searcher, make_store: Any, clustered: Any, tmp_path: Any
) -> None:
    build_graph(searcher, GraphConfig(k=3))
    build_index(
        make_store(clustered(310, 12)[0], name="more"), Folder.at(tmp_path / "ix"), IndexConfig()
    )
    newer = Searcher.open(tmp_path / "ix")
    with pytest.raises(MissingArtifactError, match="v000002 has no graph yet"):
        NeighbourGraph.open(newer)
    searcher.folder.local_path("graph").rename(newer.folder.local_path("graph"))
    with pytest.raises(CorruptArtifactError, match="another index version"):
        NeighbourGraph.open(newer)
    door = build_graph(newer, GraphConfig(k=3))
    path = newer.folder.local_path(f"graph/{door['pieces'][0]}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="sha256"):
        NeighbourGraph.open(newer)
    assert build_graph(newer, GraphConfig(k=3))["pieces"] == door["pieces"]
    assert NeighbourGraph.open(newer).k == 3, "mended by making it again"


def test_the_picture_far_from_all_others_is_the_first_outlier(
    make_store: Any, clustered: Any, tmp_path: Any
) -> None:
    vectors, _ = clustered(200, 12, classes=4, noise=0.3)
    vectors[77] = -vectors.sum(axis=0)
    build_index(make_store(vectors), Folder.at(tmp_path / "ix"), IndexConfig())
    searcher = Searcher.open(tmp_path / "ix")
    build_graph(searcher, GraphConfig(k=5))
    table = outlier_table(NeighbourGraph.open(searcher))
    assert table["id"][0].as_py() == searcher.ids[77]
    assert table["percentile"][0].as_py() == pytest.approx(100 * 199.5 / 200)
    stored = searcher.vectors_of(searcher.ids)
    for row in (0, 50, 199):
        picture = table["id"][row].as_py()
        cosines = np.sort(stored @ unit(searcher.vectors_of([picture]))[0])[::-1][1:6]
        assert table["distance"][row].as_py() == pytest.approx(1 - cosines.mean(), abs=1e-5)
    assert table["percentile"].to_pylist() == sorted(table["percentile"].to_pylist(), reverse=True)
