"""Another version is put in service while the application answers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster.collection import Collection
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder
from index.search import Searcher
from index.versions import roll_back, set_current
from ui.session import SearchAnswer, Session

K = 8
SWAPS = 20


@pytest.fixture
def folder(workspace: Workspace, shapes: Any, tmp_path: Any) -> Folder:
    """An index in two versions: in v000002, in service, every vector belongs to another picture."""
    folder = workspace.folder("indexes", shapes.index)
    build_other(workspace, shapes.index, Folder.at(tmp_path / "other"))
    assert Searcher.open(folder).version == "v000002"
    return folder


def build_other(workspace: Workspace, name: str, place: Folder, **parents: str) -> None:
    """Build a version over the same pictures with their vectors exchanged."""
    store = EmbeddingStore.open(workspace.folder("embeddings", name))
    ids, vectors = map(np.concatenate, zip(*store.iter_stored(), strict=True))
    batch = ShardBatch(
        ids=ids,
        statuses=["ok"] * len(ids),
        content_hashes=[bytes(32)] * len(ids),
        vectors=np.roll(vectors, 17, axis=0).astype(np.float32),
    )
    record = write_shard(place, "00000-aa", batch, thumbnails=[None] * len(ids))
    body = {"parents": {**store.parents, **parents}, "config": {"layer": store.layer}}
    publish_embeddings(place, [record], body)
    build_index(EmbeddingStore.open(place), workspace.folder("indexes", name), IndexConfig())


def naive_answers(folder: Folder, version: str) -> dict[int, list[int]]:
    """By comparing each picture with each: its nearest others."""
    table = Searcher(folder / version, version, door_of(folder, version))
    ids = table.ids
    vectors = table.vectors_of(ids)
    found = {}
    for row, picture in enumerate(ids):
        scores = [float(vector @ vectors[row]) for vector in vectors]
        order = sorted(range(len(ids)), key=lambda other, s=scores: (-s[other], ids[other]))
        found[int(picture)] = [int(ids[other]) for other in order if other != row][:K]
    return found


def door_of(folder: Folder, version: str) -> dict[str, Any]:
    from index.artifact import open_door

    return open_door(folder / version, "index")


def until(is_so: Callable[[], bool]) -> None:
    """Wait for another thread's work; a test that waits in vain fails."""
    end_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def add_damaged(folder: Folder) -> None:
    """Put a version in service of which a bit was flipped after it was published."""
    shutil.copytree(folder.local_path("v000001"), folder.local_path("v000003"))
    vectors = folder.local_path("v000003/vectors.arrow")
    data = bytearray(vectors.read_bytes())
    data[len(data) // 2] ^= 1
    vectors.write_bytes(data)
    set_current(folder, "v000003", door_of(folder, "v000001"))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at CURRENT at every question."""
    monkeypatch.setattr("cluster.follower.CHECK_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_no_query_fails_and_no_answer_mixes_versions_while_they_are_swapped(
    session: Session, shapes: Any, folder: Folder
) -> None:
    truth = {version: naive_answers(folder, version) for version in ("v000001", "v000002")}
    assert truth["v000001"] != truth["v000002"]
    is_over = threading.Event()
    answers: list[tuple[int, SearchAnswer]] = []

    def ask(first: int) -> None:
        picture = first
        while not is_over.is_set():
            answers.append((picture, session.search_id(shapes.index, picture, K)))
            picture = (picture + 4) % shapes.num_pictures

    def version() -> str:
        return session.collection(shapes.index).version

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, first) for first in range(4)]
        try:
            for swap in range(SWAPS):
                wanted = f"v{1 + swap % 2:06d}"
                roll_back(folder, wanted)
                until(lambda wanted=wanted: version() == wanted)  # type: ignore[misc]
                if swap == SWAPS // 2:
                    add_damaged(folder)
                    until(lambda: session.indexes()[0]["problem"] is not None)
                    assert version() == wanted
        finally:
            is_over.set()
        for each in asking:
            each.result(timeout=30)
    assert {answer.version for _, answer in answers} == {"v000001", "v000002"}
    for picture, answer in answers:
        assert [hit.id for hit in answer.hits] == truth[answer.version][picture]


@pytest.mark.usefixtures("at_once")
def test_a_query_under_way_keeps_its_version(session: Session, shapes: Any, folder: Folder) -> None:
    before = session.collection(shapes.index)
    roll_back(folder, "v000001")
    until(lambda: session.collection(shapes.index).version == "v000001")
    assert session.collection(shapes.index) is session.collection(shapes.index)
    shutil.rmtree(folder.local_path("v000002"))
    hits = before.search_ids([3], K)
    assert hits.ids[0].tolist() != naive_answers(folder, "v000001")[3]


@pytest.mark.usefixtures("at_once")
def test_nobody_waits_while_another_version_is_opened(
    session: Session, shapes: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.search_id(shapes.index, 0, K).version == "v000002"
    go_on = threading.Event()
    opened = []
    really_open = Collection.open

    def open_slowly(where: Workspace, name: str, **options: Any) -> Collection:
        opened.append(name)
        assert go_on.wait(timeout=30)
        return really_open(where, name, **options)

    monkeypatch.setattr(Collection, "open", open_slowly)
    roll_back(folder, "v000001")
    for _ in range(5):
        assert session.search_id(shapes.index, 0, K).version == "v000002"
    go_on.set()
    until(lambda: session.search_id(shapes.index, 0, K).version == "v000001")
    assert opened == [shapes.index], "it is opened once"


@pytest.mark.usefixtures("at_once")
def test_a_damaged_version_leaves_the_old_one_answering_and_says_why(
    client: TestClient, shapes: Any, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    def described() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/v1/indexes").json()["indexes"][0]
        return found

    assert (described()["version"], described()["problem"]) == ("v000002", None)
    add_damaged(folder)
    until(lambda: described()["problem"] is not None)
    problem = described()["problem"]
    assert problem.startswith("v000002 goes on answering, not the version put in service")
    assert "workspace/indexes/shapes-fresh/v000003/vectors.arrow" in problem
    assert str(folder).partition("/indexes")[0] not in problem
    assert caplog.text.count("v000002 goes on answering") == 1
    body = {"index": shapes.index, "id": 3, "k": K}
    assert client.post("/v1/search", json=body).json()["version"] == "v000002"
    roll_back(folder, "v000001")
    until(lambda: described()["version"] == "v000001")
    assert described()["problem"] is None


@pytest.mark.usefixtures("at_once")
def test_a_version_without_its_encoder_does_not_take_over_until_it_is_there(
    session: Session,
    shapes: Any,
    workspace: Workspace,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.follower.RETRY_S", 0.0)
    monkeypatch.setattr("cluster.follower.RETRY_FACTOR", 0)
    assert session.search_id(shapes.index, 0, K).version == "v000001"
    build_other(workspace, shapes.index, Folder.at(tmp_path / "other"), encoder="late")
    until(lambda: session.indexes()[0]["problem"] is not None)
    assert "'late' in workspace/encoders: not there" in session.indexes()[0]["problem"]
    assert session.search_id(shapes.index, 0, K).version == "v000001"
    encoders = workspace.root.local_path("encoders")
    shutil.copytree(encoders / "fresh", encoders / "late")
    until(lambda: session.search_id(shapes.index, 0, K).version == "v000002")


def test_doors_are_read_once_a_second_at_most(
    session: Session, shapes: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.collection(shapes.index)
    reads = []
    really_read = Folder.read_bytes

    def read(where: Folder, name: str) -> bytes:
        reads.append(name)
        return really_read(where, name)

    monkeypatch.setattr(Folder, "read_bytes", read)
    now = [time.monotonic() + 10]
    monkeypatch.setattr("cluster.follower.time.monotonic", lambda: now[0])
    for _ in range(5):
        now[0] += 1.0
        for _ in range(100):
            session.collection(shapes.index)
    assert reads == ["CURRENT", "duplicates.json"] * 5


@pytest.mark.usefixtures("at_once")
def test_an_index_that_was_deleted_answers_no_more(
    session: Session, shapes: Any, folder: Folder
) -> None:
    session.collection(shapes.index)
    shutil.rmtree(folder.local_path())
    for _ in range(2):
        with pytest.raises(MissingArtifactError, match="lookalike index"):
            session.collection(shapes.index)


@pytest.mark.usefixtures("at_once")
def test_a_version_collected_while_it_was_opened_is_no_problem(
    session: Session, shapes: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.collection(shapes.index).version == "v000002"
    shutil.copytree(folder.local_path("v000001"), folder.local_path("v000003"))
    really_open = Collection.open
    calls = []

    def open_too_late(where: Workspace, name: str, **options: Any) -> Collection:
        calls.append(name)
        if len(calls) == 1:
            roll_back(folder, "v000003")
            shutil.rmtree(folder.local_path("v000001"))
            raise FileNotFoundError("v000001/vectors.arrow")
        return really_open(where, name, **options)

    monkeypatch.setattr(Collection, "open", open_too_late)
    roll_back(folder, "v000001")
    until(lambda: session.collection(shapes.index).version == "v000003")
    assert session.indexes()[0]["problem"] is None


def test_thumbnails_are_shown_also_after_their_set_was_embedded_twice(
    session: Session, shapes: Any, workspace: Workspace
) -> None:
    before = session.collection(shapes.index).embeddings
    ids, vectors = map(np.concatenate, zip(*before.iter_batches(), strict=True))
    batch = ShardBatch(
        ids=ids,
        statuses=["ok"] * len(ids),
        content_hashes=[bytes(32)] * len(ids),
        vectors=vectors,
    )
    folder = workspace.folder("embeddings", shapes.index)
    record = write_shard(folder, "00000-anew", batch, thumbnails=[b"anew"] * len(ids))
    body = {"parents": before.parents, "config": {"layer": before.layer}}
    publish_embeddings(folder, [record], body)
    for name in before.door["files"]:  # `embed` keeps those of the set before, and no older ones
        folder.remove(name)
    assert session.thumbnail(shapes.index, 3)[0] == b"anew"
    folder.remove(record["thumbnails"])
    with pytest.raises(CorruptArtifactError, match=r"thumbs\.arrow: missing"):
        Session(workspace, session.config).thumbnail(shapes.index, 3)
