"""Ray Train: starts a run's workers, restarts those that die, and shows how far they are.

Ray keeps nothing of a run: its own folder is cleared, the checkpoints are ours (docs/adr/0005).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

from cluster.context import Context, ProgressLine
from cluster.pretrain_worker import WorkerPlan, train_worker
from cluster.runlog import MetricsTail
from index.artifact import Folder

__all__ = ["fit"]

logger = logging.getLogger(__name__)

POLL_S = 1.0


def fit(plan: WorkerPlan, context: Context, *, num_steps: int, max_failures: int) -> dict[str, Any]:
    """Run the workers to the end of the run, with a progress line.

    Args:
        plan: what every worker is told.
        context: where to compute.
        num_steps: steps of the whole run.
        max_failures: how often Ray may restart the workers.

    Returns:
        What rank 0 returned.
    """
    folder = context.workspace.folder("runs", plan.name)
    with _watched(folder, num_steps, context), _scratch(folder / "ray") as attempts:
        return _fit(plan, context, attempts, max_failures)


def _fit(plan: WorkerPlan, context: Context, attempts: Folder, max_failures: int) -> dict[str, Any]:
    with context.ray() as profile:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        # Ray's stubs still describe the classes that version 2 of Ray Train replaces at run time.
        train: Any = ray.train

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
                failure_config=train.FailureConfig(max_failures=max_failures),
                logging_config=train.LoggingConfig("ERROR"),
            ),
            torch_config=TorchConfig(timeout_s=300),
        )
        result: Any = trainer.fit()
        return dict(result.return_value)


@contextlib.contextmanager
def _scratch(folder: Folder) -> Iterator[Folder]:
    """A folder of Ray's own, cleared of what a killed run left, and again at the end."""
    _clear(folder)
    try:
        yield folder
    finally:
        _clear(folder)


def _clear(folder: Folder) -> None:
    try:
        if folder.exists():
            folder.fs.delete_dir(folder.path)
    except OSError as error:
        logger.warning("%s: could not be cleared (%s); the next run tries again", folder, error)


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
    tail = MetricsTail(folder)
    knn: float | None = None
    earlier = tail.refresh()
    line.start_at(earlier[-1]["step"] if earlier else 0)
    while not finished.wait(POLL_S):
        fresh = tail.refresh()
        if not fresh:
            continue
        newest = fresh[-1]
        knn = next((item["knn"] for item in reversed(fresh) if "knn" in item), knn)
        note = f"loss {newest['loss']:.3f}" + (f"  kNN {knn:.1%}" if knn is not None else "")
        line.set(newest["step"], note)
