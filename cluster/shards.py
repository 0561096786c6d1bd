"""Work cut into shards, each finished exactly once: the protocol behind pixels and embeddings.

1. A *plan* cuts the corpus into shards by id, so that a grown corpus changes only its last shards.
2. A shard's name carries a digest of what goes in (the job's key and the rows' id, size and time)
and so of what comes out. 3. A worker writes the shard's files, then its *commit record*, one small
JSON; the record's rename is the commit point. 4. What has a valid record is never done again; what
has none is done from the start, by whichever run comes next. Two runs at once waste work but write
the same names.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa

from cluster.catalog import Catalog
from cluster.context import Context
from index.artifact import Folder, digest, write_json

__all__ = [
    "ErrorBudgetError",
    "Shard",
    "ShardActor",
    "ShardError",
    "ShardJob",
    "ShardRow",
    "ShardWork",
    "commit",
    "committed",
    "plan_shards",
    "read_picture",
]

logger = logging.getLogger(__name__)

SHARD_FOLDER = "shards"
BUDGET_AFTER_ROWS = 200
MAX_ATTEMPTS = 3
# Failures that are not the picture's: its shard is done again by the next run.
OUT_OF_REACH = {"changed", "missing"}


class ErrorBudgetError(ValueError):
    """So many pictures failed that something other than the pictures must be wrong."""


class ShardError(ValueError):
    """A worker could not do a shard; ``errno`` is that of the operating system's error, if any."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.errno = number


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One picture of a plan: its id, where it lies, and how it looked when it was scanned."""

    id: int
    uri: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of work: its rows, and the name that its results get.

    Args:
        number: position in the plan; ids ``number * shard_rows`` and up.
        key: digest of everything beside the rows that decides the result.
        rows: the pictures, ascending by id.
    """

    number: int
    key: str
    rows: tuple[ShardRow, ...]

    @property
    def name(self) -> str:
        """Deterministic name of the result: the same work has the same name in every run."""
        rows = [[row.id, row.uri, row.bytes, row.mtime_ns] for row in self.rows]
        return f"{self.number:05d}-{digest([self.key, rows])[:12]}"

    def to_json(self) -> str:
        """The shard as it travels to a worker."""
        rows = [[row.id, row.uri, row.bytes, row.mtime_ns] for row in self.rows]
        return json.dumps([self.number, self.key, rows])

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """The inverse of `to_json`."""
        number, key, rows = json.loads(text)
        return cls(number, key, tuple(ShardRow(*row) for row in rows))


