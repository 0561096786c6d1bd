import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from index.labels import LabelEvent, LabelSnapshot, LabelStore


def event(picture, label, *, user="ann", corpus="c", source="suggest", **fields):
    return LabelEvent(
        user=user, corpus_uid=corpus, picture_id=picture, label=label, source=source, **fields
    )


@pytest.fixture
def store(tmp_path):
    opened = LabelStore(f"sqlite:///{tmp_path}/labels.db")
    yield opened
    opened.close()


def test_the_last_label_of_a_picture_counts(store):
    store.add([event(1, "cat"), event(2, "dog"), event(1, "dog"), event(3, "cat")])
    store.add([event(3, None)])
    assert store.current("c") == {1: "dog", 2: "dog"}
    assert store.classes("c") == {"dog": 2}
    assert store.current("another") == {}


def test_labels_survive_reopening(store, tmp_path):
    store.add([event(1, "naïve 'quoted' \n ${40+2} עברית")])
    again = LabelStore(f"sqlite:///{tmp_path}/labels.db")
    assert again.current("c") == store.current("c")
    assert again.history("c") == store.history("c")
    again.close()


def test_sqlite_is_set_up_to_lose_nothing(store):
    with store._engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert connection.execute(sa.text("PRAGMA busy_timeout")).scalar() >= 10_000


def test_adding_an_event_twice_counts_once(store):
    same = event(1, "cat", op_id="op-1")
    assert store.add([same, same]) == 1
    assert store.add([same, event(2, "dog")]) == 1
    assert len(store.history("c")) == 2


def test_an_op_id_used_for_two_different_labels_is_refused_and_nothing_is_added(store):
    store.add([event(1, "cat", op_id="op-1")])
    with pytest.raises(ValueError, match="op-1"):
        store.add([event(3, "cat"), event(1, "dog", op_id="op-1")])
    assert store.current("c") == {1: "cat"}


def test_undo_takes_back_the_last_gesture_and_then_the_one_before(store):
    store.add([event(1, "cat")])
    store.add([event(p, "dog", gesture="g") for p in (1, 2, 3)])
    assert {undone.picture_id for undone in store.undo("ann", "c")} == {1, 2, 3}
    assert store.current("c") == {1: "cat"}
    assert len(store.undo("ann", "c")) == 1
    assert store.current("c") == {}
    assert store.undo("ann", "c") == []


def test_undo_leaves_the_labels_of_others_alone(store):
    store.add([event(1, "cat")])
    store.add([event(1, "dog", user="bob")])
    store.undo("ann", "c")
    assert store.current("c") == {1: "dog"}
    store.undo("bob", "c")
    assert store.current("c") == {}


def test_undo_keeps_to_its_corpus(store):
    store.add([event(1, "cat", corpus="a"), event(1, "dog", corpus="b")])
    store.undo("ann", "a")
    assert (store.current("a"), store.current("b")) == ({}, {1: "dog"})


def test_undoing_an_unlabelling_brings_the_label_back(store):
    store.add([event(1, "cat")])
    store.add([event(1, None)])
    assert store.current("c") == {}
    store.undo("ann", "c")
    assert store.current("c") == {1: "cat"}


def test_labels_can_be_added_after_an_undo(store):
    store.add([event(1, "cat")])
    store.undo("ann", "c")
    store.add([event(1, "dog")])
    assert store.current("c") == {1: "dog"}
    store.undo("ann", "c")
    assert store.current("c") == {}


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from(["x", "y", None])),
            st.sampled_from(["undo a", "undo b"]),
        ),
        max_size=12,
    )
)
def test_any_history_equals_a_replay_without_what_was_undone(tmp_path_factory, steps):
    store = LabelStore(f"sqlite:///{tmp_path_factory.mktemp('log')}/labels.db")
    kept: list[tuple[str, int, str | None]] = []
    for step in steps:
        if isinstance(step, str):
            store.undo(step[-1], "c")
            mine = [i for i, (user, _, _) in enumerate(kept) if user == step[-1]]
            if mine:
                del kept[mine[-1]]
        else:
            store.add([event(step[1], step[2], user=step[0])])
            kept.append(step)
    expected = {picture: label for _, picture, label in kept}
    assert store.current("c") == {p: label for p, label in expected.items() if label is not None}
    store.close()


def test_a_snapshot_is_sorted_knows_its_audits_and_names_its_content(store):
    store.add([event(9, "cat", source="audit"), event(4, "dog"), event(2, "cat", source="audit")])
    snapshot = store.snapshot("c")
    assert snapshot.ids.tolist() == [2, 4, 9]
    assert snapshot.labels == ("cat", "dog", "cat")
    assert snapshot.audit.tolist() == [True, False, True]
    assert store.snapshot("c").snapshot_id == snapshot.snapshot_id
    store.add([event(4, "cat")])
    assert store.snapshot("c").snapshot_id != snapshot.snapshot_id


def test_relabelling_keeps_an_audit_and_undoing_it_does_not(store):
    store.add([event(1, "cat", source="audit"), event(1, "dog", source="search")])
    assert store.snapshot("c").audit.tolist() == [True]
    store.add([event(2, "cat", source="audit", user="bob")])
    store.undo("bob", "c")
    store.add([event(2, "cat", user="bob")])
    assert store.snapshot("c").audit.tolist() == [True, False]


def test_a_snapshot_can_be_cut_to_the_pictures_that_have_vectors(store):
    store.add([event(1, "a"), event(2, "b", source="audit"), event(3, "c")])
    cut = store.snapshot("c").only(np.array([2, 3, 7]))
    assert (cut.ids.tolist(), cut.labels, cut.audit.tolist()) == ([2, 3], ("b", "c"), [True, False])


def test_the_snapshot_of_nothing_is_empty(store):
    snapshot = store.snapshot("c")
    assert isinstance(snapshot, LabelSnapshot)
    assert (len(snapshot.ids), snapshot.ids.dtype, snapshot.audit.dtype) == (0, np.int64, np.bool_)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "guess"}, "guess"),
        ({"label": " "}, "blank"),
        ({"op_id": "x" * 65}, "1 to 64"),
        ({"picture": -1}, "not negative"),
    ],
)
def test_a_malformed_event_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        event(**{"picture": 1, "label": "cat", **fields})


WRITER = """
    import sys
    from index.labels import LabelEvent, LabelStore

    store = LabelStore(sys.argv[1])
    for number in range(int(sys.argv[3])):
        picture = int(sys.argv[2]) + number
        store.add([LabelEvent(user="u", corpus_uid="c", picture_id=picture, label="x",
                              source="bulk")])
        print(picture, flush=True)
"""


def start_writer(url, first, count):
    code = [sys.executable, "-c", textwrap.dedent(WRITER), url, str(first), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/labels.db"
    writers = [start_writer(url, 1000 * number, 60) for number in range(3)]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    store = LabelStore(url)
    expected = {1000 * number + picture for number in range(3) for picture in range(60)}
    assert set(store.current("c")) == expected
    store.close()


@pytest.mark.parametrize("delay_s", [0.05, 0.15, 0.3])
def test_no_acknowledged_label_is_lost_to_a_kill(tmp_path, delay_s):
    url = f"sqlite:///{tmp_path}/labels.db"
    writer = start_writer(url, 0, 100_000)
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(delay_s)
    writer.kill()
    acknowledged = {int(line) for line in (first + writer.stdout.read()).split()}
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    store = LabelStore(url)
    found = set(store.current("c"))
    assert acknowledged <= found
    assert len(found - acknowledged) <= 1
    assert store.add([event(10**6, "after")]) == 1
    store.close()
