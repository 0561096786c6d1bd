"""The corpus artefact: the pictures there are, each with an id that never changes its meaning.

A catalog is a sequence of immutable Parquet parts. Later rows override earlier ones of the same
id, so a scan that finds changes appends one small part. A picture whose file changed gets a new
id, and its old id becomes ``replaced``; one that is gone becomes ``vanished``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.artifact import Folder, digest, library_versions, open_door, publish

__all__ = ["CATALOG_SCHEMA", "Catalog", "CatalogRow", "CatalogWriter"]

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

    @property
    def name(self) -> str:
        """The file's own name: what may be shown where a path may not."""
        return self.uri.rsplit("/", 1)[-1]


class Catalog:
    """A published corpus, opened for reading.

    Args:
        door: content of ``corpus.json``.
        table: the newest row of every id, sorted by id, in `CATALOG_SCHEMA`.
    """

    def __init__(self, door: dict[str, Any], table: pa.Table) -> None:
        self.door = door
        self.table = table

    @classmethod
    def open(cls, folder: Folder) -> Catalog:
        """Open and verify; raises the errors of `index.artifact.open_door`."""
        door = open_door(folder, "corpus")
        parts = [
            pq.read_table(f"{folder.path}/{name}", filesystem=folder.fs, schema=CATALOG_SCHEMA)
            for name in door["files"]
        ]
        return cls(door, _newest_rows(pa.concat_tables(parts)))

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
        return self.table.filter(pc.field("status") == "ok")

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.asarray(self.table["id"].to_numpy())

    def rows(self, ids: np.ndarray | list[int]) -> list[CatalogRow]:
        """Rows of the given ids in their order; ``KeyError`` names an id that never was."""
        wanted = np.asarray(ids, dtype=np.int64)
        positions = np.searchsorted(self._ids, wanted)
        known = positions < len(self._ids)
        known[known] = self._ids[positions[known]] == wanted[known]
        if not known.all():
            raise KeyError(f"picture {wanted[~known][0]}: not in corpus {self.door['name']!r}")
        return [CatalogRow(**row) for row in self.table.take(positions).to_pylist()]

    def labels(self, ids: np.ndarray) -> list[str | None]:
        """Source labels of the given ids in their order."""
        return [row.label for row in self.rows(ids)]

    def counts(self) -> dict[str, int]:
        """Number of pictures by status."""
        counted = pc.value_counts(self.table["status"]).to_pylist()
        return {
            item["values"]: item["counts"] for item in sorted(counted, key=lambda i: i["values"])
        }

    def by_uri(self) -> Iterator[CatalogRow]:
        """Rows that stand for a file that was there at the last scan."""
        gone = pc.is_in(self.table["status"], value_set=pa.array(["replaced", "vanished"]))
        for batch in self.table.filter(pc.invert(gone)).to_batches():
            for row in batch.to_pylist():
                yield CatalogRow(**row)


def _newest_rows(table: pa.Table) -> pa.Table:
    ids = table["id"].to_numpy()
    # Stable sort: among equal ids the last written stays last.
    order = np.argsort(ids, kind="stable")
    newest = np.append(ids[order][1:] != ids[order][:-1], True) if len(ids) else order.astype(bool)
    return table.take(order[newest])


class CatalogWriter:
    """Collects the rows of one scan and publishes them as one more part.

    Args:
        folder: the corpus folder.
        name: the corpus' name.
        previous: the catalog as it was, or None for a first scan.
    """

    def __init__(self, folder: Folder, name: str, previous: Catalog | None) -> None:
        self._folder = folder
        self._name = name
        self._previous = previous
        self._rows: list[dict[str, Any]] = []
        self.next_id = 0
        if previous is not None and len(previous.table):
            self.next_id = int(previous.table["id"][-1].as_py()) + 1

    def add(self, row: dict[str, Any]) -> None:
        """Add a new picture; its id is the next free one."""
        self._rows.append({**row, "id": self.next_id})
        self.next_id += 1

    def retire(self, row: CatalogRow, status: str) -> None:
        """Override an older row's status with ``replaced`` or ``vanished``."""
        values = {field: getattr(row, field) for field in CATALOG_SCHEMA.names}
        self._rows.append({**values, "status": status})

    @property
    def num_changes(self) -> int:
        """Rows that `publish` would append."""
        return len(self._rows)

    def publish(self, config: dict[str, Any], uid: str) -> None:
        """Write the part and rename the new door into place."""
        files = list(self._previous.door["files"]) if self._previous is not None else []
        table = pa.Table.from_pylist(self._rows, schema=CATALOG_SCHEMA)
        # Random, so that two scans at once cannot write into each other's part.
        part = f"catalog-{len(files):05d}-{uuid.uuid4().hex[:8]}.parquet"
        self._folder.make().write_with(part, lambda path: pq.write_table(table, path))
        files.append(part)
        everything = table
        if self._previous is not None:
            everything = pa.concat_tables([self._previous.table, table])
        newest = Catalog({"name": self._name}, _newest_rows(everything))
        body = {
            "id": digest([uid, [self._folder.sha256(name) for name in files]]),
            "uid": uid,
            "name": self._name,
            "config": config,
            "parents": {},
            "rows": {"total": newest.table.num_rows, **newest.counts()},
            "versions": library_versions("pyarrow", "pillow"),
        }
        publish(self._folder, "corpus", body, files)
