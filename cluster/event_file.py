"""TensorBoard: the run's numbers once more, as the event file that TensorBoard reads.

``metrics.jsonl`` is the truth. A run that is resumed writes its event file anew from it, so that no
step is there twice, whatever reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from index.folder import Folder

__all__ = ["EventFile"]

PREFIX = "events"
OLD = "events.out.tfevents."


class EventFile:
    """The event file in a run's folder; on an object store, a copy of it at each `flush`.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._path = Path()

    def open(self) -> int:
        """Take the place of older event files; returns -1: no step is there yet."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._folder.is_local:
            home = self._folder.make().local_path()
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="lookalike-events-")
            home = Path(self._scratch.name)
        older = {name for name in self._folder.names() if name.startswith(OLD)}
        before = set(home.iterdir())
        self._writer = EventsWriter(str(home / PREFIX))
        made = set(home.iterdir()) - before or {max(home.glob(OLD + "*"))}
        (self._path,) = made
        # A TensorBoard that is open forgets what it read from the older file.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=0, session_log=start))
        self._writer.flush()
        for name in older - {self._path.name}:
            self._folder.remove(name)
        return -1

    def log(self, lines: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        """Add lines, each with its wall time in seconds."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        for wall_s, line in lines:
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in line.items()
                if name != "step"
            ]
            self._writer.write_event(
                Event(wall_time=wall_s, step=int(line["step"]), summary=Summary(value=values))
            )
        self._writer.flush()

    def flush(self) -> None:
        """Make every line readable on an object store too."""
        if self._scratch is not None:
            self._writer.flush()
            self._folder.write_atomic(self._path.name, self._path.read_bytes())

    def close(self, *, done: bool) -> None:  # noqa: ARG002 - what follows a run may want to know
        """Write what is left."""
        self.flush()
        self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()
