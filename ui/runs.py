"""What the Runs tab shows: curves, progress and health, read from the files that runs write."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

from cluster.workspace import Workspace
from index.artifact import Folder, MissingArtifactError

__all__ = ["MetricsLog", "RunBoard", "thin_out"]

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
POSITION = frozenset({"step", "epoch", "time_s"})
MAX_POINTS = 500
QUIET_AFTER_S = 120.0

# What a number means to somebody who watches a run; others are shown under their own name.
FIGURES = {
    "loss": ("Loss", "Lower is better; compare only runs of one method."),
    "knn": ("kNN accuracy", "Share of pictures whose nearest neighbours have the same label."),
    "embedding_std": ("Embedding spread", "1 is even over the sphere; near 0 it collapsed."),
    "effective_rank": ("Effective rank", "How many directions the embeddings use."),
    "alignment": ("Alignment", "Distance between two views of one picture; lower is better."),
    "uniformity": ("Uniformity", "How evenly embeddings fill the sphere; lower is better."),
    "margin": ("Margin", "How much more alike two views are than two pictures."),
    "mi_bound": ("Information bound", "Nats that two views share at the least."),
    "mi_ceiling": ("Its ceiling", "The most that the bound can show with this many negatives."),
    "lr": ("Learning rate", "Rises in warm-up, then falls to nothing."),
    "grad_norm": ("Gradient norm", "Steady is healthy; spikes are not."),
}
SHARES = frozenset({"knn"})


@dataclass(slots=True)
class MetricsLog:
    """The metrics of one run, read as they grow: only new whole lines are parsed again.

    Args:
        folder: the run's folder.
        records: step -> numbers; a step written twice (a resumed run) keeps the later.
        read_bytes: how much of the file is in ``records``.
        last_line: the last line of that.
    """

    folder: Folder
    records: dict[int, dict[str, float]]
    read_bytes: int = 0
    last_line: bytes = b""

    def refresh(self) -> None:
        """Take in what has been appended; start over when the file was written anew."""
        size = self.folder.size_bytes(METRICS) or 0
        # A resumed run rewrites the file: then the line read last is no longer where it was.
        seen = self._read(self.read_bytes - len(self.last_line), size)
        if not seen.startswith(self.last_line):
            self.records.clear()
            self.read_bytes, self.last_line = 0, b""
            seen = self._read(0, size)
        fresh = seen[len(self.last_line) :]
        # The line at the end may be half written.
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.read_bytes += len(whole)
        for line in whole.splitlines(keepends=True):
            self._take(line)
            self.last_line = line

    def _read(self, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        with self.folder.fs.open_input_file(f"{self.folder.path}/{METRICS}") as file:
            file.seek(start)
            return bytes(file.read(end - start))

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s/%s: skipped a damaged line (%s)", self.folder, METRICS, error)
            return
        numbers = {
            name: float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        # A run resumed from a checkpoint goes back: what came after it is no longer true.
        while self.records and next(reversed(self.records)) > step:
            self.records.popitem()
        self.records[step] = {**self.records.get(step, {}), **numbers}

    def series(self, max_points: int = MAX_POINTS) -> dict[str, dict[str, list[float]]]:
        """Every recorded number over the steps, thinned out to at most ``max_points`` points."""
        names = {name for record in self.records.values() for name in record} - POSITION
        result = {}
        for name in sorted(names):
            points = [
                (step, record[name]) for step, record in self.records.items() if name in record
            ]
            steps, values = zip(*thin_out(points, max_points), strict=True)
            result[name] = {"steps": list(steps), "values": list(values)}
        return result

    def latest(self) -> dict[str, float]:
        """The newest value of every number."""
        newest: dict[str, float] = {}
        for record in self.records.values():
            newest.update(record)
        return newest


def thin_out(points: list[tuple[int, float]], max_points: int) -> list[tuple[int, float]]:
    """Keep the first, the last, and the lowest and highest point of equal stretches between.

    So a spike of one step stays visible in a curve of a million.

    >>> thin_out([(0, 1.0), (1, 9.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 0.0)], 4)
    [(0, 1.0), (1, 9.0), (2, 1.0), (5, 0.0)]
    """
    if len(points) <= max_points:
        return points
    inner = points[1:-1]
    num_stretches = max(1, (max_points - 2) // 2)
    kept = [points[0]]
    for position in range(num_stretches):
        low = position * len(inner) // num_stretches
        high = (position + 1) * len(inner) // num_stretches
        stretch = inner[low:high]
        extremes = {min(stretch, key=_value), max(reversed(stretch), key=_value)}
        kept.extend(sorted(extremes))
    return [*kept, points[-1]]


def _value(point: tuple[int, float]) -> float:
    return point[1]


class RunBoard:
    """All pretraining runs of a workspace. Thread-safe."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._logs: dict[str, MetricsLog] = {}
        self._lock = threading.Lock()

    def runs(self) -> list[dict[str, Any]]:
        """Name and state of every run, running ones first, then the newest."""
        found = []
        for name in self._workspace.names("runs"):
            folder = self._workspace.folder("runs", name)
            card = _read_card(folder)
            if card is not None:
                found.append((_modified(folder), {"name": name, "state": card["state"]}))
        found.sort(key=lambda item: (item[1]["state"] != "running", -item[0], item[1]["name"]))
        return [run for _, run in found]

    def metrics(self, name: str) -> dict[str, Any]:
        """Everything to show about one run.

        Raises:
            MissingArtifactError: there is no such run.
        """
        folder = self._workspace.folder("runs", name)
        card = _read_card(folder)
        if card is None:
            raise MissingArtifactError(
                f"run {name!r}: not in this workspace. Start it: lookalike pretrain RECIPE "
                f"--name {name}"
            )
        with self._lock:
            log = self._logs.setdefault(name, MetricsLog(folder, {}))
            log.refresh()
            series, latest = log.series(), log.latest()
        return {
            "name": name,
            "state": card["state"],
            "message": _message(card, time.time() - _modified(folder)),
            "num_steps": int(card.get("num_steps") or 0),
            "step": int(latest.get("step", 0)),
            "epoch": latest.get("epoch", 0.0),
            "time_s": latest.get("time_s", 0.0),
            "series": series,
            "figures": [_figure(key, latest[key]) for key in _ordered(latest)],
        }


def _read_card(folder: Folder) -> dict[str, Any] | None:
    if not folder.exists("run.json"):
        return None
    try:
        card = json.loads(folder.read_bytes("run.json"))
    except ValueError:
        return {"state": "unreadable"}
    return {**card, "state": str(card.get("state", "unknown"))}


def _modified(folder: Folder) -> float:
    infos = folder.fs.get_file_info([f"{folder.path}/{name}" for name in (METRICS, "run.json")])
    return max((info.mtime_ns or 0) / 1e9 for info in infos)


def _message(card: dict[str, Any], quiet_s: float) -> str:
    if card["state"] == "running" and quiet_s > QUIET_AFTER_S:
        return (
            f"No news for {quiet_s / 60:.0f} minutes. If the process died, run the same command "
            "again: it resumes from its last checkpoint."
        )
    reason = card.get("reason") or card.get("error") or ""
    return str(reason)


def _figure(key: str, value: float) -> dict[str, Any]:
    title, why = FIGURES.get(key, (key.replace("_", " "), ""))
    return {"name": key, "title": title, "why": why, "value": value, "is_share": key in SHARES}


def _ordered(latest: dict[str, float]) -> list[str]:
    known = [key for key in FIGURES if key in latest]
    return known + sorted(set(latest) - set(known) - POSITION)
