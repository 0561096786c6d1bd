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

__all__ = ["COUNTS", "ShardActor", "ShardError", "ShardWork", "attempts_file"]

MAX_ATTEMPTS = 3
COUNTS = (".attempts", ".starts")
"""Ends of the names of files that count for a plan, and are of no use after it."""


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
        make_work: class of the `ShardWork`; made once per actor, for its first shard, so that
            actors which die of it are counted: Ray would start them again for ever.
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
        self._make_work, self._arguments = make_work, arguments
        self._work: ShardWork | None = None
        self._plans: dict[str, Plan] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do and commit each shard of the batch: ``plan``, ``position`` and ``number``."""
        return pa.table({"record": [self.do(**row) for row in batch.to_pylist()]})

    def do(self, plan: str, position: int, number: int) -> str:
        """Do and commit one shard of a plan; returns its record as JSON, or what went wrong."""
        try:
            record = self._do(plan, position, number)
        except (ValueError, OSError) as error:
            # As data, since Ray keeps only the text of an exception's cause.
            record = {"error": str(error), "errno": getattr(error, "errno", None)}
        return json.dumps(record)

    def _planned(self, plan: str) -> Plan:
        if plan not in self._plans:
            self._plans[plan] = Plan(self._folder, plan)
        return self._plans[plan]

    def _ready(self, shard: Shard, plan: str) -> ShardWork:
        if self._work is None:
            starts = f"{_stem(shard, plan)}.starts"
            _count(
                self._folder,
                starts,
                f"shard {shard.name} in {self._folder}: its worker died {MAX_ATTEMPTS} times as it "
                "started, before it saw a picture. Memory may be short for the encoder: lower "
                "embed_actors in ray_config.yaml. Or PyTorch is not made for this CPU: see "
                "lookalike doctor.",
            )
            self._work = self._make_work(**self._arguments)
            self._folder.remove(starts)
        return self._work

    def _do(self, plan: str, position: int, number: int) -> dict[str, Any]:
        shard, retry = self._planned(plan).shard(position, number), self._planned(plan).retry
        done = committed(self._folder, shard)
        if done is not None and not is_outdated(done, retry):
            return done  # by us: what we said of it was lost with a node, so Ray asks again
        work = self._ready(shard, plan)
        started_s = time.monotonic()
        earlier = _count(
            self._folder,
            attempts_file(shard, plan),
            f"shard {shard.name} in {self._folder}: its worker died {MAX_ATTEMPTS} times, and no "
            f"picture of {shard.first_id} to {shard.last_id} is to blame on its own. Memory may be "
            "short: lower --shard-rows, or give the actors fewer CPUs in ray_config.yaml.",
        )
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
    return f"{_stem(shard, plan)}.attempts"


def _stem(shard: Shard, plan: str) -> str:
    return f"{SHARD_FOLDER}/{shard.name}-{plan_tag(plan)}"


def _count(folder: Folder, name: str, refusal: str) -> int:
    """Count one more beginning in a file; returns how many were before, which all ended in death.

    Raises:
        ValueError: the refusal, as another will fare no better; Ray would try for ever.
    """
    stated = folder.read_if_there(name)
    stated = b"0" if stated is None else stated
    deaths = int(stated) if stated.isdigit() else 1
    if deaths >= MAX_ATTEMPTS:
        raise ValueError(refusal)
    folder.write_atomic(name, str(deaths + 1).encode())
    return deaths
