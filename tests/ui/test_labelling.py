"""Classes, answers and undo; suggestions from them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.workspace import Workspace
from ui.config import UiConfig
from ui.labelling import MAX_CLASSES, Labelling
from ui.session import Session, UnknownPictureError
from ui.suggesting import Suggesting


@pytest.fixture
def labelling(session: Session) -> Iterator[Labelling]:
    labelling = Labelling(session)
    yield labelling
    labelling.close()


def answer(picture: int, label: str, *, op_id: str | None = None, source: str = "suggest") -> Any:
    return {"op_id": op_id or f"op-{picture:06d}", "id": picture, "label": label, "source": source}


def counts(progress: dict[str, Any]) -> dict[str, int]:
    return {item["name"]: item["count"] for item in progress["classes"]}


def test_classes_keep_their_keys_whatever_is_labelled_first(
    labelling: Labelling, shapes: Any
) -> None:
    for name in ("frame", "disc", "cross"):
        labelling.create_class(shapes.index, name)
    labelling.write(shapes.index, [answer(0, "cross"), answer(1, "disc"), answer(2, "cross")])
    progress = labelling.progress(shapes.index)
    assert list(counts(progress).items()) == [("frame", 0), ("disc", 1), ("cross", 2)]
    assert (progress["labelled"], progress["audited"]) == (3, 0)


def test_sending_a_batch_again_changes_nothing(labelling: Labelling, shapes: Any) -> None:
    batch = [answer(0, "disc"), answer(1, "cross")]
    assert labelling.write(shapes.index, batch)["written"] == 2
    assert labelling.write(shapes.index, batch)["written"] == 0
    assert labelling.progress(shapes.index)["labelled"] == 2


def test_an_operation_id_used_for_another_answer_is_refused(
    labelling: Labelling, shapes: Any
) -> None:
    labelling.write(shapes.index, [answer(0, "disc")])
    with pytest.raises(ValueError, match="already used"):
        labelling.write(shapes.index, [answer(0, "cross", op_id="op-000000")])
    assert counts(labelling.progress(shapes.index)) == {"disc": 1}


def test_one_unknown_picture_refuses_the_whole_batch(labelling: Labelling, shapes: Any) -> None:
    with pytest.raises(UnknownPictureError, match="picture 999"):
        labelling.write(shapes.index, [answer(0, "disc"), answer(999, "disc")])
    assert labelling.progress(shapes.index)["labelled"] == 0


@pytest.mark.parametrize("label", ["a\x00\u202eb\n", "two\nlines", "   ", "x" * 101])
def test_a_label_that_could_be_no_class_refuses_the_whole_batch(
    labelling: Labelling, shapes: Any, label: str
) -> None:
    with pytest.raises(ValueError, match="needs a visible sign"):
        labelling.write(shapes.index, [answer(0, "disc"), answer(1, label)])
    assert labelling.progress(shapes.index)["labelled"] == 0


def test_blanks_around_a_label_make_no_second_class(labelling: Labelling, shapes: Any) -> None:
    labelling.create_class(shapes.index, " disc ")
    batch = [answer(0, "disc "), answer(1, "disc")]
    assert counts(labelling.write(shapes.index, batch)) == {"disc": 2}
    assert labelling.write(shapes.index, batch)["written"] == 0


def test_where_no_more_classes_may_be_made_one_is_renamed(
    labelling: Labelling, shapes: Any
) -> None:
    pictures = [answer(0, f"class {n}", op_id=f"op-many-{n:03d}") for n in range(MAX_CLASSES)]
    labelling.write(shapes.index, pictures)
    for number in range(MAX_CLASSES - 1):
        labelling.create_class(shapes.index, f"made {number}")
    with pytest.raises(ValueError, match="Rename one"):
        labelling.create_class(shapes.index, "one more")
    renamed = labelling.rename_class(shapes.index, "made 0", "one more")
    assert "one more" in counts(renamed)


def test_no_class_is_lost_when_two_servers_make_one_at_once(
    labelling: Labelling, workspace: Workspace, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Labelling(Session(workspace, UiConfig()))
    save = labelling._save_classes
    made = threading.Event()

    def make() -> None:
        other.create_class(shapes.index, "theirs")
        made.set()

    def slowly(uid: str, classes: list[str]) -> None:
        thread.start()
        made.wait(0.5)  # both have read by now, unless one waits for the other
        save(uid, classes)

    thread = threading.Thread(target=make)
    monkeypatch.setattr(labelling, "_save_classes", slowly)
    labelling.create_class(shapes.index, "ours")
    thread.join()
    assert set(counts(labelling.progress(shapes.index))) == {"ours", "theirs"}
    other.close()


def test_undo_takes_answers_back_one_by_one_until_none_is_left(
    labelling: Labelling, shapes: Any
) -> None:
    labelling.create_class(shapes.index, "disc")
    labelling.write(shapes.index, [answer(4, "disc")])
    labelling.write(shapes.index, [answer(7, "disc")])
    assert [item["id"] for item in labelling.undo(shapes.index)["undone"]] == [7]
    assert [item["id"] for item in labelling.undo(shapes.index)["undone"]] == [4]
    last = labelling.undo(shapes.index)
    assert last["undone"] == []
    assert counts(last) == {"disc": 0}


def test_a_renaming_moves_the_labels_keeps_the_key_and_is_undone_as_one(
    labelling: Labelling, shapes: Any
) -> None:
    for name in ("disc", "cross"):
        labelling.create_class(shapes.index, name)
    labelling.write(
        shapes.index,
        [answer(0, "disc"), answer(1, "disc", source="audit"), answer(2, "cross")],
    )
    renamed = labelling.rename_class(shapes.index, "disc", "circle")
    assert list(counts(renamed).items()) == [("circle", 2), ("cross", 1)]
    assert renamed["audited"] == 1
    undone = labelling.undo(shapes.index)
    assert len(undone["undone"]) == 2
    assert counts(undone)["disc"] == 2


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("disc", "cross", "is there already"),
        ("none", "other", "there is none of that name"),
        ("disc", "   ", "needs a visible sign"),
        ("disc", "two\nlines", "needs a visible sign"),
    ],
)
def test_a_renaming_that_would_confuse_is_refused(
    labelling: Labelling, shapes: Any, old: str, new: str, complaint: str
) -> None:
    for name in ("disc", "cross"):
        labelling.create_class(shapes.index, name)
    with pytest.raises(ValueError, match=complaint):
        labelling.rename_class(shapes.index, old, new)
    assert counts(labelling.progress(shapes.index)) == {"disc": 0, "cross": 0}


def test_labels_and_classes_survive_a_restart(
    labelling: Labelling, shapes: Any, workspace: Workspace
) -> None:
    labelling.create_class(shapes.index, "empty")
    labelling.write(shapes.index, [answer(0, "disc")])
    labelling.close()
    again = Labelling(Session(workspace, UiConfig()))
    assert counts(again.progress(shapes.index)) == {"empty": 0, "disc": 1}
    again.close()


def test_looking_at_a_workspace_creates_no_label_log(
    session: Session, labelling: Labelling, workspace: Workspace
) -> None:
    session.indexes()
    assert not workspace.root.exists("labels.db")


def test_every_fourth_suggestion_is_an_audit_without_a_guess(
    session: Session, labelling: Labelling, shapes: Any
) -> None:
    suggesting = Suggesting(session, labelling)
    rows = session.collection(shapes.index).catalog.rows(list(range(shapes.num_pictures)))
    first = suggesting.suggest(shapes.index, 12, [])["pictures"]
    assert [item["source"] == "audit" for item in first] == [False, False, False, True] * 3
    assert all(item["guess"] is None for item in first)
    batch = [
        answer(item["id"], shapes.shape_of(rows[item["id"]].name), source=item["source"])
        for item in first
    ]
    labelling.write(shapes.index, batch)
    following = suggesting.suggest(shapes.index, 8, [])
    shown = {item["id"] for item in following["pictures"]}
    assert shown.isdisjoint(item["id"] for item in first)
    assert {item["reason"] for item in following["pictures"]} <= {"random", "typical", "uncertain"}
    for item in following["pictures"]:
        assert (item["guess"] is None) == (item["source"] == "audit")
    assert "audit" in following["accuracy"]


def test_excluded_pictures_are_not_suggested(
    session: Session, labelling: Labelling, shapes: Any
) -> None:
    suggesting = Suggesting(session, labelling)
    first = [item["id"] for item in suggesting.suggest(shapes.index, 12, [])["pictures"]]
    second = [item["id"] for item in suggesting.suggest(shapes.index, 12, first)["pictures"]]
    assert set(first).isdisjoint(second)


def test_suggestions_end_when_all_pictures_are_excluded(
    session: Session, labelling: Labelling, shapes: Any
) -> None:
    everything = list(range(shapes.num_pictures))
    assert Suggesting(session, labelling).suggest(shapes.index, 5, everything)["pictures"] == []
