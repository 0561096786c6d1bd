"""A run's folder under kills and damage."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.runlog import (
    MetricsLog,
    MetricsTail,
    read_metrics,
    read_run,
    write_run,
)
from index.artifact import CorruptArtifactError
from index.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "run")


def test_metrics_after_the_resumed_step_are_written_only_once(folder: Folder) -> None:
    log = MetricsLog(folder, resume_step=0)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": step / 10})
    MetricsLog(folder, resume_step=2).append({"step": 3, "loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(folder)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 9.0),
    ]


def test_a_full_disk_costs_no_line_of_metrics(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(folder, resume_step=0)
    log.append({"step": 1})
    half = '{"step": 2, "lo'

    def fill_up(path: Path, mode: str, **_: Any) -> Any:
        with open(path, "a") as file:  # noqa: PTH123 - Path.open is this function
            file.write(half)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fill_up)
        log.append({"step": 2, "loss": 0.5})
    assert "could not be written" in caplog.text
    log.append({"step": 3})
    assert read_metrics(folder) == [{"step": 1}]
    log.flush()
    assert read_metrics(folder) == [{"step": 1}, {"step": 2, "loss": 0.5}, {"step": 3}]


def append(folder: Folder, text: str) -> None:
    with folder.make().local_path("metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_line_cut_short_by_a_kill_is_left_out(folder: Folder) -> None:
    MetricsLog(folder, resume_step=0).append({"step": 1, "loss": 0.5})
    append(folder, '{"step": 2, "lo')
    assert read_metrics(folder) == [{"step": 1, "loss": 0.5}]


def test_a_tail_gives_each_whole_line_once_as_the_file_grows(folder: Folder) -> None:
    tail = MetricsTail(folder)
    assert tail.refresh() == []
    append(folder, '{"step": 1}\n{"step": 2}\n{"st')
    assert tail.refresh() == [{"step": 1}, {"step": 2}]
    assert tail.refresh() == []
    append(folder, 'ep": 3}\n')
    assert tail.refresh() == [{"step": 3}]
    assert tail.lines == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_tail_reads_only_what_is_new(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    append(folder, "".join(f'{{"step": {step}}}\n' for step in range(1000)))
    tail = MetricsTail(folder)
    tail.refresh()
    read, parsed = [], []
    once = MetricsTail._read
    monkeypatch.setattr(MetricsTail, "_read", lambda *a: (read.append(once(*a)), read[-1])[1])
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(text), loads(text))[1])
    append(folder, '{"step": 1000}\n')
    assert tail.refresh() == [{"step": 1000}]
    assert len(parsed) == 1
    assert sum(map(len, read)) < 100


@pytest.mark.parametrize(
    "text",
    ["", '{"step": 1}\n', '{"step": 1, "loss": 9}\n{"step": 2, "loss": 9}\n{"step": 3}\n'],
    ids=["emptied", "cut", "written anew"],
)
def test_a_tail_starts_over_when_the_file_was_rewritten(folder: Folder, text: str) -> None:
    append(folder, '{"step": 1}\n{"step": 2}\n')
    tail = MetricsTail(folder)
    tail.refresh()
    folder.write_atomic("metrics.jsonl", text.encode())
    tail.refresh()
    assert tail.lines == read_metrics(folder) == [json.loads(line) for line in text.splitlines()]


def test_steps_written_again_replace_what_came_after_them(folder: Folder) -> None:
    append(folder, '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "loss": 1.0}\n')
    assert read_metrics(folder) == [{"step": 1}, {"step": 2, "loss": 1.0}]


@pytest.mark.parametrize("bad", ["no json", "[1]", '{"loss": 1}', '{"step": Infinity}', "\udcff"])
def test_a_damaged_line_costs_only_itself(
    folder: Folder, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n'.encode(errors="surrogateescape")
    folder.write_atomic("metrics.jsonl", content)
    assert read_metrics(folder) == [{"step": 1}, {"step": 2}]
    assert caplog.text.count("left out a damaged line") == 1


@pytest.mark.parametrize("content", [b"", b'{"state": "runn', b"[]", b'{"num_steps": 7}', b"\xff"])
def test_a_damaged_run_is_named_with_what_to_do(folder: Folder, content: bytes) -> None:
    folder.write_atomic("run.json", content)
    with pytest.raises(CorruptArtifactError, match=r"run\.json: .*move the run's folder away"):
        read_run(folder)


def test_run_fields_change_one_by_one(folder: Folder) -> None:
    assert read_run(folder) == {}
    write_run(folder, state="running", num_steps=7)
    write_run(folder, state="done")
    assert read_run(folder) == {"state": "done", "num_steps": 7}
