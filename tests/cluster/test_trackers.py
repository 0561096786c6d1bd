"""Numbers in TensorBoard, MLflow and W&B: each step once, whatever is resumed, slow or down."""

from __future__ import annotations

import logging
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cluster.event_file import EventFile
from cluster.experiment_servers import MLflowRun, WandbRun
from cluster.runlog import MetricsLog
from cluster.trackers import Trackers, TrackingPlan, plan_tracking
from cluster.workspace import Workspace
from index.folder import Folder

SETTINGS = {"epochs": 3, "optim": {"lr": 0.1}}


def line(step: int) -> dict[str, Any]:
    return {"step": step, "time_s": step / 10, "loss": 1 / step}


def masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_of(data: bytes) -> Iterator[Event]:
    """The records of an event file, checksums verified, as TensorBoard reads them."""
    while data:
        (length,), (crc,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        assert crc == masked_crc(data[:8])
        record = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked_crc(record),)
        yield Event.FromString(record)
        data = data[16 + length :]


def loss_in(folder: Folder) -> dict[int, float]:
    """Step to loss in the folder's one event file; no step may be there twice."""
    (name,) = (name for name in folder.names() if name.startswith("events.out.tfevents."))
    found: dict[int, float] = {}
    for event in events_of(folder.read_bytes(name)):
        for value in event.summary.value:
            if value.tag == "loss":
                assert event.step not in found
                found[event.step] = round(value.simple_value, 6)
    return found


def write(log: MetricsLog, trackers: Trackers, steps: range, *, done: bool = True) -> None:
    log.follow(trackers)
    for step in steps:
        log.append(line(step))
    log.close(done=done)


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder.at(tmp_path / "run")
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Folder(store, "run").make()


def test_a_resumed_run_writes_each_step_once_into_one_event_file(folder: Folder) -> None:
    log = MetricsLog(folder, 0)
    write(log, Trackers([EventFile(folder)], log.lines, 0.0), range(1, 8), done=False)
    assert loss_in(folder) == {step: round(1 / step, 6) for step in range(1, 8)}
    log = MetricsLog(folder, 4)
    assert (log.written_until, [item["step"] for item in log.lines]) == (7, [1, 2, 3, 4])
    write(log, Trackers([EventFile(folder)], log.lines, 0.4), range(5, 11))
    assert loss_in(folder) == {step: round(1 / step, 6) for step in range(1, 11)}


