"""A pretraining run's folder: its state, its numbers, its labels.

``run.json`` is rewritten atomically as the state changes; ``metrics.jsonl`` grows by one JSON
object a line. Both carry checksums. Checkpoints: `cluster.checkpoints`.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

from index.artifact import CorruptArtifactError
from index.folder import Folder
from index.sealed import read_sealed, write_sealed

__all__ = [
    "MetricsLog",
    "MetricsTail",
    "read_metrics",
    "read_run",
    "write_run",
]

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CHECK = "check"
"""The last field of a line of metrics: CRC-32 of the others, in hex."""
ADVICE = (
    "It has to say what the run computes and how far it is. Restore it from a backup, or move the "
    "run's folder away and train again."
)


def read_run(folder: Folder) -> dict[str, Any]:
    """Content of ``run.json``, or an empty dict when there is no run.

    Raises:
        CorruptArtifactError: it is damaged.
    """
    try:
        content = read_sealed(folder, "run.json", advice=ADVICE)
    except FileNotFoundError:
        return {}
    if not isinstance(content.get("state"), str):
        raise CorruptArtifactError(f"{folder}/run.json: names no state. {ADVICE}")
    return content


def write_run(folder: Folder, **changes: Any) -> dict[str, Any]:
    """Change fields of ``run.json``; returns the whole."""
    content = {**read_run(folder), **changes}
    write_sealed(folder.make(), "run.json", content)
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
            stated = line.pop(CHECK, None)
            if stated is not None and stated != _checksum(line):
                raise ValueError("its numbers do not match its checksum")
            return {**line, "step": int(line["step"])}
        except (AttributeError, ValueError, KeyError, TypeError, OverflowError) as error:
            logger.warning("%s/%s: left out a damaged line (%s)", self._folder, METRICS, error)
            return None


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps({**line, CHECK: _checksum(line)}) + "\n"


def _checksum(line: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line, sort_keys=True).encode()):08x}"


class Follower(Protocol):
    """Takes every line of a log as well, such as `cluster.trackers.Trackers`."""

    def log(self, line: Mapping[str, Any]) -> None:
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

    A full disk or an absent store costs no training: what could not be written is kept, and written
    with the next `flush` that succeeds.

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
        # Also while the file lacks lines or ends in half of one, so that appending would harm it.
        self._is_behind = True
        self.flush()

    def follow(self, follower: Follower) -> None:
        """Tell somebody else of each line, flush and close from now on."""
        self._follower = follower

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; on a local or shared disk it can be read at once."""
        self.lines.append(line)
        if self._follower is not None:
            self._follower.log(line)
        if not self._folder.is_local or self._is_behind:
            self._is_behind = True
            return
        try:
            with self._folder.local_path(METRICS).open("a", encoding="utf-8") as file:
                file.write(_text(line))
        except OSError as error:
            self._fell_behind(error)

    def flush(self) -> None:
        """Make every line readable."""
        if self._follower is not None:
            self._follower.flush()
        if not self._is_behind:
            return
        text = "".join(map(_text, self.lines))
        try:
            self._folder.make().write_atomic(METRICS, text.encode())
            self._is_behind = False
        except OSError as error:
            self._fell_behind(error)

    def close(self, *, done: bool) -> None:
        """Write what is left; ``done`` says whether the run came to its end."""
        self.flush()
        if self._follower is not None:
            self._follower.close(done=done)

    def _fell_behind(self, error: OSError) -> None:
        self._is_behind = True
        logger.warning(
            "%s/%s: could not be written (%s); tried again", self._folder, METRICS, error
        )
