"""Where artefacts lie: on a disk, and behind a URI whose options have to reach every worker."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs
from rich.console import Console

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.scan_job import ScanConfig, scan
from cluster.where import Profile
from cluster.workspace import Workspace, check_name
from index.artifact import MissingArtifactError
from index.embeddings import EmbeddingStore
from index.folder import Folder

SECRET = "s3cr3tk3y"


@pytest.fixture(scope="module")
def bucket(s3_options: str) -> str:
    """URI of an empty bucket of an S3 server on this machine, keys and options included."""
    store, _ = pafs.FileSystem.from_uri(
        f"s3://testkey:{SECRET}@pictures?{s3_options}&allow_bucket_creation=true"
    )
    store.create_dir("pictures")
    return f"s3://testkey:{SECRET}@pictures/deep/workspace?{s3_options}"


def test_a_workspace_on_disk_is_found_again_by_its_location(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "w")
    assert workspace.location == str(tmp_path / "w")
    assert Workspace.at(workspace.location) == workspace


def test_a_uri_keeps_its_options_where_workers_look_and_hides_them_where_people_look() -> None:
    uri = f"s3://testkey:{SECRET}@bucket/prefix?endpoint_override=127.0.0.1:1&scheme=http"
    workspace = Workspace.at(uri)
    assert workspace.location == uri
    assert Workspace.at(workspace.location) == workspace
    assert str(workspace.root / "corpora") == "s3://bucket/prefix/corpora"
    for shown in (str(workspace), repr(workspace), str(workspace.root), repr(workspace.root)):
        assert SECRET not in shown
        assert "endpoint_override" not in shown


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"s4://testkey:{SECRET}@bucket/prefix", "s4://bucket/prefix: cannot be opened"),
        (f"s3://testkey:{SECRET} @bucket", "s3://bucket: cannot be opened"),
        (f"s3://bucket/prefix?secret_key={SECRET}", "Unexpected query parameter"),
        (f"s3://bucket?secret_key={SECRET}&x=a@b", "s3://...: cannot be opened"),
    ],
)
def test_a_wrong_uri_is_refused_without_repeating_its_secrets(uri: str, shown: str) -> None:
    with pytest.raises(ValueError, match="Correct it") as caught:
        Workspace.at(uri)
    assert shown in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__, "--debug would print pyarrow's message"


def test_a_corpus_is_published_to_an_object_store_and_read_from_it(
    bucket: str, pictures: Any
) -> None:
    spoken = io.StringIO()
    context = Context(Workspace.at(bucket), console=Console(file=spoken))
    config = ScanConfig(source=str(pictures(5)), corpus="mine")
    report = scan(config, context)
    assert report["pictures"] == {"total": 5, "ok": 5}
    assert report["path"] == "s3://pictures/deep/workspace/corpora/mine"
    assert SECRET not in str(report) + spoken.getvalue()
    elsewhere = Workspace.at(context.workspace.location)
    catalog = Catalog.open(elsewhere.folder("corpora", "mine"))
    assert catalog.counts() == {"ok": 5}
    assert scan(config, context)["since_last_scan"]["unchanged"] == 5
    assert elsewhere.names("corpora") == ["mine"]
    with pytest.raises(MissingArtifactError, match="Existing: mine") as caught:
        elsewhere.require("corpora", "other", door="corpus.json", make="lookalike scan")
    assert SECRET not in str(caught.value)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_embed_into_an_object_store(
    bucket: str, pictures: Any, local_ray: Profile, make_encoder: Any
) -> None:
    context = Context(Workspace.at(bucket), console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(pictures(5)), corpus="far"), context)
    make_encoder(context.workspace)
    report = embed(EmbedConfig(corpus="far", encoder="tiny", shard_rows=2), context)
    assert SECRET not in str(report)
    store = EmbeddingStore.open(context.workspace.folder("embeddings", "far-tiny"))
    assert sorted(i for ids, _ in store.iter_batches() for i in ids) == [0, 1, 2, 3, 4]


def test_labels_in_an_object_store_need_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://bucket/prefix?endpoint_override=127.0.0.1:1&scheme=http"
    with pytest.raises(ValueError, match="Set LOOKALIKE_LABELS_URL"):
        _ = Workspace.at(uri).labels_url
    monkeypatch.setenv("LOOKALIKE_LABELS_URL", "sqlite:///elsewhere.db")
    assert Workspace.at(uri).labels_url == "sqlite:///elsewhere.db"


def test_labels_on_a_disk_lie_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOOKALIKE_LABELS_URL", raising=False)
    assert Workspace.at(tmp_path).labels_url == f"sqlite:///{tmp_path}/labels.db"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".hidden", "a" * 101, "a b", "ä"])
def test_a_name_that_cannot_be_a_folder_everywhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed are up to 100 letters"):
        check_name(name)


def test_what_is_no_name_is_no_artefact(tmp_path: Path) -> None:
    for name in ("mine", ".lock", "a b"):
        (tmp_path / "corpora" / name).mkdir(parents=True)
    assert Workspace(Folder.at(tmp_path)).names("corpora") == ["mine"]


def test_what_is_missing_names_what_is_there_but_nothing_half_made(library: Any) -> None:
    library.folder("encoders", "begun").make().write_atomic("model.safetensors", b"")
    with pytest.raises(MissingArtifactError, match=r"Existing: tiny\. Make it: lookalike pretrain"):
        library.workspace.open_encoder("other")


def test_labels_never_lie_outside_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOOKALIKE_LABELS_URL", raising=False)
    assert (
        Workspace.at(tmp_path / "a#b %20").labels_url == f"sqlite:///{tmp_path}/a#b %20/labels.db"
    )
    with pytest.raises(ValueError, match=r"labels cannot lie below a folder with '\?' in its name"):
        _ = Workspace.at(tmp_path / "what?").labels_url
