"""A Ray Data actor that does shards: reads the plan, has the work done, commits it.

A shard that took a worker down with it is looked at with care by the next one: pictures that kill
their decoder, or on which it does not end (`cluster.fatal_pictures`), are left out as ``crashed``,
and the rest is done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa

from cluster.decode_limit import DecodeLimit
from cluster.fatal_pictures import find_fatal
from cluster.plan import SHARD_FOLDER, Plan, Shard, plan_tag
from cluster.retry import is_outdated
from cluster.shards import commit, committed
from index.folder import Folder

__all__ = ["ShardActor", "ShardError", "ShardWork", "attempts_file"]

MAX_ATTEMPTS = 3


class ShardError(ValueError):
    """A worker could not do a shard; ``errno`` is that of the operating system's error, if any."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.errno = number


class ShardWork(Protocol):
    """What an actor does with one shard: write its files, return its record (not yet committed)."""

    limit: DecodeLimit
    """What its decoding is watched by."""

    def __call__(self, shard: Shard, crashed: frozenset[int]) -> Mapping[str, Any]:
        """Do the work; the record's ``files`` are named from the artefact's folder on.

        Pictures of the ids ``crashed`` must not be decoded; they get this status.
        """


class ShardActor:
    """A Ray Data actor: shards in, commit records out. Pixels never enter the object store.

    Args:
        location: the workspace.
        folder_path: the artefact's folder inside the workspace's filesystem.
        make_work: class of the `ShardWork`; made once per actor.
        arguments: its keyword arguments, small and plain.
    """

    def __init__(
        self,
        location: str,
        folder_path: str,
        make_work: Callable[..., ShardWork],
        arguments: dict[str, Any],
    ) -> None:
        self._folder = Folder(Folder.at(location).fs, folder_path)
        self._work: ShardWork | ValueError | OSError
        try:
            self._work = make_work(**arguments)
        except (ValueError, OSError) as error:  # said of each shard: Ray prints a constructor's
            self._work = error
        self._plans: dict[str, Plan] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do and commit each shard of the batch: ``plan``, ``position`` and ``number``."""
        return pa.table({"record": [self.do(**row) for row in batch.to_pylist()]})

    def do(self, plan: str, position: int, number: int) -> str:
        """Do and commit one shard of a plan; returns its record as JSON, or what went wrong."""
        try:
            if isinstance(self._work, Exception):
                raise self._work
            record = self._do(self._work, plan, position, number)
        except (ValueError, OSError) as error:
            # As data, since Ray keeps only the text of an exception's cause.
            record = {"error": str(error), "errno": getattr(error, "errno", None)}
        return json.dumps(record)

    def _planned(self, plan: str) -> Plan:
        if plan not in self._plans:
            self._plans[plan] = Plan(self._folder, plan)
        return self._plans[plan]

    def _do(self, work: ShardWork, plan: str, position: int, number: int) -> dict[str, Any]:
        shard, retry = self._planned(plan).shard(position, number), self._planned(plan).retry
        done = committed(self._folder, shard)
        if done is not None and not is_outdated(done, retry):
            return done  # by us: what we said of it was lost with a node, so Ray asks again
        started_s = time.monotonic()
        earlier = _count_attempt(self._folder, shard, plan)
        limit_s = work.limit.seconds
        crashed = find_fatal(shard.rows, limit_s) if earlier else frozenset()
        record = dict(work(shard, crashed))
        record["seconds"] = round(time.monotonic() - started_s, 3)
        if retry is not None:
            record["retry"] = retry
        done = commit(self._folder, shard, record)
        self._folder.remove(attempts_file(shard, plan))
        return done


def attempts_file(shard: Shard, plan: str) -> str:
    """Where actors count how often they began this shard; gone once the shard is committed.

    Of one driver's plan alone: neither one that was killed nor another one in a bucket says
    anything about the pictures.
    """
    return f"{SHARD_FOLDER}/{shard.name}-{plan_tag(plan)}.attempts"


def _count_attempt(folder: Folder, shard: Shard, plan: str) -> int:
    """The number of attempts before this one; each took its worker down.

    Raises:
        ValueError: there were so many that another will fare no better; Ray would try for ever.
    """
    name = attempts_file(shard, plan)
    stated = folder.read_if_there(name)
    stated = b"0" if stated is None else stated
    attempts = int(stated) if stated.isdigit() else 1
    if attempts >= MAX_ATTEMPTS:
        raise ValueError(
            f"shard {shard.name} in {folder}: its worker died {attempts} times, and no picture "
            f"of {shard.first_id} to {shard.last_id} is to blame on its own. Memory may be short: "
            "lower --shard-rows, or give the actors fewer CPUs in ray_config.yaml."
        )
    folder.write_atomic(name, str(attempts + 1).encode())
    return attempts
