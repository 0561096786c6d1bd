"""A run's pulse: a thread beside the training says how far it is, and hears when it shall stop.

``pulse.json`` holds the newest step, so that a kill's cost is known to the second. ``stop.json``
carries a wish the other way. It is there from the start and only rewritten: a shared disk may hide
for half a minute that a file has come to be, but not that it has changed.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from index.artifact import CorruptArtifactError
from index.folder import Folder
from index.sealed import read_sealed, write_sealed

__all__ = ["Pulse", "ask_to_stop", "forget_stop", "read_pulse", "stop_reason"]

logger = logging.getLogger(__name__)

PULSE, STOP = "pulse.json", "stop.json"
BEAT_S = 1.0
STORE_BEAT_S = 5.0
"""On an object store, where each look is a request."""


def ask_to_stop(folder: Folder, reason: str) -> None:
    """Ask the run in this folder to stop after the step under way, with a usable encoder."""
    write_sealed(folder.make(), STOP, {"reason": reason})


def forget_stop(folder: Folder) -> None:
    """Take the wish back, before workers start."""
    write_sealed(folder.make(), STOP, {"reason": None})


def stop_reason(folder: Folder) -> str | None:
    """Why somebody asked the run in this folder to stop, or None."""
    reason = _read(folder, STOP).get("reason")
    return reason if isinstance(reason, str) else None


def read_pulse(folder: Folder) -> tuple[int, float]:
    """The newest step and the training time up to it, in seconds; zeros when there is no pulse."""
    pulse = _read(folder, PULSE)
    try:
        return int(pulse["step"]), float(pulse["seconds"])
    except (KeyError, TypeError, ValueError):
        return 0, 0.0


class Pulse:
    """The thread, for the time of one attempt.

    Args:
        folder: the run's.

    Attributes:
        stop_reason: why the run shall stop, once somebody asked.
    """

    def __init__(self, folder: Folder) -> None:
        self.stop_reason: str | None = None
        self._folder = folder
        self._now: tuple[int, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def at(self, step: int, seconds: float) -> None:
        """Note a step; costs nothing."""
        self._now = step, seconds

    def close(self) -> None:
        """End the thread, after a last beat."""
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        written = None
        last = False
        while not last:
            last = self._closed.wait(BEAT_S if self._folder.is_local else STORE_BEAT_S)
            now = self._now
            try:
                self.stop_reason = self.stop_reason or stop_reason(self._folder)
                if now is not None and now != written:
                    beat = {"step": now[0], "seconds": round(now[1], 3)}
                    write_sealed(self._folder, PULSE, beat)
                    written = now
            except OSError as error:
                logger.warning("%s: no pulse (%s)", self._folder, error)


def _read(folder: Folder, name: str) -> dict[str, Any]:
    """A file's JSON object; empty when it is absent or damaged."""
    try:
        return read_sealed(folder, name, advice="It is written anew by the next run.")
    except (FileNotFoundError, CorruptArtifactError):
        return {}
