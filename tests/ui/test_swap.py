"""An index goes over to another encoder while pictures are searched with."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.catalog import Catalog
from cluster.collection import Collection
from cluster.workspace import Workspace
from encoders.encoder import Encoder, embed_picture
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder
from index.removal import remove_pictures
from index.same_encoder import EncoderMismatchError
from index.search import Searcher
from index.update import update_index
from ui.config import UiConfig
from ui.session import SearchAnswer, Session

K = 6


def publish_anew(workspace: Workspace, name: str, seed: int) -> Encoder:
    """An encoder that takes the name of that which the index was made with, and its vectors."""
    before = workspace.open_encoder("fresh")
    encoder = Encoder.initialise(before.config, seed=seed)
    workspace.publish_encoder("fresh", encoder, {"versions": {}})
    store = EmbeddingStore.open(workspace.folder("embeddings", name))
    rows = Catalog.open(workspace.folder("corpora", "shapes")).by_uri()
    data = {row.id: Path(row.uri).read_bytes() for row in rows}
    batch = ShardBatch(
        ids=np.array(sorted(data), np.int64),
        statuses=["ok"] * len(data),
        content_hashes=[hashlib.sha256(data[picture]).digest() for picture in sorted(data)],
        vectors=np.stack(
            [embed_picture(encoder, data[picture], layer="backbone") for picture in sorted(data)]
        ),
    )
    record = write_shard(store.folder, "00000-anew", batch, thumbnails=[None] * len(data))
    parents = {**store.parents, "encoder_id": encoder.encoder_id}
    config = {"layer": "backbone", "corpus": "shapes", "encoder": "fresh"}
    publish_embeddings(store.folder, [record], {"config": config, "parents": parents})
    return encoder


def answers_of(
    folder: Folder, encoder: Encoder, pictures: list[bytes], without: set[int]
) -> list[list[int]]:
    """By comparing each picture with each: the nearest of those that were not removed."""
    searcher = Searcher.open(folder)
    ids = [picture for picture in searcher.ids.tolist() if picture not in without]
    vectors = searcher.vectors_of(ids)
    found = []
    for data in pictures:
        scores = vectors @ embed_picture(encoder, data, layer="backbone")
        found.append([ids[row] for row in np.lexsort((ids, -scores))[:K]])
    return found


def test_no_query_fails_and_none_is_answered_by_another_encoder_s_vectors_during_a_swap(
    session: Session, shapes: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.follower.CHECK_S", 0.0)
    folder = workspace.folder("indexes", shapes.index)
    pictures = [shapes.jpeg(shape, 7, quality=90) for shape in shapes.names]
    old = workspace.open_encoder("fresh")
    removed = {3, 20}
    truth = {
        "v000001": answers_of(folder, old, pictures, set()),
        "v000002": answers_of(folder, old, pictures, removed),
    }
    # The encoder is not loaded before the first picture is asked with: by then it lost its name.
    assert session.search_id(shapes.index, 0, K).version == "v000001"
    new = publish_anew(workspace, shapes.index, seed=1)
    is_over = threading.Event()
    answers: list[tuple[int, SearchAnswer]] = []

    def ask(first: int) -> None:
        number = first
        while not is_over.is_set():
            asked = number % len(pictures)
            answers.append((asked, session.search_picture(shapes.index, pictures[asked], K)))
            number += 1

    def wait_for(version: str) -> None:
        end_s = time.monotonic() + 60
        while all(answer.version != version for _, answer in tuple(answers)):
            assert time.monotonic() < end_s
            time.sleep(0.01)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, first) for first in range(3)]
        try:
            remove_pictures(folder, np.array(sorted(removed)))
            wait_for("v000002")
            store = EmbeddingStore.open(workspace.folder("embeddings", shapes.index))
            done = update_index(store, folder, IndexConfig())
            truth["v000003"] = answers_of(folder, new, pictures, removed)
            wait_for("v000003")
        finally:
            is_over.set()
        for each in asking:
            each.result(timeout=60)
    assert (done.action, done.why) == ("built", "the vectors are of another encoder or layer")
    assert {answer.version for _, answer in answers} == set(truth)
    for asked, answer in answers:
        assert [hit.id for hit in answer.hits] == truth[answer.version][asked]
    assert truth["v000003"] != truth["v000002"]


def test_a_server_started_anew_searches_with_the_encoder_of_the_version_in_service(
    session: Session, shapes: Any, workspace: Workspace
) -> None:
    folder = workspace.folder("indexes", shapes.index)
    picture = shapes.jpeg("disc", 7)
    truth = answers_of(folder, workspace.open_encoder("fresh"), [picture], set())
    publish_anew(workspace, shapes.index, seed=1)
    found = session.search_picture(shapes.index, picture, K)
    assert [hit.id for hit in found.hits] == truth[0]
    publish_anew(workspace, shapes.index, seed=2)
    with pytest.raises(EncoderMismatchError, match="Query with the encoder of the index"):
        Session(workspace, UiConfig()).search_picture(shapes.index, picture, K)


def test_a_server_reads_nothing_twice_that_versions_share(
    session: Session, shapes: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.follower.CHECK_S", 0.0)
    folder = workspace.folder("indexes", shapes.index)
    before = Collection.open(workspace, shapes.index)
    _ = before.encoder
    remove_pictures(folder, np.array([3]))
    read: list[str] = []
    really_hash = Folder.sha256

    def hash_it(where: Folder, name: str) -> str:
        read.append(name)
        return really_hash(where, name)

    monkeypatch.setattr(Folder, "sha256", hash_it)
    after = Collection.open(workspace, shapes.index, like=before)
    assert set(read) == {"card.md", "dead.arrow", "queries.arrow", "removed.arrow"}
    assert after.encoder is before.encoder
    assert not after.has(3)
    read.clear()
    Collection.open(workspace, shapes.index)
    assert "vectors.arrow" in read
    assert session.search_id(shapes.index, 0, K).version == "v000002"
