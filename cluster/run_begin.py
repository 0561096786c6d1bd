"""How a run begins, or goes on: what it has to be, and the plan that pins what it learns from."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.auto_recipe import CorpusFacts
from cluster.catalog import Catalog
from cluster.checkpoints import newest_checkpoint
from cluster.context import Context
from cluster.pixels_job import PixelCache
from cluster.pretrain_settings import PretrainJobConfig
from cluster.pulse import forget_stop
from cluster.run_labels import load_labels, settle_labels
from cluster.runlog import read_run, write_run
from cluster.starting import check_start
from cluster.trackers import TrackingPlan
from cluster.worker_plan import WorkerPlan
from cluster.workspace import Workspace
from encoders.losses import NO_LABEL
from index.artifact import digest, library_versions
from index.folder import Folder

__all__ = [
    "begin_run",
    "check_labelled",
    "check_workers",
    "plan_run",
    "read_own_run",
    "refuse_other_pictures",
    "refuse_other_scan",
    "refuse_taken_name",
    "time_limit",
]


def read_own_run(config: PretrainJobConfig, workspace: Workspace) -> dict[str, Any]:
    """Content of ``run.json``, or nothing; refuses a run of another corpus or other settings."""
    folder = workspace.folder("runs", config.name)
    run = read_run(folder)
    if not run:
        return {}
    check_start(run, workspace, config.name, config.start)
    changed = config.training.differences(run.get("config", {}))
    now = asdict(config.label_settings)
    was = {**now, **run.get("label_settings", {})}
    changed += [f"{key} was {was[key]!r}, is {now[key]!r}" for key in now if was[key] != now[key]]
    if run.get("corpus") != config.corpus:
        changed.insert(0, f"corpus was {run.get('corpus')!r}, is {config.corpus!r}")
    if changed:
        raise ValueError(
            f"run {config.name!r} in {folder}: started with another configuration; different: "
            f"{', '.join(changed)}. Give this one a new --name, or the old settings to go on."
        )
    return run


def check_workers(config: PretrainJobConfig, num_trained: int, context: Context) -> None:
    """Refuse a number of workers that cannot share a batch, unless the profile leaves it open."""
    profile = context.where.profile_settings()
    if profile.min_workers:
        config.training.most_ranks(num_trained, profile.num_workers)
    else:
        config.training.check_share(num_trained, profile.num_workers)


def check_labelled(config: PretrainJobConfig, num_labelled: int) -> None:
    """Refuse to learn from labelled pictures alone when they are fewer than a batch."""
    batch = config.training.batch_size
    if config.training.learns_labelled_alone and num_labelled < batch:
        raise ValueError(
            f"run {config.name!r}: learns from pictures with a label alone, and of those there are "
            f"{num_labelled}, besides the ones that are held out; the global batch is {batch}. Use "
            f"a batch_size of {num_labelled} or less, label more, or take the others along, each a "
            "class of its own, with method.unlabelled alone."
        )


def time_limit(config: PretrainJobConfig, folder: Folder, plan: WorkerPlan) -> float | None:
    """Training time over all resumes at which this command is over, or None."""
    if config.stop_after_s is None:
        return None
    newest = newest_checkpoint(folder, plan.config_id)
    return config.stop_after_s + (newest["seconds"] if newest else 0.0)


def refuse_taken_name(run: dict[str, Any], config: PretrainJobConfig, context: Context) -> None:
    """Refuse to write over an encoder that no run of this name made."""
    encoder = context.workspace.folder("encoders", config.name)
    if not run and encoder.exists("card.json"):
        raise ValueError(
            f"encoder {config.name!r} in {encoder}: is there, and this run did not make it: it was "
            "imported, or its run was removed. Choose another --name, or remove that folder."
        )


def refuse_other_scan(run: dict[str, Any], config: PretrainJobConfig, catalog: Catalog) -> None:
    """Refuse to go on with a run when its corpus was scanned again since."""
    if run and run["corpus_id"] != catalog.corpus_id:
        raise ValueError(
            f"run {config.name!r}: began on an earlier scan of corpus {config.corpus!r}, which is "
            "no more; a run learns from one scan from its first step to its last. "
            "Give --name a new name to learn from the corpus as it is now."
        )


def refuse_other_pictures(
    run: dict[str, Any], config: PretrainJobConfig, cache: PixelCache
) -> None:
    """Refuse to go on with a run when other pictures can be read than at its beginning."""
    if run and run.get("pixels_id", cache.id) != cache.id:
        raise ValueError(
            f"run {config.name!r}: began on {run['num_pictures']} pictures; the {len(cache)} "
            "that can be read now are not the same. A run learns from one set to its end. "
            "Bring the files back as they were, or give --name a new name."
        )


def plan_run(
    config: PretrainJobConfig,
    catalog: Catalog,
    cache: PixelCache,
    context: Context,
    *,
    start_id: str | None,
    tracking: TrackingPlan,
) -> WorkerPlan:
    """Pin what the run learns from, and keep its labels in the run's folder."""
    labels, sentences = settle_labels(
        config.label_settings, catalog, cache.ids, context.workspace, config.name
    )
    for sentence in sentences:
        context.say(f"pretrain: {sentence}")
    taught = None
    if labels is not None:
        codes, held_out = load_labels(context.workspace.folder("runs", config.name), labels["file"])
        taught = np.where(held_out, NO_LABEL, codes)
    rows = config.training.trained_rows(len(cache), taught)
    check_labelled(config, len(rows))
    identity = [config.training.settings(), catalog.corpus_id]
    identity += [] if start_id is None else [{"start": start_id}]
    if labels is not None and config.training.learns_labels:
        identity.append({"labels": labels["labels_id"]})
    return WorkerPlan(
        location=context.workspace.location,
        name=config.name,
        corpus_id=catalog.corpus_id,
        pixels_path=cache.folder.path,
        pixels_id=cache.id,
        labels=labels,
        num_trained=len(rows),
        start_id=start_id,
        config_id=digest(identity),
        training=config.training,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        probe_every=config.probe_every,
        tracking=tracking,
        num_threads=max(1, int(context.where.profile_settings().cpus_per_worker)),
    )


def begin_run(
    folder: Folder,
    config: PretrainJobConfig,
    plan: WorkerPlan,
    cache: PixelCache,
    facts: CorpusFacts,
) -> None:
    """Have ``run.json`` say what the run learns from, and that it is under way."""
    split = plan.training.split(len(cache))
    forget_stop(folder)
    write_run(
        folder,
        state="running",
        config=plan.training.settings(),
        config_id=plan.config_id,
        corpus=config.corpus,
        corpus_id=plan.corpus_id,
        corpus_facts=facts,
        pixels_id=plan.pixels_id,
        parents=plan.parents(),
        start=plan.start_id and {"encoder": config.start, "encoder_id": plan.start_id},
        labels=plan.labels,
        label_settings=asdict(config.label_settings),
        uid=plan.tracking.uid,
        num_pictures=len(cache),
        num_held_out=len(cache) - len(split.trained),
        num_trained=plan.num_trained,
        num_examined=len(split.examined),
        failed=cache.failed,
        num_steps=plan.training.num_steps(plan.num_trained),
        started_at=time.time(),
        error=None,
        note=None,
        alert=None,
        versions=library_versions("torch", "ray"),
    )
