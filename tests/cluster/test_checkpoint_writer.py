"""Checkpoints beside the loop: it goes on meanwhile, and never too far."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoint_writer import CheckpointWriter
from cluster.checkpoints import Checkpoint, load_newest_checkpoint, save_checkpoint
from index.folder import Folder
from index.uri import put_file

WAIT_S = 20


class Store:
    """Saves when it is let, or fails."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.begun: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        self.begun.append(checkpoint.step)
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.saved.append(checkpoint.step)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def alerts() -> list[str | None]:
    return []


@pytest.fixture
def writer(store: Store, alerts: list[str | None]) -> Iterator[CheckpointWriter]:
    made = CheckpointWriter(store.save, every=4, step=0, tell=alerts.append)
    yield made
    store.gate.set()
    made.close()


def at(step: int) -> Checkpoint:
    return Checkpoint(step=step, config_id="config", state={})


def walk(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        if writer.is_due(step):
            writer.write(at(step))
        writer.hold(step)


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_steps_go_on_while_a_checkpoint_is_written(store: Store, writer: CheckpointWriter) -> None:
    store.gate.clear()
    walk(writer, 1, 2, 3)
    assert (store.saved, writer.gave_up) == ([], None)
    store.gate.set()
    writer.close()
    assert store.saved == [2]


def test_the_loop_waits_before_a_kill_could_cost_more_than_the_interval(
    store: Store, writer: CheckpointWriter
) -> None:
    """With 4 steps: that of step 2 is under way, so none after the fourth begins."""
    store.gate.clear()
    walk(writer, 1, 2, 3)
    thread = in_thread(lambda: walk(writer, 4))
    thread.join(0.3)
    assert thread.is_alive()
    store.gate.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert store.saved[0] == 2


def test_with_an_interval_of_one_every_step_is_safe_before_the_next(store: Store) -> None:
    writer = CheckpointWriter(store.save, every=1, step=0, tell=lambda _: None)
    store.gate.clear()
    thread = in_thread(lambda: walk(writer, 1))
    thread.join(0.3)
    assert thread.is_alive()
    store.gate.set()
    thread.join(WAIT_S)
    assert store.saved == [1]
    writer.close()


def test_at_most_one_is_under_way(store: Store, writer: CheckpointWriter) -> None:
    store.gate.clear()
    writer.write(at(2))
    thread = in_thread(lambda: writer.write(at(4)))
    thread.join(0.3)
    assert thread.is_alive()
    assert store.begun == [2]
    store.gate.set()
    thread.join(WAIT_S)
    writer.close()
    assert store.saved == [2, 4]


def test_closing_waits_for_the_one_under_way(store: Store, writer: CheckpointWriter) -> None:
    store.gate.clear()
    writer.write(at(2))
    timer = threading.Timer(0.2, store.gate.set)
    timer.start()
    writer.close()
    assert store.saved == [2]


def test_a_failed_checkpoint_is_said_and_tried_again_and_its_end_is_said_too(
    store: Store,
    writer: CheckpointWriter,
    alerts: list[str | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.error = OSError(errno.ENOSPC, "No space left on device")
    walk(writer, 1, 2)
    writer._settle()
    assert alerts[0] is not None
    assert "step 2 could not be written" in alerts[0]
    assert "all work since step 0" in alerts[0]
    assert "No space left" in caplog.text
    store.error = None
    walk(writer, 3, 4)
    writer._settle()
    assert store.saved == [4]
    assert alerts[1:] == [None]
    assert "protected again" in caplog.text
    assert writer.gave_up is None


def test_after_three_failures_in_a_row_the_run_is_to_stop(
    store: Store, writer: CheckpointWriter
) -> None:
    walk(writer, 1, 2)
    writer._settle()
    store.error = OSError(errno.ENOSPC, "No space left on device")
    walk(writer, 3, 4, 5, 6)
    assert writer.gave_up is None
    walk(writer, 7, 8)
    writer._settle()
    assert writer.gave_up is not None
    for part in ("3 checkpoints in a row", "step 8", "has to be able", "goes on from step 2"):
        assert part in writer.gave_up


def test_an_error_of_our_own_is_not_taken_for_a_full_disk(
    store: Store, writer: CheckpointWriter
) -> None:
    store.error = KeyError("state")
    writer.write(at(2))
    with pytest.raises(KeyError):
        writer._settle()


def test_an_absent_object_store_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alerts: list[str | None]
) -> None:
    from pyarrow import fs as pafs

    store = Folder(pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), str(tmp_path / "run"))
    put, calls = put_file, []

    def flaky(filesystem: pafs.FileSystem, source: Path, target: str) -> None:
        calls.append(target)
        put(filesystem, source, target)
        if len(calls) == 2:  # a part of the checkpoint arrives
            raise OSError("When uploading part: AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr("index.folder.put_file", flaky)
    writer = CheckpointWriter(
        lambda checkpoint: save_checkpoint(store, checkpoint), every=2, step=0, tell=alerts.append
    )
    for step in (1, 2):
        state = {"step": step, "weights": torch.ones(2)}
        writer.write(Checkpoint(step=step, config_id="config", state=state))
        writer.hold(step)
        writer._settle()
    assert [alert is None for alert in alerts] == [False, True]
    assert (store / "checkpoints").names() == ["step-000000002"]
    loaded = load_newest_checkpoint(store, "config")
    assert loaded is not None
    assert loaded["step"] == 2
    writer.close()
