"""From vectors to an index: what is built, what is reused, and which name belongs to whom."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.scan_job import ScanConfig, scan
from index.artifact import MissingArtifactError
from index.choose import IndexConfig
from index.search import Searcher
from index.versions import version_names


def build(library: Any, recall: float = 0.95, **given: Any) -> dict[str, Any]:
    config = IndexConfig(num_queries=10, target_recall=recall)
    names = {"corpus": "digits", "encoder": "tiny", **given}
    return index_embeddings(IndexJobConfig(build=config, **names), library.context)


def test_the_same_index_is_built_once(library: Any) -> None:
    first = build(library, name="other")
    assert (first["version"], first["reused"], first["rows"]) == ("v000001", False, 30)
    again = build(library, name="other")
    assert (again["version"], again["reused"]) == ("v000001", True)
    assert again["path"] == str(library.folder("indexes", "other"))


def test_the_version_in_service_and_the_one_before_are_kept(library: Any) -> None:
    folder = library.folder("indexes", library.index)
    pinned = Searcher.open(folder)
    query = pinned.vectors_of([3])
    found = pinned.search(query, 30)
    assert build(library, 0.9)["version"] == "v000002"
    assert version_names(folder) == ["v000001", "v000002"]
    assert build(library, 0.8)["version"] == "v000003"
    assert version_names(folder) == ["v000002", "v000003"]
    again = build(library, 0.8)
    assert (again["version"], again["reused"]) == ("v000003", True)
    assert version_names(folder) == ["v000002", "v000003"], "nothing changed, so nothing goes"
    back = build(library, 0.9)
    assert (back["version"], back["reused"]) == ("v000002", True)
    assert version_names(folder) == ["v000002", "v000003"]
    assert Searcher.open(folder).version == "v000002"
    later = pinned.search(query, 30)
    assert later.ids.tolist() == found.ids.tolist(), "whoever had the first open keeps it"
    np.testing.assert_array_equal(later.scores, found.scores)


def test_nothing_is_cleared_while_the_version_in_service_is_damaged(library: Any) -> None:
    folder = library.folder("indexes", library.index)
    build(library, 0.9)
    folder.write_atomic("CURRENT", b"v000002 0000000000000000\n")
    assert build(library, 0.8)["version"] == "v000003"
    assert version_names(folder) == ["v000001", "v000002", "v000003"]


def test_more_pictures_and_more_training_are_versions_of_the_same_index(
    library: Any, make_encoder: Any, make_vectors: Any
) -> None:
    shutil.copy(next(library.pictures.glob("1/*")), library.pictures / "1" / "new.png")
    library.rescan()
    make_vectors(library.workspace, make_encoder(library.workspace, seed=1))
    report = build(library)
    assert (report["version"], report["rows"]) == ("v000002", 31)


def test_an_index_of_another_encoder_or_set_keeps_its_name(
    library: Any, make_encoder: Any, make_vectors: Any
) -> None:
    make_vectors(
        library.workspace, make_encoder(library.workspace, "big", seed=1), encoder_name="big"
    )
    with pytest.raises(ValueError, match=r"another encoder and name.*Choose another --name") as no:
        build(library, encoder="big", name=library.index)
    assert "index 'digits-tiny': is that of embedding set 'digits-tiny'" in str(no.value)
    assert version_names(library.folder("indexes", library.index)) == ["v000001"]
    assert build(library, encoder="big")["index"] == "digits-big"


def test_an_index_of_another_corpus_of_the_same_name_keeps_its_name(
    library: Any, tmp_path: Path, make_encoder: Any, make_vectors: Any
) -> None:
    shutil.rmtree(library.folder("corpora", "digits").local_path())
    scan(ScanConfig(source=str(library.pictures), corpus="digits"), library.context)
    make_vectors(library.workspace, make_encoder(library.workspace))
    with pytest.raises(ValueError, match="is of another corpus, and would change"):
        build(library)


def test_a_set_of_another_corpus_or_encoder_is_not_indexed_as_this_one(library: Any) -> None:
    for given in ({"corpus": "cats"}, {"encoder": "big"}):
        with pytest.raises(ValueError, match="is of corpus 'digits' and encoder 'tiny', not") as no:
            build(library, embeddings="digits-tiny", name="new", **given)
        assert "lookalike embed --corpus" in str(no.value)
    assert not library.folder("indexes", "new").exists()


def test_a_missing_set_names_those_that_exist_and_how_to_make_it(library: Any) -> None:
    with pytest.raises(MissingArtifactError, match=r"Existing: digits-tiny\. Make it: lookalike"):
        build(library, encoder="big")


@pytest.mark.parametrize("field", ["corpus", "encoder", "embeddings", "name"])
def test_a_name_that_is_none_is_refused(field: str) -> None:
    names = {"corpus": "a", "encoder": "b", "embeddings": "c", "name": "d", field: "../x"}
    with pytest.raises(ValueError, match=r"'\.\./x': allowed are"):
        IndexJobConfig(**names)
