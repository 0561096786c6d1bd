"""pretrain: train an encoder on a corpus' pictures, without labels unless the method wants them.

1. Build the pixel cache. 2. Ray Train starts the workers; each resumes from the newest whole
checkpoint and walks the steps of one global order. 3. Rank 0 writes metrics and checkpoints. 4.
Rank 0 publishes the encoder.

Ray restarts workers that die; the checkpoints are our own (docs/adr/0005). A re-run of the same
command goes on where the last run ended, with any number of workers.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import numpy as np
import tyro

from cluster.catalog import Catalog
from cluster.context import Context, ProgressLine
from cluster.pixels_job import build_pixels
from cluster.pretrain_worker import WorkerPlan, train_worker
from cluster.runlog import read_metrics, read_run, write_run
from cluster.workspace import check_name
from encoders.pretrain_config import PretrainConfig
from index.artifact import Folder, digest, library_versions
from index.lock import sole_writer

__all__ = ["PretrainJobConfig", "PretrainingStoppedError", "pretrain"]

POLL_S = 1.0


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
        for field_name in ("checkpoint_every", "log_every", "probe_every"):
            if getattr(self, field_name) < 1:
                raise ValueError(f"{field_name} {getattr(self, field_name)}: has to be at least 1")


def pretrain(config: PretrainJobConfig, context: Context) -> dict[str, Any]:
    """Train, or finish training, and publish the encoder.

    Raises:
        MissingArtifactError: there is no such corpus.
        ValueError: a run of this name was started with another configuration.
        PretrainingStoppedError: the run stopped itself.
    """
    workspace = context.workspace
    make = f"lookalike scan FOLDER --corpus {config.corpus}"
    catalog = Catalog.open(
        workspace.require("corpora", config.corpus, door="corpus.json", make=make)
    )
    folder = workspace.folder("runs", config.name)
    has_labels = catalog.ok["label"].null_count < len(catalog.ok)
    config.training.check_labels(np.zeros(1, np.int64) if has_labels else None)
    config_id = digest([config.training.settings(), catalog.corpus_id])
    if _is_done(folder, config, config_id, context):
        return _report(config, context, resumed_at=None)
    with sole_writer(folder, "training this run"):
        outcome = _train(config, catalog, config_id, context)
    return _report(config, context, resumed_at=outcome["resumed_at"])


def _train(
    config: PretrainJobConfig, catalog: Catalog, config_id: str, context: Context
) -> dict[str, Any]:
    """Start or go on with the run; returns what rank 0 returned."""
    folder = context.workspace.folder("runs", config.name)
    cache = build_pixels(
        catalog, config.training.preprocess, context, error_budget=config.error_budget
    )
    plan = WorkerPlan(
        location=context.workspace.location,
        name=config.name,
        corpus=config.corpus,
        pixels_path=cache.folder.path,
        config_id=config_id,
        training=config.training,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        probe_every=config.probe_every,
        num_threads=max(1, int(context.where.profile_settings().cpus_per_worker)),
    )
    _begin(folder, plan, num_pictures=len(cache), corpus_id=catalog.corpus_id)
    try:
        with _watched(folder, config.training.num_steps(len(cache)), context):
            outcome = _fit(plan, config, folder, context)
    except BaseException as error:
        state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        write_run(folder, state=state, error=str(error))
        raise
    if outcome["stopped"]:
        write_run(folder, state="stopped", error=outcome["stopped"])
        raise PretrainingStoppedError(outcome["stopped"])
    write_run(folder, state="done", finished_at=time.time())
    return outcome


def _begin(folder: Folder, plan: WorkerPlan, *, num_pictures: int, corpus_id: str) -> None:
    write_run(
        folder,
        state="running",
        config=plan.training.settings(),
        config_id=plan.config_id,
        corpus=plan.corpus,
        corpus_id=corpus_id,
        num_pictures=num_pictures,
        num_steps=plan.training.num_steps(num_pictures),
        started_at=time.time(),
        error=None,
        versions=library_versions("torch", "ray"),
    )


def _is_done(folder: Folder, config: PretrainJobConfig, config_id: str, context: Context) -> bool:
    """Whether the run is finished; refuses to continue a run of another configuration."""
    run = read_run(folder)
    if run and run["config_id"] != config_id:
        was, now = run["config"], config.training.settings()
        changed = [name for name in now if was.get(name) != _as_json(now[name])]
        what = ", ".join(changed) or "the corpus (it was scanned again)"
        raise ValueError(
            f"run {config.name!r} in {folder}: started with another configuration; "
            f"different: {what}. Give this one a new --name, or the old settings to go on."
        )
    encoder = context.workspace.folder("encoders", config.name)
    return bool(run) and run["state"] == "done" and encoder.exists("card.json")


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def _fit(
    plan: WorkerPlan, config: PretrainJobConfig, folder: Folder, context: Context
) -> dict[str, Any]:
    """Run the workers under Ray Train; returns what rank 0 returned."""
    with context.ray() as profile:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        # Ray's stubs still describe the classes that version 2 of Ray Train replaces at run time.
        train: Any = ray.train

        attempts = folder / "ray"
        resources: dict[str, float] = {"CPU": profile.cpus_per_worker}
        if profile.gpus_per_worker:
            resources["GPU"] = profile.gpus_per_worker
        trainer = TorchTrainer(
            cast("Callable[[dict[Any, Any]], None]", train_worker),
            train_loop_config={"plan": plan},
            scaling_config=train.ScalingConfig(
                num_workers=profile.num_workers,
                use_gpu=profile.gpus_per_worker > 0,
                resources_per_worker=resources,
                label_selector=profile.train_labels,
            ),
            # A new name each time: Ray must not resume from its own state, which a kill can tear.
            run_config=train.RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=attempts.path,
                storage_filesystem=attempts.fs,
                failure_config=train.FailureConfig(max_failures=config.max_failures),
                logging_config=train.LoggingConfig("ERROR"),
            ),
            torch_config=TorchConfig(timeout_s=300),
        )
        result: Any = trainer.fit()
        attempts.fs.delete_dir(attempts.path)
        return dict(result.return_value)


@contextlib.contextmanager
def _watched(folder: Folder, num_steps: int, context: Context) -> Iterator[None]:
    """Show the run's progress from its metrics while Ray Train blocks this thread."""
    with context.progress(f"pretrain {folder.path.rsplit('/', 1)[-1]}", num_steps, "steps") as line:
        finished = threading.Event()
        follower = threading.Thread(target=_follow, args=(folder, line, finished), daemon=True)
        follower.start()
        try:
            yield
        finally:
            finished.set()
            follower.join()