def plan_shards(catalog: Catalog, *, key: str, shard_rows: int) -> list[Shard]:
    """Cut the corpus' readable pictures into shards of ``shard_rows`` consecutive ids."""
    columns = catalog.ok.select(["id", "uri", "bytes", "mtime_ns"])
    groups: dict[int, list[ShardRow]] = {}
    for batch in columns.to_batches():
        for row in batch.to_pylist():
            groups.setdefault(row["id"] // shard_rows, []).append(ShardRow(**row))
    return [Shard(number, key, tuple(rows)) for number, rows in sorted(groups.items())]


def commit(folder: Folder, shard: Shard, record: dict[str, Any]) -> dict[str, Any]:
    """Write a shard's commit record; from here on its work is done.

    Args:
        folder: the artefact's folder.
        shard: what was done.
        record: ``files`` (name to bytes and sha256), ``rows``, ``ok``, ``failed`` by status.
    """
    content = {"name": shard.name, "number": shard.number, **record}
    write_json(folder / SHARD_FOLDER, f"{shard.name}.json", content)
    return content


def committed(folder: Folder, shard: Shard) -> dict[str, Any] | None:
    """The shard's commit record if it is whole and its files are there, else None.

    Nor does it count while pictures were out of reach: a disk that was not mounted comes back.
    """
    name = f"{SHARD_FOLDER}/{shard.name}.json"
    if not folder.exists(name):
        return None
    try:
        record = json.loads(folder.read_bytes(name))
        whole = all(
            folder.size_bytes(file) == expected["bytes"]
            for file, expected in record["files"].items()
        ) and not OUT_OF_REACH & set(record["failed"])
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s/%s: unreadable commit record, the shard is done again", folder, name)
        return None
    return dict(record) if whole else None


def read_picture(row: ShardRow) -> tuple[str, bytes]:
    """Read a picture's bytes if the file is the one that was scanned.

    Returns:
        (status, bytes): ``ok``, or ``missing`` or ``changed`` with no bytes.
    """
    try:
        with Path(row.uri).open("rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != (row.bytes, row.mtime_ns):
                return "changed", b""
            return "ok", file.read()
    except OSError as error:
        logger.info("%s: %s", row.uri, error)
        return "missing", b""


class ShardWork(Protocol):
    """What an actor does with one shard: write its files, return its record (not yet committed)."""

    def __call__(self, shard: Shard) -> Mapping[str, Any]:
        """Do the work; the record's ``files`` are named from the artefact's folder on."""


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
        self._work = make_work(**arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do and commit each shard of the batch."""
        records = []
        for text in batch["shard"].to_pylist():
            shard = Shard.from_json(text)
            try:
                record = self._do(shard)
            except (ValueError, OSError) as error:
                # As data, since Ray keeps only the text of an exception's cause.
                record = {"error": str(error), "errno": getattr(error, "errno", None)}
            records.append(json.dumps(record))
        return pa.table({"record": records})

    def _do(self, shard: Shard) -> dict[str, Any]:
        started_s = time.monotonic()
        _count_attempt(self._folder, shard)
        record = self._work(shard)
        seconds = round(time.monotonic() - started_s, 3)
        done = commit(self._folder, shard, {**record, "seconds": seconds})
        self._folder.remove(_attempts_file(shard))
        return done


def _attempts_file(shard: Shard) -> str:
    return f"{SHARD_FOLDER}/{shard.name}.attempts"


def _count_attempt(folder: Folder, shard: Shard) -> None:
    """Refuse a shard that has taken several workers down with it; Ray would try it for ever."""
    name = _attempts_file(shard)
    attempts = int(folder.read_bytes(name)) if folder.exists(name) else 0
    if attempts >= MAX_ATTEMPTS:
        raise ValueError(
            f"shard {shard.name} in {folder}: its worker died {attempts} times. One of the "
            f"pictures {shard.rows[0].id} to {shard.rows[-1].id} kills its decoder, or memory is "
            "short. See their files in the catalog; move the culprit away and scan again, or "
            "lower --shard-rows."
        )
    folder.write_atomic(name, str(attempts + 1).encode())


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A plan and who works on it.

    Args:
        title: shown beside the progress.
        folder: the artefact's folder.
        shards: the whole plan.
        make_work: class of the `ShardWork`.
        arguments: its keyword arguments.
        error_budget: share of failed pictures at which the job stops.
    """

    title: str
    folder: Folder
    shards: list[Shard]
    make_work: Callable[..., ShardWork]
    arguments: dict[str, Any]
    error_budget: float

    def run(self, context: Context) -> list[dict[str, Any]]:
        """Finish what is missing; returns every shard's record in plan order.

        Raises:
            ErrorBudgetError: too many pictures failed. What is committed stays.
            ShardError: a worker could not read or write something other than a picture.
        """
        records = {shard.number: committed(self.folder, shard) for shard in self.shards}
        pending = [shard for shard in self.shards if records[shard.number] is None]
        if pending:
            self._finish(pending, records, context)
        return [record for record in records.values() if record is not None]

    def _finish(
        self, pending: list[Shard], records: dict[int, dict[str, Any] | None], context: Context
    ) -> None:
        num_rows = sum(len(shard.rows) for shard in self.shards)
        (self.folder / SHARD_FOLDER).make()
        for shard in pending:
            # Attempts of a run that was killed say nothing about the pictures.
            self.folder.remove(_attempts_file(shard))
        tally = _Tally(self.error_budget, self.title)
        with context.progress(self.title, num_rows, "pictures") as line:
            line.start_at(num_rows - sum(len(shard.rows) for shard in pending))
            for record in _distribute(self, pending, context):
                if "error" in record:
                    raise ShardError(record["error"], record["errno"])
                records[record["number"]] = record
                tally.add(record)
                line.advance(record["rows"], tally.note)


class _Tally:
    """Counts failures and stops the job when they are more than the budget allows."""

    def __init__(self, budget: float, title: str) -> None:
        self._budget = budget
        self._title = title
        self._rows = 0
        self._failed: Counter[str] = Counter()

    @property
    def note(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in self._failed.items())

    def add(self, record: Mapping[str, Any]) -> None:
        self._rows += record["rows"]
        self._failed.update(record["failed"])
        failed = self._failed.total()
        if self._rows >= BUDGET_AFTER_ROWS and failed > self._budget * self._rows:
            raise ErrorBudgetError(
                f"{self._title}: {failed} of {self._rows} pictures failed ({self.note}), more than "
                f"the {self._budget:.0%} allowed. If they moved or changed, run lookalike scan "
                "again; if the pictures are fine to lose, raise --error-budget."
            )


def _distribute(job: ShardJob, pending: list[Shard], context: Context) -> Iterator[dict[str, Any]]:
    """Records of the pending shards as Ray Data's actors finish them."""
    with context.ray() as profile:
        import ray

        table = pa.table({"shard": [shard.to_json() for shard in pending]})
        actors = min(profile.embed_actors, len(pending))
        done = ray.data.from_arrow([table.slice(i, 1) for i in range(len(pending))]).map_batches(
            ShardActor,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=profile.cpus_per_actor,
            num_gpus=profile.gpus_per_actor,
            label_selector=profile.data_labels,
            fn_constructor_kwargs={
                "location": context.workspace.location,
                "folder_path": job.folder.path,
                "make_work": job.make_work,
                "arguments": job.arguments,
            },
        )
        for batch in done.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            records = cast("pa.Table", batch)["record"]
            yield from map(json.loads, records.to_pylist())
