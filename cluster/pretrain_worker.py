"""What each Ray Train worker runs: the loop around `encoders.training.Pretraining`.

Every rank walks the same steps and reads its own rows of each global batch. Rank 0 alone writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.catalog import Catalog
from cluster.pixels_job import PixelCache
from cluster.runlog import MetricsLog, load_newest_checkpoint, save_checkpoint
from cluster.workspace import Workspace
from encoders.card import encoder_body, encoder_files
from encoders.encoder import Encoder
from encoders.pretrain_config import PretrainConfig
from encoders.probe import knn_accuracy
from encoders.training import Pretraining
from index.artifact import Folder, library_versions, publish

__all__ = ["WorkerPlan", "publish_encoder", "train_worker"]

KEEP_CHECKPOINTS = 2
PROBE_PICTURES = 2048
PROBE_K = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlan:
    """All that a worker needs to know; small, since it travels to each."""

    location: str
    name: str
    corpus: str
    pixels_path: str
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
    except ValueError as error:
        # A batch that cannot be divided, a collapse, a loss that is not finite: all ranks see the
        # same, and no restart mends it.
        return {"resumed_at": None, "stopped": str(error)}


class _Worker:
    def __init__(self, plan: WorkerPlan, device: torch.device, rank: int) -> None:
        self.plan = plan
        self.rank = rank
        self.workspace = Workspace.at(plan.location)
        self.folder = self.workspace.folder("runs", plan.name)
        self.cache = PixelCache.open(Folder(self.workspace.root.fs, plan.pixels_path))
        self.labels = _labels(self.workspace, plan.corpus, self.cache.ids)
        self.has_labels = bool((self.labels >= 0).any())
        self.training = Pretraining(plan.training, num_pictures=len(self.cache), device=device)
        state = load_newest_checkpoint(self.folder, plan.config_id)
        self.resumed_at: int | None = None
        if state is not None:
            self.training.load_state_dict(state["training"])
            self.resumed_at = self.training.step_index
        self.seconds_before = float(state["seconds"]) if state is not None else 0.0
        self.started_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time over all resumes."""
        return self.seconds_before + time.monotonic() - self.started_s

    def run(self) -> dict[str, Any]:
        training = self.training
        log = MetricsLog(self.folder, training.step_index) if self.rank == 0 else None
        while training.step_index < training.num_steps:
            rows = training.next_rows()
            labels = self.labels[rows] if self.has_labels else None
            metrics = training.train_step(self.cache.read(rows), self.cache.ids[rows], labels)
            if log is not None:
                self._record(log, metrics)
        if log is not None:
            log.flush()
            self._publish()
        return {"resumed_at": self.resumed_at, "stopped": None}

    def _record(self, log: MetricsLog, metrics: dict[str, Any]) -> None:
        """Rank 0 after each step: metrics, probe and checkpoint when they are due."""
        training, plan = self.training, self.plan
        step, last = training.step_index, training.step_index == training.num_steps
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
        if step % plan.checkpoint_every == 0 or last:
            log.flush()
            state = {"training": training.state_dict(), "seconds": self.seconds}
            save_checkpoint(self.folder, step, state, plan.config_id, keep=KEEP_CHECKPOINTS)

    def _probe(self) -> float | None:
        """KNN accuracy of a fixed sample, a quarter queried against the rest; None unlabelled."""
        labelled = np.flatnonzero(self.labels >= 0)
        if len(labelled) < 8 or len(np.unique(self.labels[labelled])) < 2:
            return None
        sample = np.random.default_rng(0).permutation(labelled)[:PROBE_PICTURES]
        vectors = self.training.encoder().embed(self.cache.read(sample))
        cut = len(sample) // 4
        labels = self.labels[sample]
        return knn_accuracy(vectors[cut:], labels[cut:], vectors[:cut], labels[:cut], k=PROBE_K)

    def _publish(self) -> None:
        summary = {
            "run": self.plan.name,
            "steps": self.training.num_steps,
            "seconds": round(self.seconds, 1),
            "num_pictures": len(self.cache),
        }
        publish_encoder(
            self.workspace,
            self.plan.name,
            self.training.encoder(),
            training={"recipe": self.plan.training.settings(), **summary},
            parents={
                "corpus_id": Catalog.open(
                    self.workspace.folder("corpora", self.plan.corpus)
                ).corpus_id
            },
        )


def _labels(workspace: Workspace, corpus: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Label codes of the pictures in order of the labels' names, -1 where the corpus has none."""
    labels = Catalog.open(workspace.folder("corpora", corpus)).labels(ids)
    names = sorted({label for label in labels if label is not None})
    code_of = {name: code for code, name in enumerate(names)}
    codes = [-1 if label is None else code_of[label] for label in labels]
    return np.array(codes, dtype=np.int64)


def publish_encoder(
    workspace: Workspace,
    name: str,
    encoder: Encoder,
    *,
    training: dict[str, Any],
    parents: dict[str, str],
) -> dict[str, Any]:
    """Publish an encoder artefact; returns its card."""
    folder = workspace.folder("encoders", name).make()
    files = encoder_files(encoder)
    for file, data in files.items():
        folder.write_atomic(file, data)
    body = {
        **encoder_body(encoder),
        "training": training,
        "parents": parents,
        "rows": {},
        "versions": library_versions("torch", "torchvision", "ray"),
    }
    return publish(folder, "encoder", body, list(files), door="card.json")
