"""A corpus cut into shards, and the plan of them that workers read.

A shard's name carries a digest of what goes in: the job's key and the rows' id, place, size and
time. So the same work has the same name in every run, and a grown corpus changes only the last.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.catalog import Catalog
from index.artifact import CorruptArtifactError, digest
from index.folder import Folder

__all__ = [
    "PLAN",
    "PLAN_SCHEMA",
    "SHARD_FOLDER",
    "Plan",
    "Shard",
    "ShardRow",
    "plan_shards",
    "plan_tag",
    "write_plan",
]

SHARD_FOLDER = "shards"
PLAN = "plan-"
"""Start of the names of plans; they are needed while a job runs, and no longer."""
PLAN_SCHEMA = pa.schema(
    [("id", pa.int64()), ("uri", pa.string()), ("bytes", pa.int64()), ("mtime_ns", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One picture of a plan: its id, where it lies, and how it looked when it was scanned."""

    id: int
    uri: str
    bytes: int
    mtime_ns: int


class Shard:
    """A piece of work: its rows, and the name that its results get.

    Memory: none for its rows: they stay slices of the catalog, and are picked out when asked for.

    Args:
        number: position in the plan; ids ``number * shard_rows`` and up.
        key: digest of everything beside the rows that decides the result.
        rows: the pictures in `PLAN_SCHEMA`, ascending by id; with a column ``status``, only those
            that are ``ok`` count.
    """

    __slots__ = ("_num", "_slice", "key", "name", "number")

    def __init__(self, number: int, key: str, rows: pa.Table) -> None:
        self.number, self.key, self._slice = number, key, rows
        listed = [list(row) for row in self._rows()]
        self._num = len(listed)
        self.name = f"{number:05d}-{digest([key, listed])[:12]}"
        """Deterministic name of the result: the same work has the same name in every run."""

    @property
    def table(self) -> pa.Table:
        """The rows in `PLAN_SCHEMA`."""
        rows = self._slice
        if "status" in rows.column_names:
            rows = rows.filter(pc.field("status") == "ok")
        return rows.select(PLAN_SCHEMA.names)

    @classmethod
    def of(cls, number: int, key: str, rows: Iterable[ShardRow]) -> Shard:
        """The shard of these rows."""
        columns = list(
            zip(*([row.id, row.uri, row.bytes, row.mtime_ns] for row in rows), strict=True)
        )
        return cls(number, key, pa.table(list(map(list, columns)), schema=PLAN_SCHEMA))

    def __len__(self) -> int:
        return self._num

    @property
    def rows(self) -> tuple[ShardRow, ...]:
        """The rows as objects: for whoever works on them."""
        return tuple(ShardRow(*row) for row in self._rows())

    @property
    def num_bytes(self) -> int:
        """Of the pictures' files, as they were scanned."""
        return pc.sum(self.table["bytes"]).as_py() or 0

    @property
    def first_id(self) -> int:
        """The least id."""
        return int(self.table["id"][0].as_py())

    @property
    def last_id(self) -> int:
        """The greatest id."""
        return int(self.table["id"][-1].as_py())

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        return zip(*(column.to_pylist() for column in self.table.columns), strict=True)


def plan_shards(catalog: Catalog, *, key: str, shard_rows: int) -> list[Shard]:
    """Cut the corpus' readable pictures into shards of ``shard_rows`` consecutive ids."""
    columns = catalog.table.select([*PLAN_SCHEMA.names, "status"])
    numbers = columns["id"].to_numpy() // shard_rows
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = [*starts[1:], len(numbers)]
    shards = (
        Shard(int(numbers[start]), key, columns.slice(start, end - start))
        for start, end in zip(starts, ends, strict=True)
    )
    return [shard for shard in shards if len(shard)]


def write_plan(folder: Folder, shards: Sequence[Shard], retry: str | None = None) -> str:
    """Write what workers need to know of shards, a batch each; returns the file's name.

    A file of the artefact's folder, and not part of what is sent: that stays small for any corpus.
    ``retry`` is that of `cluster.retry`.
    """

    def write(path: str) -> None:
        schema = PLAN_SCHEMA.with_metadata({"key": shards[0].key, "retry": retry or ""})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with (
            pa.OSFile(path, "wb") as sink,
            pa.ipc.new_file(sink, schema, options=options) as writer,
        ):
            for shard in shards:
                writer.write_table(shard.table.combine_chunks().cast(PLAN_SCHEMA))

    # Of this driver alone: another's may be of the same shards, and end sooner.
    name = f"{PLAN}{uuid.uuid4().hex[:12]}-{{sha256}}.arrow"
    return (folder / SHARD_FOLDER).write_by_content(name, write)[0]


def plan_tag(name: str) -> str:
    """What tells a plan's driver from others, of the plan's file name.

    >>> plan_tag("plan-0123456789ab-ff.arrow")
    '0123456789ab'
    """
    return name.removeprefix(PLAN).partition("-")[0]


class Plan:
    """A plan that `write_plan` wrote, read a shard at a time.

    Raises:
        CorruptArtifactError: it is not what was written.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        home = folder / SHARD_FOLDER
        if f"-{home.sha256(name)[:12]}." not in name:
            raise CorruptArtifactError(
                f"{home}/{name}: changed since this job wrote it (sha256 differs). Run it again."
            )
        source = folder.fs.open_input_file(f"{folder.path}/{SHARD_FOLDER}/{name}")
        self._reader = pa.ipc.open_file(source)
        self._key = self._reader.schema.metadata[b"key"].decode()
        self.retry = self._reader.schema.metadata[b"retry"].decode() or None

    def shard(self, position: int, number: int) -> Shard:
        """The shard that was written as the ``position``-th."""
        batch = self._reader.get_batch(position)
        return Shard(number, self._key, pa.Table.from_batches([batch]))
