"""What each Ray Train worker runs: the loop around `encoders.training.Pretraining`.

Every rank walks the same steps and reads its own rows of each global batch. Rank 0 alone writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cluster.pixels_job import PixelCache
from cluster.run_watch import Pace, Warnings, examined_pictures, is_checked
from cluster.runlog import MetricsLog, load_labels, load_newest_checkpoint, save_checkpoint
from cluster.workspace import Workspace
from encoders.health import CollapseError, NonFiniteError
from encoders.pretrain_config import PretrainConfig
from encoders.probe import knn_accuracy
from encoders.training import Pretraining
from index.artifact import FileRecord, Folder, library_versions

__all__ = [
    "TrainingDataChangedError",
    "WorkerPlan",
    "publish_encoder",
    "train_worker",
]

KEEP_CHECKPOINTS = 2
PROBE_PICTURES = 2048
PROBE_K = 5


class TrainingDataChangedError(ValueError):
    """What lies in the workspace is not what the run began to learn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlan:
    """All that a worker needs to know; small, since it travels to each.

    It pins what the run learns from: a worker, also one that Ray starts anew after days, takes the
    pixels of this identity and the labels of this file, or refuses.
    """

    location: str
    name: str
    corpus_id: str
    pixels_path: str
    pixels_id: str
    labels: FileRecord | None
    config_id: str
    training: PretrainConfig
    checkpoint_every: int
    log_every: int
    probe_every: int
    num_threads: int


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end from the newest checkpoint.

    Returns:
        ``resumed_at`` (step or None) and ``stopped`` (why the run stopped itself, or None).
    """
    import ray.train
    from ray.train.torch import get_device

    plan: WorkerPlan = loop_config["plan"]
    torch.set_num_threads(plan.num_threads)
    try:
        return _Worker(plan, get_device(), rank=ray.train.get_context().get_world_rank()).run()
    except (CollapseError, NonFiniteError) as error:
        # All ranks see the same figures, and no restart mends them.
        return {"resumed_at": None, "stopped": str(error)}


class _Worker:
    def __init__(self, plan: WorkerPlan, device: torch.device, rank: int) -> None:
        self.plan = plan
        self.rank = rank
        self.workspace = Workspace.at(plan.location)
        self.folder = self.workspace.folder("runs", plan.name)
        self.cache = _open_pixels(Folder(self.workspace.root.fs, plan.pixels_path), plan)
        self.labels = None if plan.labels is None else load_labels(self.folder, plan.labels)
        self.split = plan.training.split(len(self.cache))
        self.training = Pretraining(
            plan.training,
            num_pictures=len(self.split.trained),
            device=device,
            examined=examined_pictures(self.split, self.cache, self.labels, plan.training, device),
        )
        state = load_newest_checkpoint(self.folder, plan.config_id)
        self.resumed_at: int | None = None
        if state is not None:
            self.training.load_state_dict(state["training"])
            self.resumed_at = self.training.step_index
        self.seconds_before = float(state["seconds"]) if state is not None else 0.0
        self.started_s = time.monotonic()
        self.pace = Pace(plan.training.batch_size)
        self.warnings = Warnings(self.folder, self.training.findings)

    @property
    def seconds(self) -> float:
        """Training time over all resumes."""
        return self.seconds_before + time.monotonic() - self.started_s

    def run(self) -> dict[str, Any]:
        training = self.training
        log = MetricsLog(self.folder, training.step_index) if self.rank == 0 else None
        try:
            while training.step_index < training.num_steps:
                rows = self.split.trained[training.next_rows()]
                labels = None if self.labels is None else self.labels[rows]
                with self.pace.waiting():
                    pixels = self.cache.read(rows)
                metrics = training.train_step(pixels, self.cache.ids[rows], labels)
                if log is not None:
                    self._record(log, metrics)
        finally:
            if log is not None:
                self.warnings.keep(training.findings)
                log.flush()
        if self.rank == 0:
            publish_encoder(
                self.workspace,
                self.plan.name,
                training,
                seconds=self.seconds,
                corpus_id=self.plan.corpus_id,
            )
        return {"resumed_at": self.resumed_at, "stopped": None}

    def _record(self, log: MetricsLog, metrics: dict[str, Any]) -> None:
        """Rank 0 after each step: metrics, probe and checkpoint when they are due."""
        training, plan = self.training, self.plan
        step, last = training.step_index, training.step_index == training.num_steps
        probing = step % (plan.probe_every * training.steps_per_epoch) == 0 or last
        if step % plan.log_every == 0 or probing or is_checked(metrics):
            line = {
                "step": step,
                "epoch": round(step / training.steps_per_epoch, 3),
                "time_s": round(self.seconds, 3),
                **{name: float(value) for name, value in metrics.items()},
                **self.pace.figures(),
                **self.warnings.keep(training.findings),
            }
            knn = self._probe() if probing else None
            log.append(line if knn is None else {**line, "knn": knn})
        if step % plan.checkpoint_every == 0 or last:
            log.flush()
            state = {"training": training.state_dict(), "seconds": self.seconds}
            save_checkpoint(self.folder, step, state, plan.config_id, keep=KEEP_CHECKPOINTS)

    def _probe(self) -> float | None:
        """KNN accuracy of a fixed sample, a quarter queried against the rest; None unlabelled."""
        if self.labels is None:
            return None
        labelled = np.flatnonzero(self.labels >= 0)
        if len(labelled) < 8 or len(np.unique(self.labels[labelled])) < 2:
            return None
        sample = np.random.default_rng(0).permutation(labelled)[:PROBE_PICTURES]
        vectors = self.training.encoder().embed(self.cache.read(sample))
        cut = len(sample) // 4
        labels = self.labels[sample]
        return knn_accuracy(vectors[cut:], labels[cut:], vectors[:cut], labels[:cut], k=PROBE_K)


def _open_pixels(folder: Folder, plan: WorkerPlan) -> PixelCache:
    cache = PixelCache.open(folder)
    if cache.id != plan.pixels_id:
        raise TrainingDataChangedError(
            f"pixels {cache.id[:12]} in {folder}: run {plan.name!r} learns from "
            f"{plan.pixels_id[:12]}, and from one set of pictures to its end. Somebody scanned "
            "the corpus again and built its pixels anew: start a run under another --name."
        )
    return cache


def publish_encoder(
    workspace: Workspace, name: str, training: Pretraining, *, seconds: float, corpus_id: str
) -> dict[str, Any]:
    """Publish the encoder that training has made; returns its card."""
    facts = {
        "training": {
            "recipe": training.config.settings(),
            "run": name,
            "steps": training.num_steps,
            "seconds": round(seconds, 1),
            "num_pictures": training.num_pictures,
        },
        "parents": {"corpus_id": corpus_id},
        "versions": library_versions("torch", "torchvision", "ray"),
    }
    return workspace.publish_encoder(name, training.encoder(), facts)
