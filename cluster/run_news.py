"""What a driver says of a run while Ray Train works: new attempts, lost protection, no workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.attempts import what_was_lost
from cluster.runlog import read_run
from index.artifact import ArtifactError
from index.folder import Folder

__all__ = ["RunNews"]

WAIT_S = 60.0


class RunNews:
    """Follows ``run.json`` and says what is new in it.

    Args:
        folder: the run's, with ``run.json`` as it was before the workers started.
        say: takes a sentence.
    """

    def __init__(self, folder: Folder, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        run = self._read()
        self._num_attempts = len(run.get("attempts") or [])
        self._alert = run.get("alert")
        self._has_begun = False
        self._waiting_since_s = time.monotonic()

    def look(self) -> None:
        """Read once, and speak if there is something to say."""
        run = self._read()
        attempts = run.get("attempts") or []
        for attempt in attempts[self._num_attempts :]:
            self._has_begun = True
            if sentence := _sentence(attempt):
                self._say(sentence)
        self._num_attempts = max(self._num_attempts, len(attempts))
        if run.get("alert") != self._alert:
            self._alert = run.get("alert")
            self._say(self._alert or "Checkpoints are written again: the run is protected.")
        if not self._has_begun and time.monotonic() - self._waiting_since_s > WAIT_S:
            self._waiting_since_s = time.monotonic()
            self._say(
                "No worker has started for a minute: Ray waits until the cluster has room for all. "
                "`ray status` shows what it has and what is asked for; if it cannot grow, stop "
                "this, and lower num_workers or cpus_per_worker in the profile."
            )

    def _read(self) -> dict[str, Any]:
        try:
            return read_run(self._folder)
        except (OSError, ArtifactError):
            return {}


def _sentence(attempt: Mapping[str, Any]) -> str:
    """What there is to say about an attempt; nothing about an uneventful start."""
    parts = []
    workers = "1 worker" if attempt["workers"] == 1 else f"{attempt['workers']} workers"
    if attempt["resumed_at"] or attempt["lost_steps"]:
        parts.append(
            f"Goes on from step {attempt['resumed_at']:,} with {workers}; "
            f"{what_was_lost(attempt['lost_steps'], attempt['lost_s'])}."
        )
    if attempt["waiting"]:
        parts.append(
            f"Training: {workers}; waiting: {attempt['waiting']}, since the batch does not divide "
            "among more."
        )
    return " ".join(parts)
