"""The label log killed at every step of SQLite, on a full disk, and with every byte damaged."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from index.artifact import CorruptArtifactError
from index.labels import LabelEvent, LabelStore

ADD = """
    from index.labels import LabelEvent, LabelStore

    def run(home):
        store = LabelStore(f"sqlite:///{home}/labels.db")
        store.add([LabelEvent(user="u", corpus_uid="c", picture_id=number, label="new",
                              source="bulk", op_id=f"new-{number}") for number in (1, 2, 3)])
"""
KILLED_INSIDE = """
    import os, signal, sqlite3

    from index import label_database, labels

    def run(home):
        store = labels.LabelStore(f"sqlite:///{home}/labels.db")
        left = [int(open(f"{home}/steps").read())]

        def tick():
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        with store._engine.connect() as connection:
            connection.connection.dbapi_connection.set_progress_handler(tick, 1)
        store.add([labels.LabelEvent(user="u", corpus_uid="c", picture_id=number, label="new",
                                     source="bulk", op_id=f"new-{number}") for number in (1, 2)])
"""


def event(picture: int, label: str | None, **fields: Any) -> LabelEvent:
    given = {"user": "u", "corpus_uid": "c", "source": "suggest", **fields}
    return LabelEvent(picture_id=picture, label=label, **given)


def labels_of(home: Path) -> dict[int, str]:
    store = LabelStore(f"sqlite:///{home}/labels.db")
    try:
        return store.current("c")
    finally:
        store.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with two acknowledged labels, its log closed."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    store = LabelStore(f"sqlite:///{folder}/labels.db")
    store.add([event(1, "old"), event(7, "old", source="audit")])
    store.close()
    return folder


def test_no_label_that_was_there_is_lost_to_a_kill_or_a_full_disk(home: Path, forge: Any) -> None:
    """Kills in the middle of SQLite's own instructions; a request is kept as a whole or not."""
    for steps in (0, 1, 3, 10, 30, 60, 100, 150, 200, 300, 500):
        copy = shutil.copytree(home, home.with_name(f"killed-{steps}"))
        (copy / "steps").write_text(str(steps))
        ended = forge.run(KILLED_INSIDE, copy)["ended"]
        assert labels_of(copy) in ({1: "old", 7: "old"}, {1: "new", 2: "new", 7: "old"})
        assert forge.run(ADD, copy)["ended"] == "done"
        assert labels_of(copy) == {1: "new", 2: "new", 3: "new", 7: "old"}
        if ended == "done":
            break
    assert ended == "done"
    assert steps >= 100


@pytest.mark.parametrize("num_bytes", [0, 4096, 20_000, 36_000])
def test_a_full_disk_is_said_and_no_part_of_a_request_is_kept(
    home: Path, forge: Any, num_bytes: int
) -> None:
    ended = forge.run(ADD, home, "short", num_bytes)
    assert ended["ended"] in ("OSError", "done")
    if ended["ended"] == "OSError":
        assert "no label of this request was kept" in ended["says"]
        assert labels_of(home) == {1: "old", 7: "old"}
    assert forge.run(ADD, home)["ended"] == "done"
    assert labels_of(home) == {1: "new", 2: "new", 3: "new", 7: "old"}


def test_every_flipped_byte_and_cut_is_noticed_or_changes_nothing(home: Path) -> None:
    path = home / "labels.db"
    whole = path.read_bytes()
    oracle, num_refused = labels_of(home), 0
    for place in range(0, len(whole), 7):
        if not any(whole[place - 40 if place > 40 else 0 : place + 40]):
            continue  # in the middle of free space
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        try:
            assert labels_of(home) == oracle, place
        except CorruptArtifactError:
            num_refused += 1
        for rest in home.glob("labels.db-*"):
            rest.unlink()
    assert num_refused > 100
    for length in (100, 4096, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptArtifactError, match="Restore the labels"):
            labels_of(home)


def test_a_write_ahead_log_that_was_cut_costs_the_last_labels_and_no_other(home: Path) -> None:
    store = LabelStore(f"sqlite:///{home}/labels.db")
    store.add([event(1, "cat")])
    store.add([event(2, "dog")])
    log = (home / "labels.db-wal").read_bytes()
    known = [{1: "old", 7: "old"}, {1: "cat", 7: "old"}, {1: "cat", 2: "dog", 7: "old"}]
    found = []
    for length in [*range(0, len(log), 512), len(log)]:
        copy = home.with_name(f"cut-{length}")
        copy.mkdir()
        shutil.copy(home / "labels.db", copy)
        (copy / "labels.db-wal").write_bytes(log[:length])
        found.append(known.index(labels_of(copy)))
    store.close()
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}


def test_a_log_from_before_events_had_checksums_opens_and_is_added_to(home: Path) -> None:
    with sqlite3.connect(home / "labels.db") as connection:
        connection.execute("ALTER TABLE label_events DROP COLUMN checksum")
    connection.close()
    store = LabelStore(f"sqlite:///{home}/labels.db")
    store.add([event(2, "new")])
    assert store.current("c") == {1: "old", 2: "new", 7: "old"}
    store.close()


def test_an_event_that_was_changed_is_named(home: Path) -> None:
    with sqlite3.connect(home / "labels.db") as connection:
        connection.execute("UPDATE label_events SET picture_id = 3 WHERE picture_id = 7")
    connection.close()
    with pytest.raises(CorruptArtifactError, match=r"event 2 is not what was written.*backup"):
        labels_of(home)


def test_a_log_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="unable to open") as raised:
        LabelStore(f"sqlite:///{tmp_path}/nowhere/labels.db")
    assert raised.value.errno == errno.EACCES
