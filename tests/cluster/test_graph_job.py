"""What lookalike graph leaves beside an index, and says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli import main
from cluster.collection import Collection
from cluster.graph_job import GraphJobConfig, find_relations
from index.artifact import MissingArtifactError
from index.duplicates import DuplicateGroups
from index.graph import NeighbourGraph
from index.outliers import outlier_table
from index.projection import MapConfig, open_map


def test_graph_finds_neighbours_copies_outliers_and_a_map(
    library: Any, make_vectors: Any, make_encoder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Path(library.catalog.rows([3])[0].uri)
    shutil.copy(first, first.with_name("zz-copy.png"))
    library.rescan()
    encoder = make_encoder(library.workspace)
    make_vectors(library.workspace, encoder)
    index = ["index", "--corpus", "digits", "--encoder", "tiny"]
    assert main([*index, "--workspace", library.location]) == 0
    capsys.readouterr()
    graph = ["graph", "--index", library.index, "--k", "5", "--map.method", "pca"]
    assert main([*graph, "--json", "--workspace", library.location]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pictures"], report["neighbours"], report["map"]) == (31, 5, "pca")
    assert report["near_duplicates"]["num_copies"] == 1
    assert report["recall"] == 1.0
    collection = Collection.open(library.workspace, library.index)
    groups = DuplicateGroups.open(collection.searcher)
    assert {3, 30} <= set(groups.members(30).tolist())
    assert groups.group_of(np.array([30]))[0] == groups.group_of(np.array([3]))[0]
    table = outlier_table(NeighbourGraph.open(collection.searcher))
    assert [item["id"] for item in report["outliers"]] == table["id"][:5].to_pylist()
    assert open_map(collection.searcher).num_rows == 31
    assert main([*graph, "--workspace", library.location]) == 0
    assert "near duplicates" in capsys.readouterr().out


def test_a_second_run_finds_all_made(library: Any) -> None:
    config = GraphJobConfig(index=library.index, map=MapConfig(method="none"))
    first = find_relations(config, library.context)
    folder = Collection.open(library.workspace, library.index).searcher.folder
    stamps = {path: path.stat().st_mtime_ns for path in folder.local_path("graph").glob("piece-*")}
    assert find_relations(config, library.context) == first
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_an_unknown_index_is_named(library: Any) -> None:
    with pytest.raises(MissingArtifactError, match="Existing: digits-tiny"):
        find_relations(GraphJobConfig(index="other"), library.context)
