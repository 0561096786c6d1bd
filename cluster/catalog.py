"""The corpus artefact: the pictures there are, each with an id that never changes its meaning.

A catalog is a sequence of immutable Parquet parts. Later rows override earlier ones of the same
id, so a scan that finds changes appends one small part. A picture whose file changed gets a new
id, and its old id becomes ``replaced``; one that is gone becomes ``vanished``, and has its id back
when it returns unchanged.

Metadata of the source lies in columns of its own, whose names and types the door states.
`cluster.catalog_writer` writes it.

Memory: Arrow columns, and no Python object a row; some 190 bytes a picture beside its URI.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.columns import TYPES
from cluster.picture_uri import display_name, display_names
from cluster.workspace import Workspace
from index.artifact import by_number, open_door
from index.folder import Folder

__all__ = [
    "CATALOG_SCHEMA",
    "GONE",
    "Catalog",
    "CatalogRow",
    "bad_pictures",
    "catalog_schema",
    "column_types",
    "gone_ids",
    "newest_positions",
    "open_corpus",
]

GONE = ("replaced", "vanished")
"""Statuses of ids whose file is no longer there."""
BLOCK_ROWS = 65_536
MAX_PARTS = 4

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("label", pa.string()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("content_hash", pa.binary()),
    ]
)


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """One picture: where it lies and what a scan saw of it."""

    id: int
    uri: str
    bytes: int | None
    mtime_ns: int | None
    status: str
    error: str | None
    label: str | None
    format: str | None
    width: int | None
    height: int | None
    content_hash: builtins.bytes | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The picture's own name: what may be shown where a path may not."""
        return display_name(self.uri)


