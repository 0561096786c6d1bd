"""What each Ray Train worker runs: the loop around `encoders.training.Pretraining`.

Every rank walks the same steps and reads its own rows of each global batch. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.attempts import begin_attempt
from cluster.checkpoints import Checkpoint, host_copy, load_checkpoint, newest_checkpoint
from cluster.online_probe import OnlineProbe, split_labels
from cluster.pixels_job import PixelCache
from cluster.recorder import Recorder
from cluster.run_labels import load_labels
from cluster.run_watch import Pace, Warnings, examined_pictures, is_checked
from cluster.starting import load_kept_start
from cluster.trackers import Trackers
from cluster.worker_plan import WorkerPlan, open_pixels
from cluster.workspace import Workspace
from encoders.collective import first_ranks, gather_rows, world_size
from encoders.encoder import Encoder
from encoders.health import CollapseError, NonFiniteError
from encoders.losses import NO_LABEL
from encoders.training import Pretraining
from index.artifact import library_versions

__all__ = ["publish_encoder", "train_worker"]


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
    num_ranks = plan.training.most_ranks(plan.num_trained, world_size())
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
        start = None if plan.start_id is None else load_kept_start(self.folder, plan.start_id)
        self._take_labels(start)
        self.rows = plan.training.trained_rows(len(cache), self.labels)
        assert len(self.rows) == plan.num_trained
        self.training = Pretraining(
            plan.training,
            num_pictures=plan.num_trained,
            device=device,
            start=start,
            examined=examined_pictures(cache, self.labels, plan.training, device),
        )
        state = self._agreed_checkpoint(device)
        self.resumed_at: int | None = None
        if state is not None:
            self.training.load_state_dict(state["training"])
            self.resumed_at = self.training.step_index
        self.seconds_before = float(state["seconds"]) if state is not None else 0.0
        self.started_s = time.monotonic()
        self.pace = Pace(plan.training.batch_size)
        self.warnings = Warnings(self.folder, self.training.findings)

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

    @property
    def is_over(self) -> bool:
        """Whether the step just made was the last, of the run or before a stop."""
        return self.training.step_index == self.training.num_steps or self.training.stop_agreed

    def run(self, num_waiting: int = 0) -> dict[str, Any]:
        """Train to the end, or until somebody asks to stop."""
        if self.rank != 0:
            self._walk(None)
            return {}
        training = self.training
        begin_attempt(
            self.folder,
            resumed_at=training.step_index,
            seconds=self.seconds_before,
            num_workers=world_size(),
            num_waiting=num_waiting,
        )
        with contextlib.closing(self._recorder()) as recorder:
            try:
                self._walk(recorder)
            finally:
                self.warnings.keep(training.findings)
            recorder.done = training.step_index == training.num_steps
        if recorder.writer.gave_up and training.step_index < training.num_steps:
            return {"resumed_at": self.resumed_at, "stopped": recorder.writer.gave_up}
        cut_short = recorder.stop_reason(self.seconds) if training.stop_agreed else None
        publish_encoder(
            self.workspace,
            self.plan.name,
            training,
            seconds=self.seconds,
            parents=self.plan.parents(),
            cut_short=cut_short,
        )
        return {
            "resumed_at": self.resumed_at,
            "stopped": None,
            "cut_short": cut_short,
            "steps": training.step_index,
        }

    def _recorder(self) -> Recorder:
        plan = self.plan
        every, stop_at_s = plan.checkpoint_every, plan.stop_at_s
        recorder = Recorder(self.folder, self.training.step_index, every=every, stop_at_s=stop_at_s)
        log, settings = recorder.log, plan.training.settings()
        trackers = plan.tracking.open(self.folder, plan.name, settings, log.written_until)
        log.follow(Trackers(trackers, log.lines, self.seconds))
        return recorder

    def _walk(self, recorder: Recorder | None) -> None:
        training = self.training
        while training.step_index < training.num_steps and not training.stop_agreed:
            rows = self.rows[training.next_rows()]
            labels = None if self.labels is None else self.labels[rows]
            with self.pace.waiting():
                pixels = self.cache.read(rows)
            metrics = training.train_step(
                pixels,
                self.cache.ids[rows],
                labels,
                stop=recorder is not None and recorder.stop_reason(self.seconds) is not None,
            )
            probed = self._probe()
            if recorder is not None:
                self._record(recorder, {**metrics, **probed}, is_due=bool(probed))

    def _record(self, recorder: Recorder, figures: Mapping[str, float], *, is_due: bool) -> None:
        """Rank 0 after each step: a line and a checkpoint when they are due."""
        training, log = self.training, recorder.log
        step = training.step_index
        recorder.pulse.at(step, self.seconds)
        if step % self.plan.log_every == 0 or is_due or is_checked(figures) or self.is_over:
            line = {
                "step": step,
                "epoch": round(step / training.steps_per_epoch, 3),
                "time_s": round(self.seconds, 3),
                **{name: float(value) for name, value in figures.items()},
                **self.pace.figures(),
                **self.warnings.keep(training.findings),
            }
            log.append(line)
        if recorder.writer.is_due(step) or self.is_over:
            log.flush()
            recorder.writer.write(self._checkpoint())
        recorder.writer.hold(step)

    def _checkpoint(self) -> Checkpoint:
        """The state after this step, copied, so that the next step may change it."""
        state = {"training": self.training.state_dict(), "seconds": self.seconds}
        return Checkpoint(
            step=self.training.step_index,
            config_id=self.plan.config_id,
            state=host_copy(state),
            seconds=self.seconds,
            healthy=self.training.is_healthy,
        )

    def _probe(self) -> dict[str, float]:
        """Figures by labels, when they are due; every rank comes along."""
        training = self.training
        every = self.plan.probe_every * training.steps_per_epoch
        if self.probe is None or (training.step_index % every and not self.is_over):
            return {}
        return self.probe.measure(training.encoder())


def publish_encoder(
    workspace: Workspace,
    name: str,
    training: Pretraining,
    *,
    seconds: float,
    parents: Mapping[str, str],
    cut_short: str | None = None,
) -> dict[str, Any]:
    """Publish the encoder as trained so far; returns its card.

    Args:
        workspace: where to.
        name: of the run, and so of the encoder.
        training: has made it.
        seconds: of training.
        parents: identities of what it is made from.
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
        "parents": dict(parents),
        "versions": library_versions("torch", "torchvision", "ray"),
    }
    return workspace.publish_encoder(name, training.encoder(), facts)
