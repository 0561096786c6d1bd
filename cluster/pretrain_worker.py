"""What each Ray Train worker runs: the loop around `encoders.training.Pretraining`.

Every rank walks the same steps and reads its own rows of each global batch. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cluster.attempts import begin_attempt
from cluster.checkpoints import Checkpoint, host_copy, load_checkpoint, newest_checkpoint
from cluster.pixels_job import PixelCache
from cluster.recorder import Recorder
from cluster.runlog import load_labels
from cluster.workspace import Workspace
from encoders.collective import first_ranks, gather_rows, world_size
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
    stop_at_s: float | None = None
    """Training time, over all resumes, at which the run stops with the encoder so far."""


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end from the newest checkpoint.

    Workers with which the batch would not divide return at once, and nothing else.

    Returns:
        ``resumed_at`` (step or None); ``stopped``, why the run stopped itself and is not to go on
        as it is, or None; ``cut_short``, why it ended before its last step, or None; ``steps``.
    """
    import ray.train
    from ray.train.torch import get_device

    plan: WorkerPlan = loop_config["plan"]
    torch.set_num_threads(plan.num_threads)
    rank = ray.train.get_context().get_world_rank()
    cache = open_pixels(plan)
    num_ranks = plan.training.most_ranks(len(cache), world_size())
    num_waiting = world_size() - num_ranks
    try:
        with first_ranks(num_ranks) as is_one:
            if not is_one:
                return {}
            return _Worker(plan, cache, get_device(), rank).run(num_waiting)
    except (CollapseError, NonFiniteError) as error:
        # All ranks see the same figures, and no restart mends them.
        return {"resumed_at": None, "stopped": str(error)}


class _Worker:
    def __init__(
        self, plan: WorkerPlan, cache: PixelCache, device: torch.device, rank: int
    ) -> None:
        self.plan = plan
        self.rank = rank
        self.workspace = Workspace.at(plan.location)
        self.folder = self.workspace.folder("runs", plan.name)
        self.cache = cache
        self.labels = None if plan.labels is None else load_labels(self.folder, plan.labels)
        self.training = Pretraining(plan.training, num_pictures=len(self.cache), device=device)
        state = self._agreed_checkpoint(device)
        self.resumed_at: int | None = None
        if state is not None:
            self.training.load_state_dict(state["training"])
            self.resumed_at = self.training.step_index
        self.seconds_before = float(state["seconds"]) if state is not None else 0.0
        self.started_s = time.monotonic()

    def _agreed_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The state that rank 0 finds newest: what a shared disk shows may differ by machine."""
        newest = newest_checkpoint(self.folder, self.plan.config_id) if self.rank == 0 else None
        step = -1 if newest is None else int(newest["step"])
        step = int(gather_rows(torch.tensor([step], device=device))[0])
        return None if step < 0 else load_checkpoint(self.folder, self.plan.config_id, step)

    @property
    def seconds(self) -> float:
        """Training time over all resumes."""
        return self.seconds_before + time.monotonic() - self.started_s

    def run(self, num_waiting: int = 0) -> dict[str, Any]:
        """Train to the end, or until somebody asks to stop."""
        training = self.training
        if self.rank == 0:
            begin_attempt(
                self.folder,
                resumed_at=training.step_index,
                seconds=self.seconds_before,
                num_workers=world_size(),
                num_waiting=num_waiting,
            )
            every, stop_at_s = self.plan.checkpoint_every, self.plan.stop_at_s
            recorder = Recorder(self.folder, training.step_index, every=every, stop_at_s=stop_at_s)
            with contextlib.closing(recorder):
                self._walk(recorder)
            if recorder.writer.gave_up and training.step_index < training.num_steps:
                return {"resumed_at": self.resumed_at, "stopped": recorder.writer.gave_up}
            cut_short = recorder.stop_reason(self.seconds) if training.stop_agreed else None
            publish_encoder(
                self.workspace,
                self.plan.name,
                training,
                seconds=self.seconds,
                corpus_id=self.plan.corpus_id,
                cut_short=cut_short,
            )
            return {
                "resumed_at": self.resumed_at,
                "stopped": None,
                "cut_short": cut_short,
                "steps": training.step_index,
            }
        self._walk(None)
        return {}

    def _walk(self, recorder: Recorder | None) -> None:
        training = self.training
        while training.step_index < training.num_steps and not training.stop_agreed:
            rows = training.next_rows()
            labels = None if self.labels is None else self.labels[rows]
            metrics = training.train_step(
                self.cache.read(rows),
                self.cache.ids[rows],
                labels,
                stop=recorder is not None and recorder.stop_reason(self.seconds) is not None,
            )
            if recorder is not None:
                self._record(recorder, metrics)

    def _record(self, recorder: Recorder, metrics: dict[str, Any]) -> None:
        """Rank 0 after each step: metrics, probe and checkpoint when they are due."""
        training, plan, log = self.training, self.plan, recorder.log
        step = training.step_index
        last = step == training.num_steps or training.stop_agreed
        recorder.pulse.at(step, self.seconds)
        probing = step % (plan.probe_every * training.steps_per_epoch) == 0 or last
        if step % plan.log_every == 0 or probing:
            line = {
                "step": step,
                "epoch": round(step / training.steps_per_epoch, 3),
                "time_s": round(self.seconds, 3),
                **{name: float(value) for name, value in metrics.items()},
            }
            knn = self._probe() if probing else None
            log.append(line if knn is None else {**line, "knn": knn})
        if recorder.writer.is_due(step) or last:
            log.flush()
            recorder.writer.write(self._checkpoint())
        recorder.writer.hold(step)

    def _checkpoint(self) -> Checkpoint:
        """The state after this step, copied, so that the next step may change it."""
        training = self.training.state_dict()
        return Checkpoint(
            step=self.training.step_index,
            config_id=self.plan.config_id,
            state=host_copy({"training": training, "seconds": self.seconds}),
            seconds=self.seconds,
            healthy=training["health"]["failed_checks"] == 0,
        )

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


def publish_encoder(
    workspace: Workspace,
    name: str,
    training: Pretraining,
    *,
    seconds: float,
    corpus_id: str,
    cut_short: str | None = None,
) -> dict[str, Any]:
    """Publish the encoder as trained so far; returns its card.

    Args:
        workspace: where to.
        name: of the run, and so of the encoder.
        training: has made it.
        seconds: of training.
        corpus_id: what it has learnt from.
        cut_short: why training ended before its last step.
    """
    facts = {
        "training": {
            "recipe": training.config.settings(),
            "run": name,
            "steps": training.step_index,
            "num_steps": training.num_steps,
            "cut_short": cut_short,
            "seconds": round(seconds, 1),
            "num_pictures": training.num_pictures,
        },
        "parents": {"corpus_id": corpus_id},
        "versions": library_versions("torch", "torchvision", "ray"),
    }
    return workspace.publish_encoder(name, training.encoder(), facts)
