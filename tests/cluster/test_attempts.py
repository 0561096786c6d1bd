"""What a run's page and its driver say of kills: attempts, lost work, lost protection."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import run_news
from cluster.attempts import begin_attempt, lost_work
from cluster.pulse import Pulse, ask_to_stop, forget_stop, read_pulse, stop_reason
from cluster.run_news import RunNews
from cluster.runlog import MetricsLog, read_run, write_run
from index.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder.at(tmp_path / "run")
    write_run(made, state="running")
    return made


def begin(
    folder: Folder, resumed_at: int, seconds: float = 0.0, workers: int = 2, waiting: int = 0
) -> None:
    begin_attempt(
        folder,
        resumed_at=resumed_at,
        seconds=seconds,
        num_workers=workers,
        num_waiting=waiting,
    )


def beat(folder: Folder, step: int, seconds: float) -> None:
    pulse = Pulse(folder)
    pulse.at(step, seconds)
    pulse.close()


def test_an_attempt_counts_what_was_done_since_its_checkpoint(folder: Folder) -> None:
    begin(folder, 0)
    assert lost_work(read_run(folder)) is None
    log = MetricsLog(folder, 0)
    for step in (10, 20, 30):
        log.append({"step": step, "time_s": step * 2.0})
    beat(folder, 34, 68.0)
    begin(folder, 20, seconds=40.0)
    last = read_run(folder)["attempts"][-1]
    assert (last["reached"], last["lost_steps"], last["lost_s"]) == (34, 14, 28.0)
    assert str(lost_work(read_run(folder))) == "resumed once; 14 steps, 28 s of work lost"


def test_metrics_tell_when_there_is_no_pulse(folder: Folder) -> None:
    begin(folder, 0)
    MetricsLog(folder, 0).append({"step": 10, "time_s": 5.0})
    folder.write_atomic("pulse.json", b'{"step": "x')
    begin(folder, 0)
    begin(folder, 10, seconds=5.0)
    assert [item["lost_steps"] for item in read_run(folder)["attempts"]] == [0, 10, 0]
    assert str(lost_work(read_run(folder))) == "resumed 2 times; 10 steps, 5 s of work lost"


def test_a_pulse_is_written_while_the_run_works(folder: Folder, monkeypatch) -> None:
    monkeypatch.setattr("cluster.pulse.BEAT_S", 0.01)
    pulse = Pulse(folder)
    pulse.at(3, 1.5)
    while read_pulse(folder) != (3, 1.5):
        pass
    forget_stop(folder)
    assert stop_reason(folder) is None
    ask_to_stop(folder, "somebody asked it to")
    while pulse.stop_reason is None:
        pass
    forget_stop(folder)
    pulse.close()
    assert pulse.stop_reason == "somebody asked it to"
    assert stop_reason(folder) is None


def test_a_pulse_outlives_an_absent_store(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.pulse.BEAT_S", 0.01)

    def absent(*_: object) -> None:
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr("cluster.pulse.write_sealed", absent)
        pulse = Pulse(folder)
        pulse.at(3, 1.5)
        while "no pulse" not in caplog.text:
            pass
    pulse.close()
    assert read_pulse(folder) == (3, 1.5)


def test_a_driver_says_how_an_attempt_goes_on_and_who_waits(folder: Folder) -> None:
    said: list[str] = []
    news = RunNews(folder, said.append)
    begin(folder, 0)
    news.look()
    assert said == []
    beat(folder, 14, 9.0)
    begin(folder, 10, seconds=5.0, workers=2, waiting=1)
    news.look()
    news.look()
    assert said == [
        "Goes on from step 10 with 2 workers; 4 steps, 4 s of work lost. "
        "Training: 2 workers; waiting: 1, since the batch does not divide among more."
    ]


def test_a_driver_says_when_work_is_not_protected_and_when_it_is_again(folder: Folder) -> None:
    said: list[str] = []
    news = RunNews(folder, said.append)
    write_run(folder, alert="The checkpoint of step 20 could not be written.")
    news.look()
    write_run(folder, alert=None)
    news.look()
    assert said == [
        "The checkpoint of step 20 could not be written.",
        "Checkpoints are written again: the run is protected.",
    ]


def test_a_driver_says_that_workers_do_not_start_and_what_to_do(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    news = RunNews(folder, said.append)
    news.look()
    assert said == []
    monkeypatch.setattr(run_news, "WAIT_S", 0.0)
    news.look()
    assert "No worker has started for a minute" in said[0]
    assert "lower num_workers" in said[0]
    begin(folder, 0)
    news.look()
    assert len(said) == 1
