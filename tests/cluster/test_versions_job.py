"""What lookalike versions says of an index, and changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster import versions_job
from cluster.cli import main
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.versions import list_versions, open_current, version_names


@pytest.fixture
def two(library: Any) -> Any:
    """The library with a second version of its index, which is in service."""
    store = EmbeddingStore.open(library.folder("embeddings", library.index))
    config = IndexConfig(num_queries=10, k=5)
    build_index(store, library.folder("indexes", library.index), config)
    return library


def run(library: Any, *arguments: str) -> int:
    given = ["versions", "--index", library.index, "--workspace", library.location]
    return main([*given, *arguments])


def test_versions_are_listed_for_scripts_and_people(
    two: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(two, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["in_service"], report["removed"]) == ("v000002", [])
    first, second = report["versions"]
    assert (first["name"], first["in_service"], first["rows"]) == ("v000001", False, 30)
    assert (second["recall"]["k"], second["recipe"], second["damage"]) == (5, "IDMap,SQfp16", None)
    folder = two.folder("indexes", two.index).local_path("v000001")
    named = [path for path in folder.iterdir() if path.name != "index.json"]
    assert first["bytes"] == sum(path.stat().st_size for path in named)
    assert run(two) == 0
    shown = capsys.readouterr().out
    assert "v000001: 30 vectors, IDMap,SQfp16, recall@10 1.000 (" in shown
    assert f"{first['bytes']:,} bytes, encoder tiny, built 20" in shown
    assert "v000002 in service: 30 vectors" in shown
    assert "checked: sizes of files" in shown


def test_a_rollback_is_said_aloud_and_a_collection_names_what_it_deleted(
    two: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(two, "--rollback", "v000001", "--collect", "--keep", "1") == 0
    said = capsys.readouterr()
    assert "v000001 is in service: embedding set 'digits-tiny' of corpus 'digits'" in said.err
    assert "encoder 'tiny' (" in said.err
    assert "another encoder" not in said.err
    assert "deleted: v000002" in said.out
    assert version_names(two.folder("indexes", two.index)) == ["v000001"]


def test_a_version_of_another_encoder_is_put_in_service_with_a_warning(
    two: Any, make_encoder: Any, make_vectors: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vectors(two.workspace, make_encoder(two.workspace, seed=1))
    folder = two.folder("indexes", two.index)
    store = EmbeddingStore.open(two.folder("embeddings", two.index))
    build_index(store, folder, IndexConfig(num_queries=10))
    assert run(two, "--rollback", "v000002") == 0
    assert "It is of another encoder than v000003" in capsys.readouterr().err


def test_damage_is_named_and_refused(two: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two.folder("indexes", two.index)
    vectors: Path = folder.local_path("v000001/vectors.arrow")
    data = bytearray(vectors.read_bytes())
    data[len(data) // 2] ^= 1
    vectors.write_bytes(data)
    assert run(two, "--full") == 0
    shown = capsys.readouterr().out
    assert "v000001, cannot be used: " in shown
    assert "v000001/vectors.arrow: its content changed" in shown
    assert "checked: every byte" in shown
    assert run(two, "--rollback", "v000001") == 1
    assert "Restore the file" in capsys.readouterr().err
    assert open_current(folder)[0] == "v000002"


def test_an_index_whose_current_was_lost_can_be_rolled_back(
    two: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = two.folder("indexes", two.index)
    folder.remove("CURRENT")
    assert run(two) == 0
    assert "No version is in service" in capsys.readouterr().out
    assert run(two, "--rollback", "v000002") == 0
    assert open_current(folder)[0] == "v000002"


def test_an_index_that_is_not_there_is_a_plain_error(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["versions", "--index", "other", "--workspace", library.location]
    assert main(given) == 1
    assert "Existing: digits-tiny. Make it: lookalike index" in capsys.readouterr().err
    assert not library.folder("indexes", "other").exists()


def test_a_version_that_another_deletes_while_it_is_described_is_no_error(
    two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list_versions(two.folder("indexes", two.index))
    shutil.rmtree(two.folder("indexes", two.index).local_path("v000001"))
    monkeypatch.setattr(versions_job, "list_versions", lambda *_, **__: found)
    assert run(two) == 0
