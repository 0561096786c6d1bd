"""What every worker of a run is told, and takes or refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.pixels_job import PixelCache
from cluster.trackers import TrackingPlan
from cluster.workspace import Workspace
from encoders.pretrain_config import PretrainConfig
from index.folder import Folder

__all__ = ["TrainingDataChangedError", "WorkerPlan", "open_pixels"]


class TrainingDataChangedError(ValueError):
    """What lies in the workspace is not what the run began to learn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlan:
    """All that a worker needs to know; small, since it travels to each.

    It pins what the run learns from: a worker, also one that Ray starts anew after days, takes the
    pixels of this identity, the labels of this file and the weights of this encoder, or refuses.
    """

    location: str
    name: str
    corpus_id: str
    pixels_path: str
    pixels_id: str
    labels: dict[str, Any] | None
    num_trained: int
    """Pictures that it learns from; the others are examined or, for some methods, unlabelled."""
    start_id: str | None
    config_id: str
    training: PretrainConfig
    checkpoint_every: int
    log_every: int
    probe_every: int
    tracking: TrackingPlan
    num_threads: int
    stop_at_s: float | None = None
    """Training time, over all resumes, at which the run stops with the encoder so far."""

    def parents(self) -> dict[str, str]:
        """Identities of what the encoder is made from."""
        made_from = {"corpus_id": self.corpus_id}
        if self.start_id is not None:
            made_from["start_id"] = self.start_id
        if self.labels is not None and self.training.learns_labels:
            made_from["labels_id"] = self.labels["labels_id"]
        return made_from


def open_pixels(plan: WorkerPlan) -> PixelCache:
    """The pixels that the run learns from.

    Raises:
        TrainingDataChangedError: there are others in their place.
    """
    folder = Folder(Workspace.at(plan.location).root.fs, plan.pixels_path)
    cache = PixelCache.open(folder)
    if cache.id != plan.pixels_id:
        raise TrainingDataChangedError(
            f"pixels {cache.id[:12]} in {folder}: run {plan.name!r} learns from "
            f"{plan.pixels_id[:12]}, and from one set of pictures to its end. Somebody scanned "
            "the corpus again and built its pixels anew: start a run under another --name."
        )
    return cache
