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
from cluster.interrupt import until_interrupted
from cluster.kept_memory import kept_memory
from cluster.pretrain_worker import train_worker
from cluster.pulse import ask_to_stop
from cluster.run_news import RunNews
from cluster.runlog import MetricsTail, read_run
from cluster.where import Profile, Where
from cluster.worker_plan import WorkerPlan
from index.folder import Folder

__all__ = ["ASKED", "check_room", "fit", "run_workers", "scaling", "scratch"]

logger = logging.getLogger(__name__)

POLL_S = 1.0
ASKED = "somebody asked it to"


def fit(plan: WorkerPlan, context: Context, *, num_steps: int, max_failures: int) -> dict[str, Any]:
    """Run the workers to the end of the run, with a progress line.

    The first Ctrl-C or SIGTERM asks them to end after the step under way.

    Args:
        plan: what every worker is told.
        context: where to compute.
        num_steps: steps of the whole run.
        max_failures: how often Ray may restart the workers.

    Returns:
        What rank 0 returned.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C, or at the first before any worker trains.
    """
    folder = context.workspace.folder("runs", plan.name)
    num_attempts = len(read_run(folder).get("attempts", []))

    def ask() -> None:
        if len(read_run(folder).get("attempts", [])) == num_attempts:
            raise KeyboardInterrupt("Stopped before training began: nothing is lost.")
        context.say("Stopping after this step, with the encoder so far. Ctrl-C again ends at once.")
        ask_to_stop(folder, ASKED)

    with (
        _watched(folder, num_steps, context),
        scratch(folder / "ray") as attempts,
        context.ray() as profile,
    ):
        workers = scaling(profile, profile.worker_range, profile.cpus_per_worker)
        return until_interrupted(
            lambda: run_workers(
                train_worker, {"plan": plan}, workers, attempts, max_failures=max_failures
            ),
            ask,
        )


def scaling(profile: Profile, num_workers: int | tuple[int, int], cpus: float) -> Any:
    """Ray's ScalingConfig for so many workers of so many CPUs, with the profile's GPUs and pool.

    Args:
        profile: where.
        num_workers: how many, or the least and the most: then Ray goes on with those that it has
            room for, and looks once a minute whether there is room for more.
        cpus: of each worker.
    """
    import ray.train

    # Ray's stubs still describe the classes that version 2 of Ray Train replaces at run time.
    train: Any = ray.train
    resources: dict[str, float] = {"CPU": cpus}
    if profile.gpus_per_worker:
        resources["GPU"] = profile.gpus_per_worker
    return train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=profile.gpus_per_worker > 0,
        resources_per_worker=resources,
        label_selector=profile.train_labels,
    )


def check_room(where: Where, profile: Profile, num_workers: int, cpus: float) -> None:
    """Refuse workers that Ray on this machine would wait for in silence; a cluster may still grow.

    Args:
        where: whether it is this machine.
        profile: says how many GPUs a worker takes.
        num_workers: how many are to start, other than the profile's number.
        cpus: of each.

    Raises:
        ValueError: there are not so many CPUs or GPUs.
    """
    import ray

    total = ray.cluster_resources()
    have = total.get("CPU", 0.0), total.get("GPU", 0.0)
    need = num_workers * cpus, num_workers * profile.gpus_per_worker
    if where.address is None and (need[0] > have[0] or need[1] > have[1]):
        raise ValueError(
            f"{num_workers} workers: they need {need[0]:g} CPUs and {need[1]:g} GPUs, and Ray on "
            f"this machine has {have[0]:g} and {have[1]:g}. Ask for fewer, choose another "
            "--profile, or join a cluster with --address."
        )


def run_workers(
    loop: Callable[[dict[str, Any]], dict[str, Any]],
    loop_config: dict[str, Any],
    workers: Any,
    attempts: Folder,
    *,
    max_failures: int = 0,
) -> dict[str, Any]:
    """Run ``loop(loop_config)`` on every worker; returns what rank 0 returned.

    Args:
        loop: importable by the workers.
        loop_config: its argument.
        workers: from `scaling`.
        attempts: a folder for Ray's own state, which every node has to see.
        max_failures: how often Ray may restart the workers.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    train: Any = ray.train  # as in `scaling`
    trainer = TorchTrainer(
        cast("Callable[[dict[Any, Any]], None]", loop),
        train_loop_config=loop_config,
        scaling_config=workers,
        # A new name each time: Ray must not resume from its own state, which a kill can tear.
        run_config=train.RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=attempts.path,
            storage_filesystem=attempts.fs,
            failure_config=train.FailureConfig(max_failures=max_failures),
            worker_runtime_env={"env_vars": kept_memory()},
            logging_config=train.LoggingConfig("ERROR"),
        ),
        torch_config=TorchConfig(timeout_s=300),
    )
    result: Any = trainer.fit()
    return dict(result.return_value)


@contextlib.contextmanager
def scratch(folder: Folder) -> Iterator[Folder]:
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
        arguments = folder, line, context.say, finished
        follower = threading.Thread(target=_follow, args=arguments, daemon=True)
        follower.start()
        try:
            yield
        finally:
            finished.set()
            follower.join()


def _follow(
    folder: Folder, line: ProgressLine, say: Callable[[str], None], finished: threading.Event
) -> None:
    tail = MetricsTail(folder)
    news = RunNews(folder, say)
    accuracy = ""
    earlier = tail.refresh()
    line.start_at(earlier[-1]["step"] if earlier else 0)
    while not finished.wait(POLL_S):
        try:
            news.look()
            fresh = tail.refresh()
        except OSError as error:  # cut by a resumed run as it is read, or a store out of reach
            logger.info("%s: not followed just now: %s", folder, error)
            continue
        if not fresh:
            continue
        newest = fresh[-1]
        probed = next((item for item in reversed(fresh) if "knn" in item), None)
        if probed is not None:
            accuracy = f"  kNN {probed['knn']:.1%}"
            if "knn_random" in probed:
                accuracy += f" (untrained {probed['knn_random']:.1%})"
        line.set(newest["step"], f"loss {newest['loss']:.3f}{accuracy}")
