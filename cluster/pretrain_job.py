"""pretrain: train an encoder on a corpus' pictures, without labels unless the method wants them.

1. Build the pixel cache. 2. Ray Train starts the workers; each resumes from the newest whole
checkpoint and walks the steps of one global order. 3. Rank 0 writes metrics and checkpoints. 4.
Rank 0 publishes the encoder, also when somebody or a time limit stops the run on its way.

Ray restarts workers that die; the checkpoints are our own (docs/adr/0005). A re-run of the same
command goes on where the last run ended, with any number of workers.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import Any

from cluster.auto_recipe import facts_of
from cluster.catalog import Catalog, open_corpus
from cluster.checkpoints import newest_checkpoint
from cluster.context import Context
from cluster.pixels_job import build_pixels
from cluster.pretrain_settings import PretrainJobConfig
from cluster.ray_train import fit
from cluster.run_begin import (
    begin_run,
    check_labelled,
    check_workers,
    plan_run,
    read_own_run,
    refuse_other_pictures,
    refuse_other_scan,
    refuse_taken_name,
    time_limit,
)
from cluster.run_end import (
    PretrainingCancelled,
    PretrainingStoppedError,
    end_in_error,
    end_run,
    publish_newest,
)
from cluster.run_labels import check_enough
from cluster.runlog import read_metrics, read_run
from cluster.starting import settle_start
from cluster.trackers import plan_tracking
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.lock import sole_writer

__all__ = [
    "PretrainJobConfig",
    "PretrainingCancelled",
    "PretrainingStoppedError",
    "pretrain",
]

logger = logging.getLogger(__name__)

REPORTED = ("knn", "knn_random", "probe", "probe_random", "num_test")
"""Figures by labels that the report repeats."""


def pretrain(config: PretrainJobConfig, context: Context) -> dict[str, Any]:
    """Train, or finish training, and publish the encoder.

    A run that is done is not started again: whatever was scanned since, its report comes back, and
    an encoder that is damaged or gone is published again.

    Raises:
        MissingArtifactError: there is no such corpus.
        CorruptArtifactError: ``run.json`` is damaged.
        ValueError: a run of this name learns from something else or with other settings, the
            workers cannot share a batch, or another process trains this run.
        PretrainingStoppedError: the run stopped itself.
        PretrainingCancelled: somebody stopped it; the encoder so far is published.
    """
    workspace = context.workspace
    catalog = open_corpus(workspace, config.corpus)
    folder = workspace.folder("runs", config.name)
    resumed_at = None
    if not _is_done(read_own_run(config, workspace), config, workspace):
        with sole_writer(folder, "training this run"):
            run = read_own_run(config, workspace)
            resumed_at = _publish_only(run, config, workspace)
            if resumed_at is None:
                resumed_at = _train(run, config, catalog, context)
    return _report(config, catalog, context, resumed_at)


def _is_done(run: dict[str, Any], config: PretrainJobConfig, workspace: Workspace) -> bool:
    """Whether the run came to its end and its encoder is there, whole."""
    if run.get("state") != "done":
        return False
    try:
        workspace.open_encoder(config.name)
    except (MissingArtifactError, CorruptArtifactError) as error:
        logger.warning("%s; it is made again from the run's last checkpoint", error)
        return False
    return True


def _publish_only(
    run: dict[str, Any], config: PretrainJobConfig, workspace: Workspace
) -> int | None:
    """Publish the encoder of a run that has no training left to do, or is to do none now.

    Returns:
        The step of the checkpoint it is from, or None when there is training to do.
    """
    if run.get("state") == "done":
        newest = newest_checkpoint(workspace.folder("runs", config.name), run["config_id"])
        if newest is not None and newest["step"] == run["num_steps"]:
            return publish_newest(workspace, config.name, config.training)
    if config.stop_after_s != 0:
        return None
    step = None
    if run:
        reason = "it was published from a checkpoint"
        training, name = config.training, config.name
        step = publish_newest(workspace, name, training, cut_short=reason)
    if step is None:
        raise ValueError(
            f"--stop-after-s 0: publishes the encoder of run {config.name!r} from its newest "
            "healthy checkpoint, and there is none. Leave it out, or give some seconds to train."
        )
    return step


def _train(
    run: dict[str, Any], config: PretrainJobConfig, catalog: Catalog, context: Context
) -> int | None:
    """Start or go on with the run; returns the step at which it went on."""
    workspace, training = context.workspace, config.training
    refuse_taken_name(run, config, context)
    refuse_other_scan(run, config, catalog)
    # Before an hour goes into the cache; again after it, when unreadable pictures are left out.
    check_workers(config, training.num_trained(len(catalog.ok)), context)
    if not run:
        num_labelled = check_enough(config.label_settings, catalog, workspace, config.name)
        check_labelled(config, num_labelled)
    tracking = plan_tracking(config.trackers, run.get("uid", uuid.uuid4().hex), workspace)
    start_id = None
    if config.start is not None:
        start_id = settle_start(workspace, config.name, training, config.start)
    cache = build_pixels(catalog, training.preprocess, context, error_budget=config.error_budget)
    check_workers(config, training.num_trained(len(cache)), context)
    refuse_other_pictures(run, config, cache)
    plan = plan_run(config, catalog, cache, context, start_id=start_id, tracking=tracking)
    check_workers(config, plan.num_trained, context)
    folder = workspace.folder("runs", config.name)
    num_steps = training.num_steps(plan.num_trained)
    plan = replace(plan, stop_at_s=time_limit(config, folder, plan))
    begin_run(folder, config, plan, cache, facts_of(catalog))
    try:
        outcome = fit(plan, context, num_steps=num_steps, max_failures=config.max_failures)
    except BaseException as error:
        end_in_error(error, workspace, config.name, training)
        raise
    end_run(outcome, workspace, config.name, training)
    resumed_at: int | None = outcome["resumed_at"]
    return resumed_at


def _report(
    config: PretrainJobConfig, catalog: Catalog, context: Context, resumed_at: int | None
) -> dict[str, Any]:
    folder = context.workspace.folder("runs", config.name)
    run, metrics = read_run(folder), read_metrics(folder)
    encoder = context.workspace.open_encoder(config.name)
    probed: dict[str, Any] = next((line for line in reversed(metrics) if "knn" in line), {})
    earlier = run["corpus_id"] != catalog.corpus_id
    return {
        "encoder": config.name,
        "encoder_id": encoder.encoder_id,
        "pictures": run["num_pictures"],
        "failed": run.get("failed", {}),
        "steps": metrics[-1]["step"] if metrics else 0,
        "loss": metrics[-1]["loss"] if metrics else None,
        **{figure: probed.get(figure) for figure in REPORTED},
        "resumed_at": resumed_at,
        "note": run.get("note")
        or ("trained on an earlier scan of the corpus" if earlier else None),
        "path": str(context.workspace.folder("encoders", config.name)),
        "run": str(folder),
    }
