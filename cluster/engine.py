"""Ray itself: start one here, or join a cluster, with defaults that neither hang nor chatter.

Ray reads much of its set-up from environment variables, some of them on import; so this is the
one place that imports ray before any job does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.local_ray import start, token_file
from cluster.where import CHECKOUT, Profile, Where, num_cores

__all__ = [
    "connect",
    "is_connected",
    "lost",
    "root_cause",
]

QUIET = {
    # Else `uv run` would pack up the working folder for every local run.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DATA_LOGGING_CONFIG": str(CHECKOUT / "cluster" / "ray_data_logging.yaml"),
    # Ray's C++ core warns on the terminal about every actor with arguments, ours among them.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # How long Ray waits for workers on a node that was just lost, before it counts anew what there
    # is; the default of 60 s is how late an elastic run goes on.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
LOCAL = {
    # The default starts 32 footer readers of one CPU each, for files that one reads in a moment.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    # The default of 2 s is how late a finished or dead worker is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
# Tasks that read and write need CPUs too: actors that take them all make Ray wait for ever.
SPARE_CPUS = 2
LEAST_CPUS = 4
ENDS = {
    "ActorDiedError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectLostError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PreemptionError",
    "TaskPlacementGroupRemoved",
    "WorkerCrashedError",
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
}
"""Errors of Ray's that say that a process or its place ended; all others may come again."""


@contextlib.contextmanager
def connect(
    where: Where, *, num_cpus: int | None = None, object_store_bytes: int | None = None
) -> Iterator[Profile]:
    """Start Ray here or join the cluster, and leave it as it was found.

    A Ray that this process uses already is used as it is, and left running.

    Args:
        where: the profile, and the address of a cluster to join.
        num_cpus: logical CPUs of a Ray started here; by default the cores and two, at least 4.
        object_store_bytes: shared memory of a Ray started here.

    Yields:
        The profile, with this machine's shares filled in.

    Raises:
        ValueError: an unknown profile, or one too large for this machine; a malformed address;
            this machine has too little memory left for a Ray.
        ConnectionError: no cluster answers at the address, or it refuses our token; Ray did not
            start here in time.
    """
    profile = where.profile_settings()
    _set_defaults(QUIET if where.address else {**QUIET, **LOCAL})
    import ray

    if ray.is_initialized():
        _check_room(profile, where, ray.cluster_resources())
        yield profile
        return
    if where.address:
        _join(where.address)
    else:
        start(num_cpus or max(LEAST_CPUS, num_cores() + SPARE_CPUS), object_store_bytes)
    try:
        _check_room(profile, where, ray.cluster_resources())
        yield profile
    finally:
        ray.shutdown()


def is_connected() -> bool:
    """Whether this process uses a Ray already; does not import ray to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised, out of the wrappers that Ray puts around it.

    >>> root_cause(ValueError("ours"))
    ValueError('ours')
    """
    while type(error).__module__.startswith("ray."):
        failures = getattr(error, "worker_failures", None) or {}
        made = next((each for each in error.args if isinstance(each, BaseException)), None)
        inner = getattr(error, "cause", None) or next(iter(failures.values()), error.__cause__)
        inner = inner or made  # what an actor's constructor raised
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def lost(error: BaseException) -> str | None:
    """What to say where Ray itself failed under a job, in a sentence or two; None for all else."""
    is_end = type(error).__name__ in ENDS and not getattr(error, "actor_init_failed", False)
    if not (is_end and type(error).__module__.startswith("ray.")):
        return None
    first = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return (
        f"Ray lost what the work ran on ({type(error).__name__}: {first}). A worker or its "
        "node ended, most likely from outside: memory ran short, a machine went, or somebody "
        "stopped Ray. What was finished is kept: run the same command to go on."
    )


def _set_defaults(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _join(address: str) -> None:
    import ray

    if "://" in address:
        raise ValueError(
            f"--address {address}: has to be HOST:PORT or auto. A driver behind a Ray Client dies "
            "with its terminal; submit a job instead: ray job submit --working-dir . -- "
            "python -m cluster VERB --address auto ..."
        )
    if token_file().is_file() or "RAY_AUTH_TOKEN" in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        ray.init(
            address=address,
            runtime_env=_runtime_env(),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(
            f"--address {address}: no Ray cluster let us in ({error}). See `ray status` on its "
            f"head; this machine and the cluster need the same token in {token_file()}; the port "
            "is 6379 unless ray_config.yaml says otherwise."
        ) from error


def _runtime_env() -> dict[str, Any] | None:
    """Ships the four rooms to the workers; a Ray job has done so for us already."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    return {"working_dir": str(CHECKOUT)}


def _check_room(profile: Profile, where: Where, total: Mapping[str, float]) -> None:
    """Refuse what Ray on this machine would wait for in silence; a cluster may still grow."""
    if where.address:
        return
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    for count, of, each_cpus, each_gpus in (
        ("num_workers", "worker", profile.cpus_per_worker, profile.gpus_per_worker),
        ("embed_actors", "actor", profile.cpus_per_actor, profile.gpus_per_actor),
    ):
        number = getattr(profile, count) or 1  # actors share the CPUs of one
        kept_free = 2 if of == "actor" and profile.decode_tasks else 1
        if number * each_cpus > cpus - kept_free or number * each_gpus > gpus:
            raise ValueError(
                f"profile {where.profile!r}: {count} {number} with {each_cpus} CPUs and "
                f"{each_gpus:g} GPUs per {of} do not fit on this machine, where Ray has {cpus:g} "
                f"CPUs, {kept_free} of them kept free, and {gpus:g} GPUs. Lower them in "
                "ray_config.yaml, choose another --profile, or join a cluster with --address."
            )
