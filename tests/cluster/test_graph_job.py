"""What lookalike graph leaves beside an index, and says of it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import graph_job
from cluster.cli import main
from cluster.collection import Collection
from cluster.graph_job import GraphJobConfig, find_relations
from cluster.relations import follow_relations
from index.artifact import MissingArtifactError
from index.duplicates import DuplicateGroups, build_duplicates
from index.graph import NeighbourGraph
from index.outliers import outlier_table
from index.projection import MapConfig, open_map
from index.removal import remove_pictures
from index.search import Searcher
from index.versions import version_names


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


def test_a_version_replaced_twice_between_two_steps_of_the_job_is_there_to_its_end(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = library.folder("indexes", library.index)
    before = version_names(folder)[-1]

    def after_two_changes(*asked: Any) -> Any:
        for _ in range(2):
            remove_pictures(folder, Searcher.open(folder).ids[:1])
        return build_duplicates(*asked)

    monkeypatch.setattr(graph_job, "build_duplicates", after_two_changes)
    config = GraphJobConfig(index=library.index, map=MapConfig(method="pca"))
    report = find_relations(config, library.context)
    assert (report["version"], report["pictures"]) == (before, 30)
    assert before in version_names(folder)


def test_an_unknown_index_is_named(library: Any) -> None:
    with pytest.raises(MissingArtifactError, match="Existing: digits-tiny"):
        find_relations(GraphJobConfig(index="other"), library.context)


def test_what_pictures_are_to_each_other_follows_changes_of_the_index(
    library: Any, make_vectors: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--index", library.index, "--workspace", library.location]
    graph = ["graph", *common, "--k", "5", "--map.method", "pca", "--threshold", "0.9"]
    assert main([*graph]) == 0
    assert main(["remove", *common, "--ids", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "neighbours, near-duplicates, map: carried on from v000001, " in said
    files = sorted(library.pictures.glob("*/*.png"))
    shutil.copy(files[0], files[0].with_name("zz-copy.png"))
    library.rescan()
    make_vectors(library.workspace, library.workspace.open_encoder("tiny"))
    index = ["index", "--corpus", "digits", "--encoder", "tiny", "--workspace", library.location]
    assert main([*index, "--num-queries", "10"]) == 0
    assert "map: carried on from v000002, " in " ".join(capsys.readouterr().out.split())
    collection = Collection.open(library.workspace, library.index)
    searcher = collection.searcher
    assert collection.version == "v000003"
    carried = NeighbourGraph.open(searcher)
    assert (carried.door["carried_from"], carried.k) == ("v000002", 5)
    ids, neighbours, scores = (np.concatenate(c) for c in zip(*carried.iter_pieces(), strict=True))
    assert ids.tolist() == searcher.ids.tolist() == [n for n in range(31) if n != 4]
    vectors = searcher.vectors_of(ids)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :5], atol=1e-3)
    first = int(library.catalog.rows([30])[0].id)
    copy_of = next(row.id for row in library.catalog.by_uri() if row.uri == str(files[0]))
    assert copy_of in neighbours[ids.tolist().index(first)]
    assert {copy_of, 30} <= set(DuplicateGroups.open(searcher).members(30).tolist())
    assert DuplicateGroups.open(searcher).threshold == 0.9
    assert open_map(searcher)["id"].to_pylist() == ids.tolist()
    assert main(["graph", *common, "--k", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["carried_from"] == "v000002", "found, not made again"


def test_relations_that_cannot_be_carried_on_are_said_to_be_missing(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--index", library.index, "--workspace", library.location]
    assert main(["graph", *common, "--k", "5", "--map.method", "none"]) == 0
    assert main(["remove", *common, "--ids", *map(str, range(12))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not carried on; make them: lookalike graph --index digits-tiny (too much" in said
    with pytest.raises(MissingArtifactError, match="has no graph yet"):
        NeighbourGraph.open(Collection.open(library.workspace, library.index).searcher)


@pytest.mark.parametrize("step", ["carry_graph", "build_map"])
def test_a_disk_that_fills_while_relations_follow_leaves_the_change_in_service(
    library: Any,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    common = ["--index", library.index, "--workspace", library.location]
    assert main(["graph", *common, "--k", "5", "--map.method", "pca"]) == 0
    monkeypatch.setattr(f"cluster.relations.{step}", full)
    assert main(["remove", *common, "--ids", "4"]) == 0
    said = " ".join([*capsys.readouterr().out.split(), caplog.text])
    assert "make them: lookalike graph --index digits-tiny" in said
    assert "[Errno 28] No space left on device" in said
    assert Collection.open(library.workspace, library.index).version == "v000002"


@pytest.mark.parametrize("step", ["Collection.open", "find_earlier", "carry_graph", "build_map"])
@pytest.mark.parametrize("error", [pa.ArrowInvalid, RuntimeError, MissingArtifactError])
def test_what_cannot_be_read_while_relations_follow_leaves_the_change_in_service(
    library: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[Exception],
) -> None:
    folder = library.folder("indexes", library.index)
    find_relations(
        GraphJobConfig(index=library.index, map=MapConfig(method="pca")), library.context
    )
    done = remove_pictures(folder, np.array([4]))

    def fail(*_: object, **__: object) -> None:
        raise error("a flipped byte")

    monkeypatch.setattr(f"cluster.relations.{step}", fail)
    said = follow_relations(library.context, library.index, done)
    assert said is not None
    assert "make them: lookalike graph --index digits-tiny" in said
    assert "a flipped byte" in said + caplog.text