def _follow(folder: Folder, line: ProgressLine, finished: threading.Event) -> None:
    shown = 0
    while not finished.wait(POLL_S):
        metrics = read_metrics(folder)
        if not metrics or metrics[-1]["step"] == shown:
            continue
        newest = metrics[-1]
        if not shown:
            line.start_at(metrics[0]["step"] if len(metrics) == 1 else newest["step"])
        shown = newest["step"]
        knn = next((item["knn"] for item in reversed(metrics) if "knn" in item), None)
        note = f"loss {newest['loss']:.3f}" + (f"  kNN {knn:.1%}" if knn is not None else "")
        line.set(shown, note)


def _report(config: PretrainJobConfig, context: Context, resumed_at: int | None) -> dict[str, Any]:
    folder = context.workspace.folder("runs", config.name)
    metrics = read_metrics(folder)
    encoder = context.workspace.open_encoder(config.name)
    return {
        "encoder": config.name,
        "encoder_id": encoder.encoder_id,
        "steps": metrics[-1]["step"] if metrics else 0,
        "loss": metrics[-1]["loss"] if metrics else None,
        "knn": next((item["knn"] for item in reversed(metrics) if "knn" in item), None),
        "resumed_at": resumed_at,
        "path": str(context.workspace.folder("encoders", config.name)),
        "run": str(folder),
    }
