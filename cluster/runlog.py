"""A pretraining run's folder: its state, its numbers, its checkpoints.

``run.json`` is rewritten atomically as the state changes; ``metrics.jsonl`` grows by one JSON
object a line; ``checkpoints/step-NNNNNNNNN/`` are artefacts of their own, so a half-written one is
never taken for whole.
"""

from __future__ import annotations

import io
import json
import logging
import re
from typing import Any

import torch

from index.artifact import (
    ArtifactError,
    Folder,
    MissingArtifactError,
    library_versions,
    open_door,
    publish,
    write_json,
)

__all__ = ["MetricsLog", "load_newest_checkpoint", "read_metrics", "read_run", "save_checkpoint"]

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CHECKPOINT = re.compile(r"step-(\d{9})")


def read_run(folder: Folder) -> dict[str, Any]:
    """Content of ``run.json``, or an empty dict when there is no run."""
    if not folder.exists("run.json"):
        return {}
    content = json.loads(folder.read_bytes("run.json"))
    return dict(content)


def write_run(folder: Folder, **changes: Any) -> dict[str, Any]:
    """Change fields of ``run.json``; returns the whole."""
    content = {**read_run(folder), **changes}
    write_json(folder.make(), "run.json", content)
    return content


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """All lines of ``metrics.jsonl``; a last line cut short by a kill is left out."""
    if not folder.exists(METRICS):
        return []
    lines = []
    for text in folder.read_bytes(METRICS).decode().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            logger.warning("%s/%s: left out an unfinished line", folder, METRICS)
    return lines


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; on an object store, rewrites it at each `flush`.

    Args:
        folder: the run's folder.
        resume_step: lines of later steps, which the resumed run will write again, are dropped.
    """

    def __init__(self, folder: Folder, resume_step: int) -> None:
        self._folder = folder
        self._lines = [line for line in read_metrics(folder) if line["step"] <= resume_step]
        self._write_all()

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; on a local or shared disk it can be read at once."""
        self._lines.append(line)
        if self._folder.is_local:
            with self._folder.local_path(METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Make every line readable on an object store too."""
        if not self._folder.is_local:
            self._write_all()

    def _write_all(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._folder.make().write_atomic(METRICS, text.encode())


def save_checkpoint(
    folder: Folder, step: int, state: dict[str, Any], config_id: str, keep: int
) -> None:
    """Publish the state after ``step`` steps and delete all but the newest ``keep`` states."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    own = (folder / "checkpoints" / f"step-{step:09d}").make()
    own.write_atomic("state.pt", buffer.getvalue())
    body = {
        "id": config_id,
        "step": step,
        "config": {},
        "parents": {},
        "rows": {},
        "versions": library_versions("torch"),
    }
    publish(own, "checkpoint", body, ["state.pt"])
    for name in _steps(folder)[:-keep]:
        older = folder / "checkpoints" / name
        # The door first: without it the rest is nothing.
        older.remove("checkpoint.json")
        older.fs.delete_dir(older.path)


def load_newest_checkpoint(folder: Folder, config_id: str) -> dict[str, Any] | None:
    """State of the newest whole checkpoint of this configuration, or None.

    A checkpoint that a kill left unpublished is passed over; a damaged one too, with a warning.
    """
    for name in reversed(_steps(folder)):
        own = folder / "checkpoints" / name
        try:
            door = open_door(own, "checkpoint")
        except MissingArtifactError:
            continue
        except ArtifactError as error:
            logger.warning("%s; an older checkpoint is used", error)
            continue
        if door["id"] == config_id:
            state = torch.load(
                io.BytesIO(own.read_bytes("state.pt")), map_location="cpu", weights_only=True
            )
            return dict(state)
    return None


def _steps(folder: Folder) -> list[str]:
    return [name for name in (folder / "checkpoints").names() if CHECKPOINT.fullmatch(name)]
