"""What every job is given: the workspace, where to compute, and a way to show progress."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from cluster.engine import connect, is_connected, root_cause
from cluster.where import Profile, Where
from cluster.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Context", "ProgressLine"]

logger = logging.getLogger(__name__)

QUIET_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class Context:
    """Where a job works and speaks.

    Args:
        workspace: where artefacts lie.
        where: profile and address of the cluster.
        console: receives progress and prose; never the result, which goes to stdout.
        lease: keeps a Ray that a job started for the jobs after it; closing it stops Ray.
    """

    workspace: Workspace
    where: Where = field(default_factory=Where)
    console: Console = field(default_factory=lambda: Console(stderr=True))
    lease: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def ray(self) -> Iterator[Profile]:
        """Ray for the time of one job; within a lease, started once and left running.

        An exception of a worker comes out as the worker raised it.
        """
        if not is_connected():
            self.say(
                f"Ray: joining {self.where.address}" if self.where.address else "Ray: starting"
            )
        with contextlib.ExitStack() as own:
            profile = (self.lease or own).enter_context(connect(self.where))
            try:
                yield profile
            except Exception as error:
                cause = root_cause(error)
                if cause is error:
                    raise
                raise cause from error

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None, unit: str) -> Iterator[ProgressLine]:
        """One line with rate and time left; on a pipe, a plain line every ten seconds.

        Args:
            title: what is being done.
            total: how many units there are; None when nobody knows yet.
            unit: what is counted, in the plural.
        """
        if self.console.is_terminal:
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            with bar:
                line = ProgressLine(title, total, unit)
                task = bar.add_task(title, total=total, note="")
                line.show = lambda: _show_on(bar, task, line)
                yield line
            return
        line = ProgressLine(title, total, unit)
        line.show = lambda: line.speak_at_intervals(self.console)
        yield line

    def say(self, text: str) -> None:
        """One sentence to the person at the terminal."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class ProgressLine:
    """Counts what is done and shows it.

    Args:
        title: what is being done.
        total: how many units there are; the line ends there. None when nobody knows yet.
        unit: what is counted, in the plural.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self.show: Callable[[], None] = lambda: None
        self._first = 0
        self._started_s = time.monotonic()
        self._spoken_s = self._started_s

    def start_at(self, done: int) -> None:
        """Say what an earlier run has done already, so that the rate counts only this one."""
        self.done = self._first = done
        self.show()

    def advance(self, count: int, note: str | None = None) -> None:
        """Count more units done; ``note`` is shown beside the rate."""
        self.set(self.done + count, note)

    def set(self, done: int, note: str | None = None) -> None:
        """State the number of units done so far."""
        self.done = done
        self.note = self.note if note is None else note
        self.show()

    @property
    def rate(self) -> float:
        """Units a second in this run."""
        return (self.done - self._first) / max(time.monotonic() - self._started_s, 1e-6)

    @property
    def text(self) -> str:
        """Rate and note in words."""
        parts = [
            f"{self.rate:,.0f} {self.unit}/s"
            if self.rate >= 10
            else f"{self.rate:.1f} {self.unit}/s"
        ]
        return "  ".join([*parts, self.note] if self.note else parts)

    def speak_at_intervals(self, console: Console) -> None:
        """Print the line when the last one is old enough, and at the end."""
        now = time.monotonic()
        finished = self.done == self.total
        if not finished and now - self._spoken_s < QUIET_INTERVAL_S:
            return
        self._spoken_s = now
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        left = ""
        if self.total is not None and self.rate > 0 and not finished:
            left = f"  {(self.total - self.done) / self.rate:.0f} s left"
        console.print(f"{self.title}: {count}  {self.text}{left}", markup=False, highlight=False)


def _show_on(bar: Progress, task: TaskID, line: ProgressLine) -> None:
    bar.update(task, completed=line.done, note=line.text)