class Catalog:
    """A published corpus, opened for reading.

    Args:
        door: content of ``corpus.json``.
        table: the newest row of every id, sorted by id: `CATALOG_SCHEMA`, then metadata columns.
    """

    def __init__(self, door: dict[str, Any], table: pa.Table) -> None:
        self.door = door
        self.table = table

    @classmethod
    def open(cls, folder: Folder) -> Catalog:
        """Open and verify; raises the errors of `index.artifact.open_door`."""
        door = open_door(folder, "corpus")
        return cls(
            door, _newest_rows(folder, by_number(door["files"]), catalog_schema(door["config"]))
        )

    @property
    def corpus_id(self) -> str:
        """Changes with every change of the catalog."""
        return str(self.door["id"])

    @property
    def uid(self) -> str:
        """Stays the same for the life of the corpus: what labels belong to."""
        return str(self.door["uid"])

    @cached_property
    def ok(self) -> pa.Table:
        """Rows of the pictures that can be worked on, sorted by id."""
        is_ok = pc.equal(self.table["status"], "ok")
        # Nearly always all of them: nothing is copied then.
        return self.table if pc.all(is_ok).as_py() else self.table.filter(is_ok)

    @cached_property
    def named(self) -> pa.Table:
        """``table`` with a column ``name``, each picture's own unless the source has one."""
        table = self.table
        if "name" in table.column_names:
            return table
        return table.append_column("name", display_names(table["uri"]))

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.asarray(self.table["id"].to_numpy())

    def rows(self, ids: np.ndarray | list[int]) -> list[CatalogRow]:
        """Rows of the given ids in their order; ``KeyError`` names an id that never was."""
        return list(_as_rows(self._take(ids)))

    def _take(self, ids: np.ndarray | list[int]) -> pa.Table:
        """Rows of the ids, in their order; by chunks, since all their text may not fit in one."""
        positions = self.positions(ids)
        order = np.argsort(positions, kind="stable")
        starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        which = np.searchsorted(starts, positions[order], side="right") - 1
        pieces = [
            self._batches[chunk].take(positions[order][which == chunk] - starts[chunk])
            for chunk in np.unique(which)
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(pieces, self.table.schema).take(back)

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [batch for batch in self.table.to_batches() if len(batch)]

    def positions(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Row numbers in ``table`` of the given ids, in their order; ``KeyError`` as `rows`."""
        wanted = np.asarray(ids, dtype=np.int64)
        positions = np.searchsorted(self._ids, wanted)
        known = positions < len(self._ids)
        known[known] = self._ids[positions[known]] == wanted[known]
        if not known.all():
            raise KeyError(f"picture {wanted[~known][0]}: not in corpus {self.door['name']!r}")
        return positions

    def labels(self, ids: np.ndarray) -> list[str | None]:
        """Source labels of the given ids in their order; ``KeyError`` as from `rows`."""
        return cast("list[str | None]", self._take(ids)["label"].to_pylist())

    def counts(self) -> dict[str, int]:
        """Number of pictures by status."""
        counted = pc.value_counts(self.table["status"]).to_pylist()
        return {
            item["values"]: item["counts"] for item in sorted(counted, key=lambda i: i["values"])
        }

    def by_uri(self) -> Iterator[CatalogRow]:
        """Rows that stand for a file that was there at the last scan."""
        yield from _as_rows(self.table.filter(~pc.field("status").isin(list(GONE))))


def open_corpus(workspace: Workspace, name: str) -> Catalog:
    """A corpus of a workspace, by name; ``MissingArtifactError`` says how to make it."""
    make = f"lookalike scan FOLDER --corpus {name}"
    return Catalog.open(workspace.require("corpora", name, door="corpus.json", make=make))


def bad_pictures(folder: Folder, door: Mapping[str, Any], limit: int) -> list[dict[str, str]]:
    """The first pictures that are there and cannot be worked on: file, status and error.

    Memory: an id of each picture; unlike `Catalog.open`, not the rows.
    """
    parts = by_number(door["files"])
    of_ids = pa.schema([CATALOG_SCHEMA.field("id")])
    newest = newest_positions(_read_part(folder, name, of_ids)["id"].to_numpy() for name in parts)
    found: list[dict[str, Any]] = []
    start = 0
    columns = pa.schema([CATALOG_SCHEMA.field(name) for name in ("id", "uri", "status", "error")])
    for name in parts:
        table = _read_part(folder, name, columns)
        positions = np.arange(start, start + len(table))
        current = pa.array(newest[table["id"].to_numpy()] == positions)
        bad = pc.invert(pc.is_in(table["status"], pa.array(["ok", *GONE])))
        found += table.filter(pc.and_(current, bad)).slice(0, limit).to_pylist()
        start += len(table)
    return [
        {"file": row["uri"], "status": row["status"], "error": row["error"]}
        for row in sorted(found, key=lambda row: int(row["id"]))[:limit]
    ]


def gone_ids(folder: Folder, door: Mapping[str, Any]) -> np.ndarray:
    """int64 ids, rising, of pictures whose file is not there any more, or was replaced.

    Memory: a byte of each picture; unlike `Catalog.open`, not the rows.
    """
    is_gone = np.zeros(int(door["rows"]["total"]), np.bool_)
    for name in door["files"]:
        with folder.fs.open_input_file(f"{folder.path}/{name}") as source:
            # Without threads, whose pools keep tens of megabytes for as long as the process lives.
            for batch in pq.ParquetFile(source).iter_batches(
                BLOCK_ROWS, columns=["id", "status"], use_threads=False
            ):
                gone = pc.is_in(batch.column("status"), pa.array(GONE))
                # Among equal ids the last one stays.
                is_gone[batch.column("id").to_numpy()] = gone.to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_gone)


def catalog_schema(config: Mapping[str, Any]) -> pa.Schema:
    """The catalog's columns: its own, and the metadata columns that a scan's settings name."""
    metadata = [pa.field(name, TYPES[kind]) for name, kind in config.get("metadata", {}).items()]
    return pa.schema([*CATALOG_SCHEMA, *metadata])


def column_types(door: Mapping[str, Any]) -> dict[str, str]:
    """Types of all metadata columns that a corpus ever had: parts may still hold them."""
    return {**door.get("columns", {}), **door["config"].get("metadata", {})}


def _as_rows(table: pa.Table) -> Iterator[CatalogRow]:
    own = CATALOG_SCHEMA.names
    for batch in table.to_batches():
        for row in batch.to_pylist():
            metadata = {name: value for name, value in row.items() if name not in own}
            yield CatalogRow(**{name: row[name] for name in own}, metadata=metadata)


def newest_positions(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Position of the newest row of each id, by id, in all rows of all parts one after the other.

    Args:
        parts: int64 ids of each part; together every id from 0 on.

    Returns:
        int64 ``[num_ids]``.
    """
    newest, start, num_ids = np.zeros(0, np.int64), 0, 0
    for ids in parts:
        num_ids = max(num_ids, int(ids.max(initial=-1)) + 1)
        if num_ids > len(newest):
            more = max(num_ids, 2 * len(newest)) - len(newest)
            newest = np.concatenate([newest, np.full(more, -1, np.int64)])
        # Among equal ids the last one stays.
        newest[ids] = np.arange(start, start + len(ids))
        start += len(ids)
    return newest[:num_ids]


def _newest_rows(folder: Folder, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """The newest row of each id, sorted by id. Memory: the rows, and a few parts beside them."""
    of_ids = pa.schema([schema.field("id")])
    lengths: list[int] = []

    def ids_of_parts() -> Iterator[np.ndarray]:
        for name in names:
            ids = _read_part(folder, name, of_ids)["id"].to_numpy()
            lengths.append(len(ids))
            yield ids

    newest = newest_positions(ids_of_parts())
    starts = np.cumsum([0, *lengths])
    if len(newest) == starts[-1] and bool((np.diff(newest) > 0).all()):
        tables = [_read_part(folder, name, schema) for name in names]
        return pa.concat_tables([schema.empty_table(), *tables])
    part = lru_cache(MAX_PARTS)(lambda number: _read_part(folder, names[number], schema))
    blocks = [schema.empty_table()]
    for first in range(0, len(newest), BLOCK_ROWS):
        positions = newest[first : first + BLOCK_ROWS]
        positions = positions[positions >= 0]
        which = np.searchsorted(starts, positions, side="right") - 1
        taken = [
            part(int(number)).take(positions[which == number] - starts[number])
            for number in np.unique(which)
        ]
        back = np.empty(len(which), np.int64)
        back[np.argsort(which, kind="stable")] = np.arange(len(which))
        blocks.append(pa.concat_tables(taken).combine_chunks().take(back))
    return pa.concat_tables(blocks)


def _read_part(folder: Folder, name: str, schema: pa.Schema) -> pa.Table:
    path = f"{folder.path}/{name}"
    return pq.read_table(path, filesystem=folder.fs, schema=schema).combine_chunks()
