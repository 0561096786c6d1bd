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
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    Folder,
    MissingArtifactError,
    library_versions,
    open_door,
    publish,
    write_json,
)

__all__ = [
    "MetricsLog",
    "MetricsTail",
    "load_newest_checkpoint",
    "read_metrics",
    "read_run",
    "save_checkpoint",
    "write_run",
]

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CHECKPOINT = re.compile(r"step-(\d{9})")


def read_run(folder: Folder) -> dict[str, Any]:
    """Content of ``run.json``, or an empty dict when there is no run.

    Raises:
        CorruptArtifactError: it is damaged.
    """
    if not folder.exists("run.json"):
        return {}
    try:
        content = json.loads(folder.read_bytes("run.json"))
    except ValueError as error:
        raise _damaged(folder, f"not readable as JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state"), str):
        raise _damaged(folder, "no JSON object with a state")
    return content


def _damaged(folder: Folder, what: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{folder}/run.json: {what}; it has to say what the run computes and how far it is. "
        "Restore it from a backup, or move the run's folder away and train again."
    )


def write_run(folder: Folder, **changes: Any) -> dict[str, Any]:
    """Change fields of ``run.json``; returns the whole."""
    content = {**read_run(folder), **changes}
    write_json(folder.make(), "run.json", content)
    return content


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """All lines of ``metrics.jsonl``; a last line cut short by a kill is left out."""
    tail = MetricsTail(folder)
    tail.refresh()
    return tail.lines


class MetricsTail:
    """Follows ``metrics.jsonl`` as it grows: only what is new is read and parsed.

    Attributes:
        lines: every line so far, ``step`` rising: a run that was resumed from a checkpoint writes
            some steps again, and then only the later counts.
    """

    def __init__(self, folder: Folder) -> None:
        self.lines: list[dict[str, Any]] = []
        self._folder = folder
        self._read_bytes = 0
        self._last = b""

    def refresh(self) -> list[dict[str, Any]]:
        """Take in whole lines written since the last call, and return them.

        A file that was cut or written anew is read from its beginning.
        """
        size = self._folder.size_bytes(METRICS) or 0
        seen = self._read(self._read_bytes - len(self._last), size)
        # Written anew, as a resumed run does, the line read last is no longer where it was.
        if not seen.startswith(self._last):
            self.lines.clear()
            self._read_bytes, self._last = 0, b""
            seen = self._read(0, size)
        fresh = seen[len(self._last) :]
        # The line at the end may be half written.
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        taken = []
        for text in whole.splitlines(keepends=True):
            self._last = text
            if (line := self._parse(text)) is not None:
                while self.lines and self.lines[-1]["step"] >= line["step"]:
                    self.lines.pop()
                self.lines.append(line)
                taken.append(line)
        return taken

    def _read(self, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        with self._folder.fs.open_input_file(f"{self._folder.path}/{METRICS}") as file:
            file.seek(start)
            return bytes(file.read(end - start))

    def _parse(self, text: bytes) -> dict[str, Any] | None:
        try:
            line = json.loads(text)
            return {**line, "step": int(line["step"])}
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            logger.warning("%s/%s: left out a damaged line (%s)", self._folder, METRICS, error)
            return None


class Follower(Protocol):
    """Takes every line of a log as well, such as `cluster.trackers.Trackers`."""

    def log(self, line: Mapping[str, float]) -> None:
        """A line was appended."""
        ...

    def flush(self) -> None:
        """The log was flushed."""
        ...

    def close(self, *, done: bool) -> None:
        """The log was closed."""
        ...


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; on an object store, rewrites it at each `flush`.

    Args:
        folder: the run's folder.
        resume_step: lines of later steps, which the resumed run will write again, are dropped.

    Attributes:
        lines: all that it holds.
        written_until: the last step that was there before the later ones were dropped, -1 of none.
    """

    def __init__(self, folder: Folder, resume_step: int) -> None:
        self._folder = folder
        self._follower: Follower | None = None
        found = read_metrics(folder)
        self.written_until: int = found[-1]["step"] if found else -1
        self.lines = [line for line in found if line["step"] <= resume_step]
        self._write_all()

    def follow(self, follower: Follower) -> None:
        """Tell somebody else of each line, flush and close from now on."""
        self._follower = follower

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; on a local or shared disk it can be read at once."""
        self.lines.append(line)
        if self._folder.is_local:
            with self._folder.local_path(METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._follower is not None:
            self._follower.log(line)

    def flush(self) -> None:
        """Make every line readable on an object store too."""
        if not self._folder.is_local:
            self._write_all()
        if self._follower is not None:
            self._follower.flush()

    def close(self, *, done: bool) -> None:
        """Write what is left; ``done`` says whether the run came to its end."""
        self.flush()
        if self._follower is not None:
            self._follower.close(done=done)

    def _write_all(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
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
