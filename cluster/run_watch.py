"""What a worker adds to a run's health: pictures to look at, its pace, and warnings that are kept.

The figures themselves, and what they mean, are of `encoders.doctor`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.pixels_job import PixelCache
from cluster.runlog import write_run
from encoders.doctor import Finding
from encoders.held_out import ExaminedPictures
from encoders.pretrain_config import PretrainConfig
from index.folder import Folder

__all__ = ["Pace", "Warnings", "examined_pictures", "is_checked"]

logger = logging.getLogger(__name__)


def examined_pictures(
    cache: PixelCache,
    labels: NDArray[np.int64] | None,
    config: PretrainConfig,
    device: torch.device,
) -> ExaminedPictures | None:
    """The pictures that a run looks at for its health, read from the cache; None for none."""
    rows = config.split(len(cache)).examined
    if not len(rows):
        return None
    return ExaminedPictures(
        cache.read(rows),
        cache.ids[rows],
        None if labels is None else labels[rows],
        config=config,
        device=device,
    )


def is_checked(metrics: Mapping[str, Any]) -> bool:
    """Whether these metrics of a step are those of a health check, which are always kept."""
    return "discrimination" in metrics


class Pace:
    """How fast a run goes, and how much of its time is spent waiting for pixels.

    Args:
        batch_size: pictures of a step over all workers.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    def _begin(self) -> None:
        self._since_s = time.monotonic()
        self._waited_s = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the reading of one step's pixels."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - started_s
            self._steps += 1

    def figures(self) -> dict[str, float]:
        """Since the last call: ``data_wait``, a share of the time, and ``pictures_per_s``."""
        passed_s = max(time.monotonic() - self._since_s, 1e-9)
        figures = {
            "data_wait": round(self._waited_s / passed_s, 4),
            "pictures_per_s": round(self._steps * self._batch_size / passed_s, 1),
        }
        self._begin()
        return figures


class Warnings:
    """Keeps a run's warnings in its ``run.json``, and says each once.

    Args:
        folder: of the run.
        known: findings that the run resumed with.
    """

    def __init__(self, folder: Folder, known: Sequence[Finding] = ()) -> None:
        self._folder = folder
        self._num_known = len(known)

    def keep(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Take in all findings so far; what is new, as an entry for the line of metrics."""
        fresh = [finding.sentence for finding in findings[self._num_known :]]
        if not fresh:
            return {}
        self._num_known = len(findings)
        for sentence in fresh:
            logger.warning("%s: %s", self._folder, sentence)
        with contextlib.suppress(OSError):  # The disk may be full; the log has them.
            write_run(self._folder, warnings=[asdict(finding) for finding in findings])
        return {"warnings": fresh}
