"""Writes checkpoints beside the training loop: the loop copies its state and goes on.

One thread serialises, fsyncs and, on an object store, uploads; at most one checkpoint is under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.checkpoints import Checkpoint

__all__ = ["CheckpointWriter"]

logger = logging.getLogger(__name__)

MOST_FAILURES = 3


class CheckpointWriter:
    """Keeps a run protected: a kill costs at most ``every`` steps.

    A checkpoint is due at every half of that. `hold` makes the loop wait for the write under way
    before it gets further than ``every`` steps beyond the newest checkpoint that is whole, so a
    slow disk costs time and never more work. A write that fails is said aloud and tried again
    when the next is due; meanwhile older checkpoints stay. After three failures in a row
    `gave_up` says why the run must not go on.

    Args:
        save: writes one checkpoint; called in this writer's thread.
        every: steps that a kill may cost at most.
        step: of the checkpoint that the run went on from, or 0.
        tell: called with a sentence when the run loses its protection, with None when it is back.
    """

    def __init__(
        self,
        save: Callable[[Checkpoint], None],
        *,
        every: int,
        step: int,
        tell: Callable[[str | None], None],
    ) -> None:
        self.gave_up: str | None = None
        self._save = save
        self._every = every
        self._whole_step = step
        self._tell = tell
        self._num_failures = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: tuple[int, Future[None]] | None = None

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint has to be written after this step."""
        return step % max(1, self._every // 2) == 0

    def write(self, checkpoint: Checkpoint) -> None:
        """Begin to write one; waits for the one before it."""
        self._settle()
        self._under_way = checkpoint.step, self._thread.submit(self._save, checkpoint)

    def hold(self, step: int) -> None:
        """Call after each step: waits while one more could cost too much work."""
        unprotected = step - self._whole_step >= self._every and not self._num_failures
        if self._under_way and (unprotected or self._under_way[1].done()):
            self._settle()

    def close(self) -> None:
        """Wait for the write under way."""
        self._settle()
        self._thread.shutdown()

    def _settle(self) -> None:
        if self._under_way is None:
            return
        step, future = self._under_way
        self._under_way = None
        try:
            future.result()
        except OSError as error:
            self._failed(step, error)
            return
        self._whole_step = step
        if self._num_failures:
            logger.warning("the checkpoint of step %d is whole: the run is protected again", step)
            self._tell(None)
        self._num_failures = 0

    def _failed(self, step: int, error: OSError) -> None:
        self._num_failures += 1
        sentence = (
            f"The checkpoint of step {step} could not be written ({error}). A kill now costs all "
            f"work since step {self._whole_step}. It is tried again at the next interval: "
            "make room on the workspace's disk, or bring its store back."
        )
        logger.error("%s", sentence)
        self._tell(sentence)
        if self._num_failures == MOST_FAILURES:
            self.gave_up = (
                f"{self._num_failures} checkpoints in a row could not be written, the last of step "
                f"{step} ({error}); a run has to be able to save its work. It stopped rather than "
                "work on unprotected. Make room on the workspace's disk, or bring its store back, "
                f"then run the same command again: it goes on from step {self._whole_step}."
            )
