"""pretrain: train an encoder on a corpus' pictures, without labels unless the method wants them.

1. Build the pixel cache. 2. Ray Train starts the workers; each resumes from the newest whole
checkpoint and walks the steps of one global order. 3. Rank 0 writes metrics and checkpoints. 4.
Rank 0 publishes the encoder.

Ray restarts workers that die; the checkpoints are our own (docs/adr/0005). A re-run of the same
command goes on where the last run ended, with any number of workers.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from cluster.auto_recipe import CorpusFacts, facts_of
from cluster.catalog import Catalog, open_corpus
from cluster.context import Context
from cluster.pixels_job import PixelCache, build_pixels
from cluster.pretrain_worker import WorkerPlan, publish_encoder
from cluster.ray_train import fit
from cluster.runlog import load_newest_checkpoint, read_metrics, read_run, save_labels, write_run
from cluster.shard_job import check_error_budget
from cluster.workspace import Workspace, check_name
from encoders.pretrain_config import PretrainConfig
from encoders.training import Pretraining
from index.artifact import (
    CorruptArtifactError,
    Folder,
    MissingArtifactError,
    digest,
    library_versions,
)
from index.lock import sole_writer

__all__ = ["PretrainJobConfig", "PretrainingStoppedError", "pretrain"]

logger = logging.getLogger(__name__)


class PretrainingStoppedError(ValueError):
    """Training stopped itself, as when the embedding collapsed; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainJobConfig:
    """Train an encoder on a corpus; run again to resume."""

    corpus: str
    """Name of the corpus to learn from."""
    name: str
    """Name of the run, and of the encoder that it makes."""
    training: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=PretrainConfig
    )
    """What to compute; the recipe sets it, single fields can be overridden."""
    checkpoint_every: int = 200
    """Steps between checkpoints: the most that a kill can cost."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    probe_every: int = 5
    """Epochs between kNN probes, when the corpus has labels."""
    max_failures: int = 3
    """How often Ray may restart the workers before the run is given up."""
    error_budget: float = 0.25
    """Share of undecodable pictures at which the job stops."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_name(self.corpus, what="corpus")
        check_name(self.name, what="encoder")
        for field_name, least in _LEAST.items():
            value = getattr(self, field_name)
            if value < least:
                raise ValueError(
                    f"{field_name} is {value}; it has to be {least} or more. "
                    "Leave it out for the default."
                )
        check_error_budget(self.error_budget)