def test_a_tensorboard_that_is_open_is_told_to_forget_the_older_file(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    before = time.time()
    Trackers([EventFile(folder)], [line(5)], 2.0).close(done=True)
    (name,) = folder.names()
    first, start, event = events_of(folder.read_bytes(name))
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (0, SessionLog.START)
    assert event.wall_time == pytest.approx(before - 2.0 + 0.5, abs=1)
    assert {value.tag for value in event.summary.value} == {"loss", "time_s"}


class FakeServer:
    """What outlives a process: MLflow's store, and W&B's online history."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.params: dict[str, str] = {}
        self.status = ""
        self.runs: dict[str, str] = {}
        self.is_down = False


class FakeClient:
    """The calls of MLflow's client that are used."""

    server = FakeServer()

    def __init__(self, tracking_uri: str) -> None:
        assert tracking_uri == "sqlite:///here.db"

    def get_experiment_by_name(self, name: str) -> Any:
        assert name == "lookalike"
        return SimpleNamespace(experiment_id="1") if self.server.runs else None

    def create_experiment(self, name: str, **_: Any) -> str:
        assert name == "lookalike"
        return "1"

    def search_runs(self, experiments: list[str], filter_string: str) -> list[Any]:
        assert experiments == ["1"]
        found = [run for run, uid in self.server.runs.items() if f"'{uid}'" in filter_string]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

    def create_run(self, _: str, *, tags: dict[str, str], **__: Any) -> Any:
        (uid,) = tags.values()
        self.server.runs[f"run-{len(self.server.runs)}"] = uid
        return SimpleNamespace(info=SimpleNamespace(run_id=list(self.server.runs)[-1]))

    def update_run(self, _: str, status: str) -> None:
        self.server.status = status

    def get_metric_history(self, _: str, key: str) -> list[Any]:
        return [SimpleNamespace(step=step) for step, _ in self.server.points[key]]

    def log_batch(self, _: str, metrics: Any = (), params: Any = ()) -> None:
        if self.server.is_down:
            raise ConnectionError("no route\nto host")
        assert len(metrics) <= 1000
        for key, value, _, step in metrics:
            self.server.points[key].append((step, value))
        self.server.params.update(dict(params))

    def set_terminated(self, _: str, status: str) -> None:
        self.server.status = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(FakeClient, "server", server)
    tracking: Any = ModuleType("mlflow.tracking")
    entities: Any = ModuleType("mlflow.entities")
    tracking.MlflowClient = FakeClient
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    for module in (ModuleType("mlflow"), tracking, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return server


def mlflow_run() -> MLflowRun:
    return MLflowRun("sqlite:///here.db", "enc1", "abc", SETTINGS, None)


def test_mlflow_goes_on_with_the_run_and_is_sent_what_it_lacks(
    mlflow: FakeServer, tmp_path: Path
) -> None:
    folder = Folder.at(tmp_path)
    log = MetricsLog(folder, 0)
    write(log, Trackers([mlflow_run()], log.lines, 0.0), range(1, 8), done=False)
    assert (mlflow.status, mlflow.params) == ("KILLED", {"epochs": "3", "optim.lr": "0.1"})
    # The last two were lost on the way, and the run goes on from step 4.
    for points in mlflow.points.values():
        del points[-2:]
    log = MetricsLog(folder, 4)
    write(log, Trackers([mlflow_run()], log.lines, 0.4), range(5, 11))
    assert mlflow.points["loss"] == [(step, 1 / step) for step in range(1, 11)]
    assert (mlflow.status, len(mlflow.runs)) == ("FINISHED", 1)


def test_another_run_of_the_same_name_is_another_one_for_mlflow(mlflow: FakeServer) -> None:
    for uid in ("abc", "def"):
        run = MLflowRun("sqlite:///here.db", "enc1", uid, SETTINGS, None)
        Trackers([run], [], 0.0).close(done=True)
    assert list(mlflow.runs.values()) == ["abc", "def"]


def test_a_server_that_goes_down_is_given_up_with_one_warning_and_caught_up_with_later(
    mlflow: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder.at(tmp_path)
    log = MetricsLog(folder, 0)
    trackers = Trackers([mlflow_run(), EventFile(folder)], log.lines, 0.0)
    log.follow(trackers)
    log.append(line(1))
    deadline = time.monotonic() + 10
    while not mlflow.points["loss"] and time.monotonic() < deadline:
        time.sleep(0.01)
    mlflow.is_down = True
    for step in range(2, 6):
        log.append(line(step))
    log.close(done=True)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "MLflowRun: given up after ConnectionError (no route); training goes on, and so does "
        "metrics.jsonl. What is missing there is sent when the run is started again."
    ]
    assert list(loss_in(folder)) == [1, 2, 3, 4, 5]
    mlflow.is_down = False
    log = MetricsLog(folder, 5)
    Trackers([mlflow_run()], log.lines, 0.0).close(done=True)
    assert mlflow.points["loss"] == [(step, 1 / step) for step in range(1, 6)]


def test_a_slow_server_holds_up_no_step(mlflow: FakeServer) -> None:
    class Slow(MLflowRun):
        def open(self) -> int:
            assert go.wait(20)
            return super().open()

    go = threading.Event()
    trackers = Trackers([Slow("sqlite:///here.db", "enc1", "abc", {}, None)], [], 0.0)
    for step in range(1, 4):
        trackers.log(line(step))
    assert not mlflow.points
    go.set()
    trackers.close(done=True)
    assert [step for step, _ in mlflow.points["loss"]] == [1, 2, 3]


def fake_wandb(monkeypatch: pytest.MonkeyPatch, *, mode: str) -> FakeServer:
    server = FakeServer()

    def init(**given: Any) -> Any:
        assert (given["project"], given["resume"]) == ("lookalike", "allow")
        assert given["config"] == SETTINGS
        home = Path(given["dir"]) / "wandb"
        (home / f"{mode}-run-{len(list(home.glob('*')))}-{given['id']}").mkdir(parents=True)
        known = server.points["loss"] if mode == "online" else []
        return SimpleNamespace(
            starting_step=known[-1][0] + 1 if known else 0,
            settings=SimpleNamespace(mode=mode),
            log=lambda values, step: server.points["loss"].append((step, values["loss"])),
            finish=lambda exit_code: server.params.update(exit=str(exit_code)),
        )

    wandb: Any = ModuleType("wandb")
    wandb.init = init
    wandb.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return server


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_goes_on_with_the_run_without_a_step_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    server = fake_wandb(monkeypatch, mode=mode)
    folder = Folder.at(tmp_path)
    for resume, steps in ((0, range(1, 8)), (4, range(5, 11))):
        log = MetricsLog(folder, resume)
        run = WandbRun("enc1", "abc", SETTINGS, tmp_path, log.written_until)
        write(log, Trackers([run], log.lines, 0.0), steps)
    assert server.points["loss"] == [(step, 1 / step) for step in range(1, 11)]
    assert server.params == {"exit": "0"}


def test_wandb_asked_for_later_is_sent_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = fake_wandb(monkeypatch, mode="offline")
    folder = Folder.at(tmp_path)
    write(MetricsLog(folder, 0), Trackers([], [], 0.0), range(1, 8))
    log = MetricsLog(folder, 4)
    run = WandbRun("enc1", "abc", SETTINGS, tmp_path, log.written_until)
    write(log, Trackers([run], log.lines, 0.0), range(5, 9))
    assert [step for step, _ in server.points["loss"]] == list(range(1, 9))


def test_a_tracker_that_is_not_installed_is_an_error_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", {}.get)
    with pytest.raises(ValueError, match=r"--trackers wandb: .* not installed .*\.\[wandb\].* out"):
        plan_tracking(("wandb",), "abc", Workspace.at(tmp_path))


def test_mlflow_writes_to_its_server_or_else_into_the_workspace(
    mlflow: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", str)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace.at(tmp_path)
    here = plan_tracking(("mlflow",), "abc", workspace)
    assert here.mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db"
    far = Workspace(Folder(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "w"))
    with pytest.raises(ValueError, match=r"is no disk.* Set MLFLOW_TRACKING_URI"):
        plan_tracking(("mlflow",), "abc", far)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert plan_tracking(("mlflow",), "abc", far).mlflow_uri == "http://server"


def test_each_name_opens_its_own_tracker(tmp_path: Path) -> None:
    plan = TrackingPlan(names=("tensorboard", "mlflow", "wandb"), uid="abc", mlflow_uri="x")
    made = plan.open(Folder.at(tmp_path), "enc1", SETTINGS, -1)
    assert [type(tracker) for tracker in made] == [EventFile, MLflowRun, WandbRun]
