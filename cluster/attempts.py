"""The attempts of a run, from start to kill, and how much work the kills cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.pulse import read_pulse
from cluster.runlog import read_metrics, read_run, write_run
from index.folder import Folder

__all__ = ["Loss", "begin_attempt", "lost_work", "what_was_lost"]


@dataclass(frozen=True, slots=True)
class Loss:
    """What the kills of a run have cost so far.

    >>> str(Loss(num_resumes=2, num_steps=14, seconds=38.2))
    'resumed 2 times; 14 steps, 38 s of work lost'
    >>> str(Loss(num_resumes=1, num_steps=0, seconds=0.0))
    'resumed once; no work lost'
    """

    num_resumes: int
    num_steps: int
    """Steps that were made and had to be made again."""
    seconds: float
    """Training time of those."""

    def __str__(self) -> str:
        times = "once" if self.num_resumes == 1 else f"{self.num_resumes} times"
        return f"resumed {times}; {what_was_lost(self.num_steps, self.seconds)}"


def what_was_lost(num_steps: int, seconds: float) -> str:
    """The end of a sentence on work that has to be done again.

    >>> what_was_lost(1, 0.4)
    '1 step, under 1 s of work lost'
    """
    if not num_steps:
        return "no work lost"
    steps = "1 step" if num_steps == 1 else f"{num_steps:,} steps"
    took = "under 1 s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{steps}, {took} of work lost"


def begin_attempt(
    folder: Folder, *, resumed_at: int, seconds: float, num_workers: int, num_waiting: int
) -> dict[str, Any]:
    """Add an attempt to ``run.json``; before ``metrics.jsonl`` is cut to the resumed step.

    Args:
        folder: the run's.
        resumed_at: step it goes on from; 0 at the start.
        seconds: training time up to that step.
        num_workers: workers that train.
        num_waiting: further workers, with which the batch would not divide.

    Returns:
        The attempt as written.
    """
    reached, reached_s = _reached(folder)
    lost_steps = max(0, reached - resumed_at)
    attempt = {
        "started_at": time.time(),
        "resumed_at": resumed_at,
        "reached": reached,
        "lost_steps": lost_steps,
        "lost_s": round(max(0.0, reached_s - seconds), 3) if lost_steps else 0.0,
        "workers": num_workers,
        "waiting": num_waiting,
    }
    write_run(folder, attempts=[*read_run(folder).get("attempts", []), attempt])
    return attempt


def _reached(folder: Folder) -> tuple[int, float]:
    """Newest step that is known of, and the training time up to it: of the pulse or the metrics."""
    lines = read_metrics(folder)
    line = lines[-1] if lines else {"step": 0}
    return max((line["step"], float(line.get("time_s", 0.0))), read_pulse(folder))


def lost_work(run: Mapping[str, Any]) -> Loss | None:
    """What ``run.json`` tells of attempts; None when the first is still the only one."""
    attempts = run.get("attempts") or []
    if len(attempts) < 2:
        return None
    return Loss(
        num_resumes=len(attempts) - 1,
        num_steps=sum(int(attempt["lost_steps"]) for attempt in attempts),
        seconds=sum(float(attempt["lost_s"]) for attempt in attempts),
    )
