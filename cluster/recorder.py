"""What rank 0 of a run writes while it trains: numbers, pulse, checkpoints; and what it hears."""

from __future__ import annotations

import contextlib
import functools

from cluster.checkpoint_writer import CheckpointWriter
from cluster.checkpoints import save_checkpoint
from cluster.pulse import Pulse
from cluster.runlog import MetricsLog, write_run
from index.folder import Folder

__all__ = ["TIME_UP", "Recorder"]

TIME_UP = "its time was up"


class Recorder:
    """The log, the pulse and the checkpoints of one attempt; to be closed.

    Args:
        folder: the run's.
        step: at which the attempt begins.
        every: steps that a kill may cost at most.
        stop_at_s: training time at which the run shall stop, or None.

    Attributes:
        done: to be set once the run has come to its end, for those who follow its log.
    """

    def __init__(self, folder: Folder, step: int, *, every: int, stop_at_s: float | None) -> None:
        self.done = False
        self.log = MetricsLog(folder, step)
        self.pulse = Pulse(folder)
        self.writer = CheckpointWriter(
            functools.partial(save_checkpoint, folder), every=every, step=step, tell=self._tell
        )
        self._folder = folder
        self._stop_at_s = stop_at_s

    def stop_reason(self, seconds: float) -> str | None:
        """Why the run shall end with the step under way, or None; after so much training time."""
        is_up = self._stop_at_s is not None and seconds >= self._stop_at_s
        return self.writer.gave_up or self.pulse.stop_reason or (TIME_UP if is_up else None)

    def close(self) -> None:
        """Wait for what is being written, and write what is left."""
        self.writer.close()
        self.pulse.close()
        self.log.close(done=self.done)

    def _tell(self, alert: str | None) -> None:
        """Have ``run.json``, and so the Runs page, say that work is not protected."""
        with contextlib.suppress(OSError):  # The disk may be full; the log has it.
            write_run(self._folder, alert=alert)
