"""What each Ray Train worker runs: the loop around `encoders.training.Pretraining`.

Every rank walks the same steps and reads its own rows of each global batch. Rank 0 alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.online_probe import OnlineProbe, split_labels
from cluster.pixels_job import PixelCache
from cluster.run_labels import load_labels
from cluster.runlog import MetricsLog, load_newest_checkpoint, save_checkpoint
from cluster.starting import load_kept_start
from cluster.trackers import Trackers, TrackingPlan
from cluster.workspace import Workspace
from encoders.encoder import Encoder
from encoders.health import CollapseError, NonFiniteError
from encoders.losses import NO_LABEL
from encoders.pretrain_config import PretrainConfig
from encoders.training import Pretraining
from index.artifact import Folder, library_versions

__all__ = [
    "TrainingDataChangedError",
    "WorkerPlan",
    "publish_encoder",
    "train_worker",
]

KEEP_CHECKPOINTS = 2


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
    start_id: str | None
    config_id: str
    training: PretrainConfig
    checkpoint_every: int
    log_every: int
    probe_every: int
    tracking: TrackingPlan
    num_threads: int

    def parents(self) -> dict[str, str]:
        """Identities of what the encoder is made from."""
        made_from = {"corpus_id": self.corpus_id}
        if self.start_id is not None:
            made_from["start_id"] = self.start_id
        if self.labels is not None and self.training.learns_labels:
            made_from["labels_id"] = self.labels["labels_id"]
        return made_from


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
        start = None if plan.start_id is None else load_kept_start(self.folder, plan.start_id)
        self._take_labels(start)
        self.training = Pretraining(
            plan.training, num_pictures=len(self.cache), device=device, start=start
        )
        state = load_newest_checkpoint(self.folder, plan.config_id)
        self.resumed_at: int | None = None
        if state is not None:
            self.training.load_state_dict(state["training"])
            self.resumed_at = self.training.step_index
        self.seconds_before = float(state["seconds"]) if state is not None else 0.0
        self.started_s = time.monotonic()

    def _take_labels(self, start: Encoder | None) -> None:
        """What the method is shown, and what it is judged by."""
        self.labels: NDArray[np.int64] | None = None
        self.probe: OnlineProbe | None = None
        if self.plan.labels is None:
            return
        codes, held_out = load_labels(self.folder, self.plan.labels["file"])
        self.labels = np.where(held_out, NO_LABEL, codes)
        if (split := split_labels(codes, held_out)) is not None:
            seed = self.plan.training.seed
            self.probe = OnlineProbe(self.cache, split, seed=seed, start=start)

    @property
    def seconds(self) -> float:
        """Training time over all resumes."""
        return self.seconds_before + time.monotonic() - self.started_s

    def run(self) -> dict[str, Any]:
        training = self.training
        log = self._open_log() if self.rank == 0 else None
        done = False
        try:
            while training.step_index < training.num_steps:
                rows = training.next_rows()
                labels = None if self.labels is None else self.labels[rows]
                metrics = training.train_step(self.cache.read(rows), self.cache.ids[rows], labels)
                probed = self._probe()
                if log is not None:
                    self._record(log, {**metrics, **probed}, is_due=bool(probed))
            done = True
        finally:
            if log is not None:
                log.close(done=done)
        if self.rank == 0:
            publish_encoder(
                self.workspace,
                self.plan.name,
                training,
                seconds=self.seconds,
                parents=self.plan.parents(),
            )
        return {"resumed_at": self.resumed_at, "stopped": None}

    def _open_log(self) -> MetricsLog:
        plan = self.plan
        log = MetricsLog(self.folder, self.training.step_index)
        settings = plan.training.settings()
        trackers = plan.tracking.open(self.folder, plan.name, settings, log.written_until)
        log.follow(Trackers(trackers, log.lines, self.seconds))
        return log

    def _record(self, log: MetricsLog, figures: dict[str, float], *, is_due: bool) -> None:
        """Rank 0 after each step: a line and a checkpoint when they are due."""
        training, plan = self.training, self.plan
        step, last = training.step_index, training.step_index == training.num_steps
        if step % plan.log_every == 0 or is_due or last:
            line = {
                "step": step,
                "epoch": round(step / training.steps_per_epoch, 3),
                "time_s": round(self.seconds, 3),
                **{name: float(value) for name, value in figures.items()},
            }
            log.append(line)
        if step % plan.checkpoint_every == 0 or last:
            log.flush()
            state = {"training": training.state_dict(), "seconds": self.seconds}
            save_checkpoint(self.folder, step, state, plan.config_id, keep=KEEP_CHECKPOINTS)

    def _probe(self) -> dict[str, float]:
        """Figures by labels, when they are due; every rank comes along."""
        training = self.training
        step, every = training.step_index, self.plan.probe_every * training.steps_per_epoch
        if self.probe is None or (step % every and step != training.num_steps):
            return {}
        return self.probe.measure(training.encoder())


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
    workspace: Workspace,
    name: str,
    training: Pretraining,
    *,
    seconds: float,
    parents: Mapping[str, str],
) -> dict[str, Any]:
    """Publish the encoder that training has made, of these identities; returns its card."""
    facts = {
        "training": {
            "recipe": training.config.settings(),
            "run": name,
            "steps": training.num_steps,
            "seconds": round(seconds, 1),
            "num_pictures": training.num_pictures,
        },
        "parents": dict(parents),
        "versions": library_versions("torch", "torchvision", "ray"),
    }
    return workspace.publish_encoder(name, training.encoder(), facts)
