"""What the Runs tab shows: curves, progress and health, read from the files that runs write."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

from cluster.attempts import lost_work
from cluster.runlog import METRICS, MetricsTail, read_run
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.folder import Folder
from index.measure import Proportion

__all__ = ["RunBoard", "curves", "thin_out"]

POSITION = frozenset({"step", "epoch", "time_s"})
MAX_POINTS = 500
QUIET_AFTER_S = 120.0

# What a number means to somebody who watches a run; others are shown under their own name.
FIGURES = {
    "loss": ("Loss", "Lower is better; compare only runs of one method."),
    "knn": ("kNN accuracy", "Share of held-out pictures whose nearest neighbours are of a class."),
    "probe": ("Probe accuracy", "The same of a linear classifier on the known labels."),
    "embedding_std": ("Embedding spread", "1 is even over the sphere; near 0 it collapsed."),
    "effective_rank": ("Effective rank", "How many directions the embeddings use."),
    "alignment": ("Alignment", "Distance between two views of one picture; lower is better."),
    "uniformity": ("Uniformity", "How evenly embeddings fill the sphere; lower is better."),
    "margin": ("Margin", "How much more alike two views are than two pictures."),
    "discrimination": (
        "Pictures told apart",
        "How often a picture's other view is nearer than another picture; 50 % is chance.",
    ),
    "batch_discrimination": ("The same in training", "On the batch; far above it, a short cut."),
    "class_discrimination": ("Classes told apart", "As above, for pictures of one class."),
    "dead_dimensions": ("Dead dimensions", "Those that are the same for all pictures; 0 is best."),
    "batch_rank": ("Effective rank of a batch", "As it was in training, not on held-out pictures."),
    "mi_bound": ("Information bound", "Nats that two views share at the least."),
    "mi_ceiling": ("Its ceiling", "The most that the bound can show with this many negatives."),
    "held_out_mi_bound": ("Held-out information", "The bound on pictures that are not learnt."),
    "held_out_mi_ceiling": ("Its ceiling", "The most that so many held-out pictures can show."),
    "lr": ("Learning rate", "Rises in warm-up, then falls to nothing."),
    "grad_norm": ("Gradient norm", "Steady is healthy; spikes are not."),
    "update_ratio": ("Update ratio", "Part of the backbone's weights that a step changes."),
    "head_update_ratio": ("Update ratio of the head", "The same for the projector."),
    "weight_growth": ("Weight growth", "Norm of the backbone's weights over that at the start."),
    "ema_drift": ("Target's distance", "How far the target network is behind, as a share."),
    "ema_update": ("Target's step", "Part of the target network that a step changes."),
    "view_distance": ("Distance of views", "In pixels, over that of two pictures; 0 is too easy."),
    "data_wait": ("Waiting for data", "Share of the time without pixels; near 0 is healthy."),
    "pictures_per_s": ("Pictures a second", "Over all workers."),
    "loss_scale": ("Loss scale", "Of float16; falls when gradients overflow."),
}
SHARES = frozenset(
    {"knn", "probe", "discrimination", "batch_discrimination", "class_discrimination", "data_wait"}
)
# Shares of labelled pictures that were tested.
TESTED = frozenset({"knn", "probe"})
# What such a share stands beside, by the end of its name.
BASELINES = {"_random": "untrained", "_pixels": "raw pixels", "_start": "at the start"}
BESIDE = frozenset(share + ending for share in TESTED for ending in BASELINES)
SETTINGS = frozenset({"knn_k", "knn_temperature", "num_bank", "num_test"})


def curves(
    lines: list[dict[str, Any]], max_points: int = MAX_POINTS
) -> dict[str, dict[str, list[float]]]:
    """Every finite number of the lines over their steps, at most ``max_points`` points each."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in _numbers(line):
            points.setdefault(name, []).append((line["step"], value))
    result = {}
    for name in sorted(points.keys() - POSITION - SETTINGS):
        steps, values = zip(*thin_out(points[name], max_points), strict=True)
        result[name] = {"steps": list(steps), "values": list(values)}
    return result


