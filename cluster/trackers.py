"""Where a run's numbers go besides ``metrics.jsonl``: TensorBoard, MLflow, Weights & Biases.

Each is followed by a thread of its own: a server that is slow or down never holds up a step. One
that fails is given up with one warning, and the next start of the run sends what it missed.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.event_file import EventFile
from cluster.experiment_servers import MLflowRun, WandbRun
from cluster.workspace import Workspace
from index.folder import Folder

__all__ = ["Tracker", "TrackerName", "Trackers", "TrackingPlan", "plan_tracking"]

logger = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "mlflow", "wandb"]

MODULES: Mapping[TrackerName, str] = {
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}
CLOSE_S = 60.0
"""How long the end of a run waits for what is still to be sent."""


class Tracker(Protocol):
    """Somewhere that numbers go."""

    def open(self) -> int:
        """Begin or go on; returns the last step that is there, -1 without any."""
        ...

    def log(self, lines: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        """Take lines of ``metrics.jsonl``, each with its wall time in seconds."""
        ...

    def flush(self) -> None:
        """A checkpoint is being written."""
        ...

    def close(self, *, done: bool) -> None:
        """The run ends here, for now or for good."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingPlan:
    """Which trackers a run has, as its workers have to know.

    Args:
        names: of the trackers.
        uid: identity of the run, the same over all resumes.
        mlflow_uri: where MLflow keeps runs; may carry a password, and is shown nowhere.
    """

    names: tuple[TrackerName, ...]
    uid: str
    mlflow_uri: str | None = field(default=None, repr=False)

    def open(
        self, folder: Folder, name: str, settings: Mapping[str, Any], written_until: int
    ) -> list[Tracker]:
        """The trackers themselves.

        Args:
            folder: the run's folder.
            name: of the run.
            settings: what it computes.
            written_until: the last step in ``metrics.jsonl`` when this part of the run began.
        """
        made: list[Tracker] = []
        for tracker in self.names:
            if tracker == "tensorboard":
                made.append(EventFile(folder))
            elif tracker == "mlflow":
                assert self.mlflow_uri is not None
                files = str(folder.local_path("mlflow")) if folder.is_local else None
                made.append(MLflowRun(self.mlflow_uri, name, self.uid, settings, files))
            else:
                home = folder.local_path() if folder.is_local else Path(tempfile.mkdtemp())
                made.append(WandbRun(name, self.uid, settings, home, written_until))
        return made


def plan_tracking(names: tuple[TrackerName, ...], uid: str, workspace: Workspace) -> TrackingPlan:
    """Check that what is asked for can be had, before an hour of training.

    Raises:
        ValueError: a tracker is not installed, or MLflow has nowhere to write.
    """
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ValueError(
                f"--trackers {name}: the package {MODULES[name]}, which it needs, is not installed "
                f"here. Install it on every node (pip install '.[{name}]'), or leave "
                f"{name} out."
            )
    return TrackingPlan(
        names=names, uid=uid, mlflow_uri=_mlflow_uri(workspace) if "mlflow" in names else None
    )


def _mlflow_uri(workspace: Workspace) -> str:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not workspace.root.is_local:
        raise ValueError(
            f"--trackers mlflow: {workspace.root} is no disk, where MLflow could keep a database. "
            "Set MLFLOW_TRACKING_URI to your server, or leave mlflow out."
        )
    return f"sqlite:///{workspace.root.local_path('mlflow.db')}"


class Trackers:
    """All trackers of a run, each followed by its own thread.

    Args:
        trackers: not opened yet.
        lines: what ``metrics.jsonl`` holds so far.
        seconds: how long the run has trained so far.
    """

    def __init__(
        self, trackers: Sequence[Tracker], lines: Sequence[Mapping[str, float]], seconds: float
    ) -> None:
        began_s = time.time() - seconds
        self._followers = [_Follower(tracker, began_s) for tracker in trackers]
        for line in lines:
            self.log(line)
        for follower in self._followers:
            follower.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of ``metrics.jsonl``; returns at once."""
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        for follower in self._followers:
            follower.lines.put(numbers)

    def flush(self) -> None:
        """A checkpoint is being written; returns at once."""
        for follower in self._followers:
            follower.lines.put("flush")

    def close(self, *, done: bool) -> None:
        """Wait, not for ever, until all is sent."""
        for follower in self._followers:
            follower.lines.put("done" if done else "stop")
        deadline = time.monotonic() + CLOSE_S
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))
            if follower.is_alive():
                logger.warning("%s: not all was sent in %.0f s", follower.name, CLOSE_S)


Entry = Mapping[str, float] | Literal["flush", "done", "stop"]


class _Follower(threading.Thread):
    def __init__(self, tracker: Tracker, began_s: float) -> None:
        super().__init__(name=type(tracker).__name__, daemon=True)
        self.lines: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self._tracker = tracker
        self._began_s = began_s

    def run(self) -> None:
        try:
            self._follow(self._tracker.open())
        except Exception as error:  # noqa: BLE001 - what such libraries raise is theirs to choose
            logger.warning(
                "%s: given up after %s (%s); training goes on, and so does metrics.jsonl. "
                "What is missing there is sent when the run is started again.",
                self.name,
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "no reason given",
            )

    def _follow(self, last_step: int) -> None:
        while True:
            entries = [self.lines.get()]
            while not self.lines.empty():
                entries.append(self.lines.get())
            fresh = [entry for entry in entries if not isinstance(entry, str)]
            fresh = [line for line in fresh if line["step"] > last_step]
            if fresh:
                self._tracker.log([(self._began_s + line["time_s"], line) for line in fresh])
                last_step = int(fresh[-1]["step"])
            words = {entry for entry in entries if isinstance(entry, str)}
            if "flush" in words:
                self._tracker.flush()
            if words & {"done", "stop"}:
                self._tracker.close(done="done" in words)
                return
