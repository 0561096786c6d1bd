"""Search, browse and describe, without a browser and without HTTP."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster.catalog import Catalog, CatalogRow
from cluster.collection import Collection
from cluster.workspace import Workspace
from encoders.picture import PictureError
from index.artifact import MissingArtifactError
from ui.config import UiConfig
from ui.session import Session, UnknownPictureError


def id_of(session: Session, index_name: str, name: str) -> int:
    catalog = session.collection(index_name).catalog
    return next(row.id for row in catalog.rows(catalog.table["id"].to_numpy()) if row.name == name)


def test_a_recompressed_picture_finds_its_original_first(session: Session, shapes: Any) -> None:
    for shape in shapes.names:
        answer = session.search_picture(shapes.index, shapes.jpeg(shape, 3), 5)
        assert answer.hits[0].name == f"{shape}-03.png"
        assert [hit.rank for hit in answer.hits] == [1, 2, 3, 4, 5]
        scores = [hit.score for hit in answer.hits]
        assert scores == sorted(scores, reverse=True)
        assert 0.9 < scores[0] <= 1.0


def test_a_picture_of_the_corpus_does_not_find_itself(session: Session, shapes: Any) -> None:
    cross = id_of(session, shapes.index, "cross-05.png")
    answer = session.search_id(shapes.index, cross, 10)
    assert cross not in {hit.id for hit in answer.hits}
    assert answer.returned == answer.asked == 10
    assert answer.version == "v000001"


def test_asking_for_more_than_there_is_returns_less_and_says_so(
    session: Session, shapes: Any
) -> None:
    answer = session.search_picture(shapes.index, shapes.jpeg("disc", 0), 200)
    assert (answer.asked, answer.returned) == (200, shapes.num_pictures)
    assert answer.flags == ["short"]


@pytest.mark.parametrize("k", [0, -1, 201])
def test_k_out_of_range_is_refused(session: Session, shapes: Any, k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}: a search returns 1 to 200"):
        session.search_id(shapes.index, 0, k)


@pytest.mark.parametrize("data", [b"", b"no picture at all", b"\xff\xd8\xff\xe0 truncated"])
def test_what_is_no_picture_is_refused(session: Session, shapes: Any, data: bytes) -> None:
    with pytest.raises(PictureError):
        session.search_picture(shapes.index, data, 5)


def test_an_unknown_picture_is_named(session: Session, shapes: Any) -> None:
    for call in (
        lambda: session.search_id(shapes.index, 999, 5),
        lambda: session.thumbnail(shapes.index, 999),
        lambda: session.describe(shapes.index, 999),
    ):
        with pytest.raises(UnknownPictureError, match="picture 999: not in index"):
            call()


def test_an_unknown_index_names_those_that_exist(session: Session, shapes: Any) -> None:
    with pytest.raises(MissingArtifactError, match=f"Existing: {shapes.index}"):
        session.browse("other", 5, 1)


@pytest.mark.parametrize("name", ["..", "../shapes", "a/b", "", "a\x00b"])
def test_a_name_that_is_no_folder_name_is_refused(session: Session, name: str) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        session.collection(name)


def test_browsing_is_repeatable_and_the_seed_changes_it(session: Session, shapes: Any) -> None:
    first = session.browse(shapes.index, 12, 1)
    assert first == session.browse(shapes.index, 12, 1)
    assert first != session.browse(shapes.index, 12, 2)
    assert len({item["id"] for item in first}) == 12


def test_descriptions_hold_no_folder(session: Session, shapes: Any, workspace: Workspace) -> None:
    names = set()
    for picture in session.collection(shapes.index).ids():
        described = session.describe(shapes.index, int(picture))
        names.add(described["name"])
        assert "/" not in described["name"]
        assert (described["width"], described["height"]) == (64, 64)
    assert names > set(shapes.hostile_names)


def test_a_damaged_index_is_not_offered_and_does_not_hide_the_others(
    session: Session, shapes: Any, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    whole = workspace.folder("indexes", shapes.index).local_path()
    damaged = workspace.folder("indexes", "damaged").local_path()
    shutil.copytree(whole, damaged)
    vectors = damaged / "v000001" / "vectors.arrow"
    data = bytearray(vectors.read_bytes())
    data[len(data) // 2] ^= 1
    vectors.write_bytes(bytes(data))
    assert [item["name"] for item in session.indexes()] == [shapes.index]
    assert "damaged" in caplog.text


def test_an_answer_with_a_file_that_changed_says_so(
    session: Session, shapes: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.search_id(shapes.index, 0, 5).flags == []
    rows = Catalog.rows

    def vanished(catalog: Catalog, ids: Any) -> list[CatalogRow]:
        return [dataclasses.replace(row, status="vanished") for row in rows(catalog, ids)]

    monkeypatch.setattr(Catalog, "rows", vanished)
    assert session.search_id(shapes.index, 0, 5).flags == ["changed_since_index"]


def test_an_index_that_opens_slowly_holds_up_no_other(
    session: Session, shapes: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = workspace.folder("indexes", shapes.index).local_path()
    shutil.copytree(whole, workspace.folder("indexes", "slow").local_path())
    opened, go_on = [], threading.Event()
    really_open = Collection.open

    def open_slowly(where: Workspace, name: str, **options: Any) -> Collection:
        opened.append(name)
        if name == "slow":
            assert go_on.wait(timeout=30)
        return really_open(where, name, **options)

    monkeypatch.setattr(Collection, "open", open_slowly)
    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(session.collection, "slow") for _ in range(2)]
        fast = pool.submit(session.collection, shapes.index)
        try:
            assert fast.result(timeout=30).name == shapes.index
            assert not any(future.done() for future in slow)
        finally:
            go_on.set()
        assert slow[0].result(timeout=30) is slow[1].result(timeout=30)
    assert sorted(opened) == sorted([shapes.index, "slow"]), "each is opened once"


def test_the_configured_index_opens_first(workspace: Workspace, shapes: Any) -> None:
    assert Session(workspace, UiConfig(index=shapes.index)).default_index() == shapes.index
    assert Session(workspace, UiConfig(index="gone")).default_index() == shapes.index


def test_an_empty_workspace_has_nothing_to_offer(tmp_path: Any) -> None:
    session = Session(Workspace.at(tmp_path / "nothing"), UiConfig())
    assert session.indexes() == []
    assert session.default_index() is None
    assert not (tmp_path / "nothing").exists()