def _latest(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The newest finite value of every number."""
    return {name: value for line in lines for name, value in _numbers(line)}


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


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
        self._tails: dict[str, MetricsTail] = {}
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
            tail = self._tails.setdefault(name, MetricsTail(folder))
            tail.refresh()
            series, latest = curves(tail.lines), _latest(tail.lines)
        return {
            "name": name,
            "state": card["state"],
            "message": _message(card, time.time() - _modified(folder)),
            "alert": str(card.get("alert") or "") if card["state"] == "running" else "",
            "history": _history(card),
            "num_steps": int(card.get("num_steps") or 0),
            "step": int(latest.get("step", 0)),
            "epoch": latest.get("epoch", 0.0),
            "time_s": latest.get("time_s", 0.0),
            "series": series,
            "figures": [_figure(key, latest) for key in _ordered(latest)],
        }


def _read_card(folder: Folder) -> dict[str, Any] | None:
    try:
        return read_run(folder) or None
    except CorruptArtifactError:
        # Its own message names a path of the server.
        advice = "run.json is damaged: restore it from a backup, or move the run's folder away."
        return {"state": "unreadable", "error": advice}


def _modified(folder: Folder) -> float:
    infos = folder.fs.get_file_info([f"{folder.path}/{name}" for name in (METRICS, "run.json")])
    return max((info.mtime_ns or 0) / 1e9 for info in infos)


def _message(card: dict[str, Any], quiet_s: float) -> str:
    if card["state"] == "running" and quiet_s > QUIET_AFTER_S:
        return (
            f"No news for {quiet_s / 60:.0f} minutes. If the process died, run the same command "
            "again: it resumes from its last checkpoint."
        )
    if card.get("error") or card.get("note"):
        return str(card.get("error") or card["note"])
    return " ".join(f"Warning: {warning['sentence']}" for warning in card.get("warnings", []))


def _history(card: dict[str, Any]) -> str:
    """What kills have cost, in a sentence; and how many workers train, when some wait."""
    parts = []
    loss = lost_work(card)
    if loss is not None:
        sentence = str(loss)
        parts.append(f"{sentence[0].upper()}{sentence[1:]}.")
    newest = (card.get("attempts") or [{}])[-1]
    if newest.get("waiting") and card["state"] == "running":
        parts.append(f"Workers: {newest['workers']} train, {newest['waiting']} wait.")
    return " ".join(parts)


def _figure(key: str, latest: dict[str, float]) -> dict[str, Any]:
    title, why = FIGURES.get(key, (key.replace("_", " "), ""))
    value = latest[key]
    figure = {"name": key, "title": title, "why": why, "value": value, "is_share": key in SHARES}
    return {**figure, **_honesty(key, latest)} if key in TESTED else figure


def _honesty(key: str, latest: dict[str, float]) -> dict[str, Any]:
    """The interval of a share, what it stands beside, and how it was measured."""
    values = {
        title: latest[key + ending] for ending, title in BASELINES.items() if key + ending in latest
    }
    beside = [{"title": title, "value": value} for title, value in values.items()]
    num_test, num_bank = int(latest.get("num_test", 0)), int(latest.get("num_bank", 0))
    if num_test < 1:
        return {"beside": beside}
    share = Proportion.wilson(latest[key] * num_test, num_test)
    measured = f"{num_test:,} pictures tested, {num_bank:,} labels known"
    if key == "knn" and "knn_k" in latest and "knn_temperature" in latest:
        measured += f"; k {latest['knn_k']:g}, temperature {latest['knn_temperature']:g}"
    if ahead := " and ".join(title for title, value in values.items() if value > share.high):
        measured += f". Beaten by {ahead}: views may wash out what tells these classes apart"
    return {"beside": beside, "low": share.low, "high": share.high, "measured": measured}


def _ordered(latest: dict[str, float]) -> list[str]:
    known = [key for key in FIGURES if key in latest]
    return known + sorted(set(latest) - set(known) - POSITION - BESIDE - SETTINGS)