_LEAST = {"checkpoint_every": 1, "log_every": 1, "probe_every": 1, "max_failures": 0}


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
    """
    workspace = context.workspace
    catalog = open_corpus(workspace, config.corpus)
    folder = workspace.folder("runs", config.name)
    resumed_at = None
    if not _is_done(_run_of(config, folder), config, workspace):
        with sole_writer(folder, "training this run"):
            run = _run_of(config, folder)
            resumed_at = _publish_again(run, config, context)
            if resumed_at is None:
                resumed_at = _train(run, config, catalog, context)
    return _report(config, catalog, context, resumed_at)


def _run_of(config: PretrainJobConfig, folder: Folder) -> dict[str, Any]:
    """Content of ``run.json``, or nothing; refuses a run of another corpus or other settings."""
    run = read_run(folder)
    if not run:
        return {}
    changed = config.training.differences(run.get("config", {}))
    if run.get("corpus") != config.corpus:
        changed.insert(0, f"corpus was {run.get('corpus')!r}, is {config.corpus!r}")
    if changed:
        raise ValueError(
            f"run {config.name!r} in {folder}: started with another configuration; different: "
            f"{', '.join(changed)}. Give this one a new --name, or the old settings to go on."
        )
    return run


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


def _publish_again(run: dict[str, Any], config: PretrainJobConfig, context: Context) -> int | None:
    """Publish a finished run's encoder from its last checkpoint, which needs no pictures.

    Returns:
        The checkpoint's step, or None when there is training left to do.
    """
    if run.get("state") != "done":
        return None
    state = load_newest_checkpoint(context.workspace.folder("runs", config.name), run["config_id"])
    if state is None or state["training"]["step"] < run["num_steps"]:
        return None
    num_trained = config.training.num_trained(run["num_pictures"])
    training = Pretraining(config.training, num_pictures=num_trained)
    training.load_state_dict(state["training"])
    publish_encoder(
        context.workspace,
        config.name,
        training,
        seconds=state["seconds"],
        corpus_id=run["corpus_id"],
    )
    return training.step_index


def _train(
    run: dict[str, Any], config: PretrainJobConfig, catalog: Catalog, context: Context
) -> int | None:
    """Start or go on with the run; returns the step at which it went on."""
    _refuse_taken_name(run, config, context)
    _refuse_other_scan(run, config, catalog)
    num_workers = context.where.profile_settings().num_workers
    # Before an hour goes into the cache; again after it, when unreadable pictures are left out.
    config.training.check_share(config.training.num_trained(len(catalog.ok)), num_workers)
    has_labels = catalog.ok["label"].null_count < len(catalog.ok)
    config.training.check_labels(np.zeros(1, np.int64) if has_labels else None)
    cache = build_pixels(
        catalog, config.training.preprocess, context, error_budget=config.error_budget
    )
    num_trained = config.training.num_trained(len(cache))
    config.training.check_share(num_trained, num_workers)
    _refuse_other_pictures(run, config, cache)
    plan = _plan(config, catalog, cache, context)
    folder = context.workspace.folder("runs", config.name)
    num_steps = config.training.num_steps(num_trained)
    _begin(folder, config, plan, cache, facts_of(catalog))
    try:
        outcome = fit(plan, context, num_steps=num_steps, max_failures=config.max_failures)
    except BaseException as error:
        state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        write_run(folder, state=state, error=str(error))
        raise
    if outcome["stopped"]:
        write_run(folder, state="stopped", error=outcome["stopped"])
        raise PretrainingStoppedError(outcome["stopped"])
    write_run(folder, state="done", finished_at=time.time())
    resumed_at: int | None = outcome["resumed_at"]
    return resumed_at


def _refuse_taken_name(run: dict[str, Any], config: PretrainJobConfig, context: Context) -> None:
    encoder = context.workspace.folder("encoders", config.name)
    if not run and encoder.exists("card.json"):
        raise ValueError(
            f"encoder {config.name!r} in {encoder}: is there, and this run did not make it: it was "
            "imported, or its run was removed. Choose another --name, or remove that folder."
        )


def _refuse_other_scan(run: dict[str, Any], config: PretrainJobConfig, catalog: Catalog) -> None:
    if run and run["corpus_id"] != catalog.corpus_id:
        raise ValueError(
            f"run {config.name!r}: began on an earlier scan of corpus {config.corpus!r}, which is "
            "no more; a run learns from one scan from its first step to its last. "
            "Give --name a new name to learn from the corpus as it is now."
        )


def _refuse_other_pictures(
    run: dict[str, Any], config: PretrainJobConfig, cache: PixelCache
) -> None:
    if run and run.get("pixels_id", cache.id) != cache.id:
        raise ValueError(
            f"run {config.name!r}: began on {run['num_pictures']} pictures; the {len(cache)} "
            "that can be read now are not the same. A run learns from one set to its end. "
            "Bring the files back as they were, or give --name a new name."
        )


def _plan(
    config: PretrainJobConfig, catalog: Catalog, cache: PixelCache, context: Context
) -> WorkerPlan:
    """Pin what the run learns from, and keep its labels in the run's folder."""
    codes = _label_codes(catalog, cache.ids)
    config.training.check_labels(codes)
    labels = None
    if codes is not None:
        labels = save_labels(context.workspace.folder("runs", config.name), cache.ids, codes)
    return WorkerPlan(
        location=context.workspace.location,
        name=config.name,
        corpus_id=catalog.corpus_id,
        pixels_path=cache.folder.path,
        pixels_id=cache.id,
        labels=labels,
        config_id=digest([config.training.settings(), catalog.corpus_id]),
        training=config.training,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        probe_every=config.probe_every,
        num_threads=max(1, int(context.where.profile_settings().cpus_per_worker)),
    )


def _label_codes(catalog: Catalog, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Positions of the pictures' labels among all labels, sorted; -1 for none, None without any."""
    labels = catalog.labels(ids)
    names = sorted({label for label in labels if label is not None})
    code_of = {name: code for code, name in enumerate(names)}
    codes = [-1 if label is None else code_of[label] for label in labels]
    return np.array(codes, dtype=np.int64) if names else None


def _begin(
    folder: Folder,
    config: PretrainJobConfig,
    plan: WorkerPlan,
    cache: PixelCache,
    facts: CorpusFacts,
) -> None:
    split = plan.training.split(len(cache))
    write_run(
        folder,
        state="running",
        config=plan.training.settings(),
        config_id=plan.config_id,
        corpus=config.corpus,
        corpus_id=plan.corpus_id,
        corpus_facts=facts,
        pixels_id=plan.pixels_id,
        num_pictures=len(cache),
        num_held_out=len(cache) - len(split.trained),
        num_examined=len(split.examined),
        failed=cache.failed,
        num_steps=plan.training.num_steps(len(split.trained)),
        started_at=time.time(),
        error=None,
        versions=library_versions("torch", "ray"),
    )


def _report(
    config: PretrainJobConfig, catalog: Catalog, context: Context, resumed_at: int | None
) -> dict[str, Any]:
    folder = context.workspace.folder("runs", config.name)
    run, metrics = read_run(folder), read_metrics(folder)
    encoder = context.workspace.open_encoder(config.name)
    earlier = run["corpus_id"] != catalog.corpus_id
    return {
        "encoder": config.name,
        "encoder_id": encoder.encoder_id,
        "pictures": run["num_pictures"],
        "failed": run.get("failed", {}),
        "steps": metrics[-1]["step"] if metrics else 0,
        "loss": metrics[-1]["loss"] if metrics else None,
        "knn": next((item["knn"] for item in reversed(metrics) if "knn" in item), None),
        "resumed_at": resumed_at,
        "note": "trained on an earlier scan of the corpus" if earlier else None,
        "path": str(context.workspace.folder("encoders", config.name)),
        "run": str(folder),
    }
