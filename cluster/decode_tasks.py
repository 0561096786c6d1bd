"""Decoding as a stage of its own: Ray tasks on the cluster's CPUs, for actors whose GPU would wait.

Not an operator of Ray Data in front of the actors: a shard is committed by one actor, which needs
all of its pictures, in order, while an operator's output goes to whichever actor is free. And a
task whose worker dies tells which few pictures it had, where an operator tries for ever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.decode_limit import DecodeLimit
from cluster.embed_decode import Decoded, DecodeForm, decode_rows, in_batches
from cluster.fatal_pictures import find_fatal
from cluster.plan import ShardRow
from cluster.read_ahead import Read, in_order, in_pieces, read_tables
from cluster.where import Profile

__all__ = ["CPUS_PER_GPU", "TaskDecoder", "decode_tasks", "task_decoder"]

logger = logging.getLogger(__name__)

CPUS_PER_GPU = 16
"""CPUs that a large GPU can keep busy: an H100 embeds 5,000 pictures of 224 px a second with
ResNet-50, and a hardware thread beside it decodes 180 to 250 JPEGs of 500 px."""
TASK_ROWS = 16
"""Few, so that all tasks of an actor end at about the same time when a shard does."""
MAX_TRIES = 3


def decode_tasks(profile: Profile, cpus: float) -> int:
    """How many decoding tasks each embedding actor may have at once; 0 decodes in its threads.

    As the profile says, or by itself: where actors have GPUs and fewer than `CPUS_PER_GPU` for
    each, and the CPUs that are left would decode faster than their own.

    Args:
        profile: of the job.
        cpus: of all nodes that may decode; those of the actors among them, unless both have pools.

    >>> decode_tasks(Profile(gpus_per_actor=1, cpus_per_actor=2, embed_actors=4), cpus=100)
    16
    >>> decode_tasks(Profile(cpus_per_actor=2, embed_actors=4), cpus=40)
    0
    """
    if profile.decode_tasks is not None:
        return profile.decode_tasks
    enough = math.ceil(CPUS_PER_GPU * profile.gpus_per_actor)
    pools = {profile.data_pool, profile.decode_pool}
    apart = len(pools) == 2 and None not in pools
    left = int(cpus / profile.embed_actors) - (0 if apart else profile.cpus_per_actor)
    return min(enough, left) if profile.cpus_per_actor < min(enough, left) else 0


def task_decoder(
    profile: Profile, form: DecodeForm, limit_s: float, batch_rows: int
) -> TaskDecoder | None:
    """The stage of its own of an embedding actor; None where `decode_tasks` wants none."""
    width = decode_tasks(profile, _cpus_of_pool(profile) if profile.gpus_per_actor else 0)
    if not width:
        return None
    return TaskDecoder(form, limit_s, width, batch_rows, profile.decode_labels)


def _cpus_of_pool(profile: Profile) -> float:
    import ray

    wanted = (profile.decode_labels or {}).items()
    nodes = (
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and wanted <= node.get("Labels", {}).items()
    )
    return sum(float(resources.get("CPU", 0)) for resources in nodes)


class TaskDecoder:
    """Decodes in Ray tasks of one CPU each; made inside an actor.

    Args:
        form: what is made of each picture.
        limit_s: seconds that decoding a picture may take.
        width: tasks at once.
        batch_rows: pictures to a batch, a power of two.
        labels: only nodes that have these decode.
    """

    def __init__(
        self,
        form: DecodeForm,
        limit_s: float,
        width: int,
        batch_rows: int,
        labels: dict[str, str] | None,
    ) -> None:
        import ray

        task = ray.remote(
            num_cpus=1, max_retries=0, scheduling_strategy="SPREAD", label_selector=labels or {}
        )
        self.width = width
        # As any: stubs of Ray take a function with a default for one without arguments.
        self._decode: Any = task(_decode)
        self._find_fatal: Any = task(find_fatal)
        self._form, self._limit_s, self._batch_rows = form, limit_s, batch_rows

    def batches(self, rows: Sequence[ShardRow], crashed: frozenset[int]) -> Iterator[list[Decoded]]:
        """See `Decoder`."""
        found = in_order(
            lambda piece: self._begin(piece, crashed),
            lambda piece, begun: self._result(piece, begun, crashed),
            in_pieces(rows, min(TASK_ROWS, self._batch_rows)),
            self.width,
        )
        return in_batches(found, self._batch_rows)

    def _begin(self, piece: Sequence[ShardRow], crashed: frozenset[int]) -> Any:
        ready = read_tables(piece, crashed)
        return self._decode.remote(self._form, self._limit_s, crashed, piece, ready)

    def _result(
        self, piece: Sequence[ShardRow], begun: Any, crashed: frozenset[int]
    ) -> list[Decoded]:
        """What a task found; if its worker died, what the next finds, without who is to blame."""
        from ray import get
        from ray.exceptions import RayError, RayTaskError

        for _ in range(MAX_TRIES):
            try:
                found: list[Decoded] = get(begun)
                return found
            except RayTaskError:
                raise
            except RayError as error:
                logger.warning("decoding %d to %d: %s", piece[0].id, piece[-1].id, error)
            with contextlib.suppress(RayError):
                crashed |= get(self._find_fatal.remote(piece, self._limit_s))
            begun = self._begin(piece, crashed)
        raise ValueError(
            f"pictures {piece[0].id} to {piece[-1].id}: the workers that decode them died "
            f"{MAX_TRIES} times, and none of these pictures is to blame on its own. Memory may be "
            "short: lower decode_tasks in ray_config.yaml."
        )


@functools.cache
def _limit_of(seconds: float) -> DecodeLimit:
    return DecodeLimit(seconds)


def _decode(
    form: DecodeForm,
    limit_s: float,
    crashed: frozenset[int],
    rows: Sequence[ShardRow],
    ready: dict[int, Read],
) -> list[Decoded]:
    return decode_rows(form, _limit_of(limit_s), crashed, rows, ready)
