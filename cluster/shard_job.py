"""The driver of sharded work: what is missing is spread over Ray Data actors, failures are counted.

The protocol itself is in `cluster.shards`.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from cluster.context import Context
from cluster.plan import PLAN, SHARD_FOLDER, Shard, write_plan
from cluster.retry import begin_retry, end_retry, is_outdated
from cluster.shard_actor import COUNTS, ShardActor, ShardError, ShardWork
from cluster.shards import committed
from index.folder import Folder

__all__ = ["ErrorBudgetError", "ShardJob", "check_error_budget"]

BUDGET_AFTER_ROWS = 200


def check_error_budget(share: float) -> None:
    """``ValueError`` unless it is a share of the pictures that may fail."""
    if not 0 <= share <= 1:
        raise ValueError(
            f"error_budget is {share}; it has to be a share from 0 to 1. Use 0.25 to stop the job "
            "when more than a quarter of the pictures fails."
        )


class ErrorBudgetError(ValueError):
    """So many pictures failed that something other than the pictures must be wrong."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A plan and who works on it.

    Args:
        title: shown beside the progress.
        folder: the artefact's folder.
        shards: the whole plan.
        make_work: class of the `ShardWork`.
        arguments: its keyword arguments; it is given the ``profile`` as well.
        error_budget: share of failed pictures at which the job stops.
        retry_failed: do shards again that have failed pictures; see `cluster.retry`.
    """

    title: str
    folder: Folder
    shards: list[Shard]
    make_work: Callable[..., ShardWork]
    arguments: dict[str, Any]
    error_budget: float
    retry_failed: bool = False

    def run(self, context: Context) -> list[dict[str, Any]]:
        """Finish what is missing; returns every shard's record in plan order.

        When nothing is missing, all files are read and compared with their sha256, so that running
        a finished job again mends what was damaged. Call it as `index.lock.sole_writer`.

        Raises:
            ErrorBudgetError: too many pictures failed. What is committed stays.
            ShardError: a worker could not read or write something other than a picture.
        """
        retry = begin_retry(self.folder, self.arguments) if self.retry_failed else None
        records = self._records(retry)
        pending = [shard for shard in self.shards if shard.number not in records]
        tally = _Tally(self.error_budget, self.title, records.values())
        if pending:
            self._finish(pending, retry, records, tally, context)
        tally.check()
        return [records[shard.number] for shard in self.shards]

    def _records(self, retry: str | None) -> dict[int, dict[str, Any]]:
        """Commit records of what is done, by number; those of no use are deleted."""
        found = {shard.number: committed(self.folder, shard) for shard in self.shards}
        records = {
            number: record
            for number, record in found.items()
            if record is not None and not is_outdated(record, retry)
        }
        if len(records) == len(self.shards):
            found = {shard.number: committed(self.folder, shard, "full") for shard in self.shards}
            records = {number: record for number, record in found.items() if record is not None}
        for shard in self.shards:
            if found[shard.number] is None:
                # If there is one, workers would take the shard for done.
                self.folder.remove(f"{SHARD_FOLDER}/{shard.name}.json")
        return records

    def _finish(
        self,
        pending: list[Shard],
        retry: str | None,
        records: dict[int, dict[str, Any]],
        tally: _Tally,
        context: Context,
    ) -> None:
        num_rows = sum(map(len, self.shards))
        home = (self.folder / SHARD_FOLDER).make()
        if home.is_local:  # where no other driver is at work
            for name in home.names():
                if name.startswith(PLAN) or name.endswith(COUNTS):
                    home.remove(name)
        plan = write_plan(self.folder, pending, retry)
        with self._removed(plan), context.progress(self.title, num_rows, "pictures") as line:
            line.start_at(num_rows - sum(map(len, pending)))
            for record in _distribute(self, pending, plan, context):
                if "error" in record:
                    raise ShardError(record["error"], record["errno"])
                records[record["number"]] = record
                tally.add(record)
                line.advance(record["rows"], tally.note)

    @contextlib.contextmanager
    def _removed(self, plan: str) -> Iterator[None]:
        """Remove a plan in the end, however that comes; what failed until then is what is said."""
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (self.folder / SHARD_FOLDER).remove(plan)

    def clear(self, *doors: Mapping[str, Any]) -> None:
        """Delete the files of shards that neither the plan nor any of the doors names.

        Give the door that was replaced as well as the new one: somebody may have it open. A retry
        ends here.
        """
        end_retry(self.folder)
        for name in self.others(*doors):
            (self.folder / SHARD_FOLDER).remove(name)

    def others(self, *doors: Mapping[str, Any]) -> set[str]:
        """Names of the files that `clear` would delete."""
        named = {file for door in doors for file in door["files"]}
        named |= {f"{SHARD_FOLDER}/{shard.name}.json" for shard in self.shards}
        keep = {name.removeprefix(f"{SHARD_FOLDER}/") for name in named}
        return set((self.folder / SHARD_FOLDER).settled_names()) - keep


class _Tally:
    """Counts failures and stops the job when they are more than the budget allows.

    Args:
        budget: share of the pictures that may fail.
        title: of the job.
        done: records of the shards that earlier runs committed.
    """

    def __init__(self, budget: float, title: str, done: Iterable[Mapping[str, Any]]) -> None:
        self._budget = budget
        self._title = title
        self._rows = 0
        self._failed: Counter[str] = Counter()
        for record in done:
            self._count(record)

    @property
    def note(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in self._failed.items())

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one more shard; early enough that little time is lost, not at the first picture."""
        self._count(record)
        if self._rows >= BUDGET_AFTER_ROWS:
            self.check()

    def _count(self, record: Mapping[str, Any]) -> None:
        self._rows += record["rows"]
        self._failed.update(record["failed"])

    def check(self) -> None:
        """Raise `ErrorBudgetError` if too large a share of what was counted failed."""
        failed = self._failed.total()
        if failed > self._budget * self._rows:
            raise ErrorBudgetError(
                f"{self._title}: {failed} of {self._rows} pictures failed ({self.note}), more than "
                f"the {self._budget:.0%} allowed. If they moved or changed, run lookalike scan "
                "again; if the pictures are fine to lose, raise --error-budget."
            )


def _distribute(
    job: ShardJob, pending: list[Shard], plan: str, context: Context
) -> Iterator[dict[str, Any]]:
    """Records of the pending shards as Ray Data's actors finish them."""
    with context.ray() as whole:
        import ray

        # Not from_arrow, which starts a task for each table to be told what it is.
        asked = [
            {"plan": plan, "position": position, "number": shard.number}
            for position, shard in enumerate(pending)
        ]
        num_bytes = sum(shard.num_bytes for shard in pending)
        profile = whole.for_work(sum(map(len, pending)), num_bytes, len(pending))
        done = ray.data.from_items(asked, override_num_blocks=len(asked)).map_batches(
            ShardActor,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=profile.embed_actors),
            num_cpus=profile.cpus_per_actor,
            num_gpus=profile.gpus_per_actor,
            label_selector=profile.data_labels,
            fn_constructor_kwargs={
                "location": context.workspace.location,
                "folder_path": job.folder.path,
                "make_work": job.make_work,
                "arguments": {**job.arguments, "profile": profile},
            },
        )
        # A shard may take hours; decoders have a limit of their own, and deaths are counted.
        done.context.execution_no_progress_timeout_s = -1
        for batch in done.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            records = cast("pa.Table", batch)["record"]
            yield from map(json.loads, records.to_pylist())
