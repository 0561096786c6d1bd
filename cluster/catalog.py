"""The corpus artefact: the pictures there are, each with an id that never changes its meaning.

A catalog is a sequence of immutable Parquet parts. Later rows override earlier ones of the same
id, so a scan that finds changes appends one small part. A picture whose file changed gets a new
id, and its old id becomes ``replaced``; one that is gone becomes ``vanished``, and has its id back
when it returns unchanged.

A long scan writes its parts as it goes. Until it publishes them, a second door, ``scan.json``,
names them, so that a scan that was killed goes on from there.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.workspace import Workspace
from index.artifact import (
    ArtifactError,
    FileRecord,
    Folder,
    digest,
    library_versions,
    open_door,
    publish,
)

__all__ = ["CATALOG_SCHEMA", "GONE", "Catalog", "CatalogRow", "CatalogWriter", "open_corpus"]

logger = logging.getLogger(__name__)

GONE = ("replaced", "vanished")
"""Statuses of ids whose file is no longer there."""
DRAFT = "scan.json"
DRAFT_ROWS = 20_000

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
        return cls(door, _newest_rows(_read_parts(folder, door["files"])))

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
        taken = self.table.take(self.positions(ids)).to_pylist()
        return [CatalogRow(**row) for row in taken]

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
        return cast("list[str | None]", self.table["label"].take(self.positions(ids)).to_pylist())

    def counts(self) -> dict[str, int]:
        """Number of pictures by status."""
        counted = pc.value_counts(self.table["status"]).to_pylist()
        return {
            item["values"]: item["counts"] for item in sorted(counted, key=lambda i: i["values"])
        }

    def by_uri(self) -> Iterator[CatalogRow]:
        """Rows that stand for a file that was there at the last scan."""
        yield from _as_rows(self.table.filter(~pc.field("status").isin(list(GONE))))

    def bad(self, limit: int) -> list[CatalogRow]:
        """The first pictures that are there and cannot be worked on."""
        statuses = ["ok", *GONE]
        return list(_as_rows(self.table.filter(~pc.field("status").isin(statuses)).slice(0, limit)))


def open_corpus(workspace: Workspace, name: str) -> Catalog:
    """A corpus of a workspace, by name; ``MissingArtifactError`` says how to make it."""
    make = f"lookalike scan FOLDER --corpus {name}"
    return Catalog.open(workspace.require("corpora", name, door="corpus.json", make=make))


def _as_rows(table: pa.Table) -> Iterator[CatalogRow]:
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield CatalogRow(**row)


def _read_parts(folder: Folder, names: Iterable[str]) -> pa.Table:
    tables = [
        pq.read_table(f"{folder.path}/{name}", filesystem=folder.fs, schema=CATALOG_SCHEMA)
        for name in names
    ]
    return pa.concat_tables([CATALOG_SCHEMA.empty_table(), *tables])


def _newest_rows(table: pa.Table) -> pa.Table:
    ids = table["id"].to_numpy()
    # Stable sort: among equal ids the last written stays last.
    order = np.argsort(ids, kind="stable")
    newest = np.append(ids[order][1:] != ids[order][:-1], True) if len(ids) else order.astype(bool)
    return table.take(order[newest])


class CatalogWriter:
    """Collects what one scan finds, and publishes it as further parts.

    One writer at a time: hold `index.lock.sole_writer` from before this is made.

    Args:
        folder: the corpus folder.
        name: the corpus' name.
        config: settings of the scan; a killed scan with the same ones is gone on with.
        previous: the catalog as it was, or None for a first scan.
    """

    def __init__(
        self, folder: Folder, name: str, config: dict[str, Any], previous: Catalog | None
    ) -> None:
        self._folder = folder
        self._name = name
        self._config = config
        self._previous = previous
        self._rows: list[dict[str, Any]] = []
        self._parts: dict[str, FileRecord] = dict(previous.door["files"]) if previous else {}
        self._parts |= self._drafted()
        self._folder.remove_others("catalog-", keep=self._parts)
        self._table = _newest_rows(_read_parts(folder, self._parts))
        self._uid = previous.uid if previous else uuid.uuid4().hex
        self.next_id = int(self._table["id"][-1].as_py()) + 1 if len(self._table) else 0

    def _drafted(self) -> dict[str, FileRecord]:
        """Parts that a killed scan of the same kind wrote on top of ``previous``."""
        try:
            draft = open_door(self._folder, "scan") if self._folder.exists(DRAFT) else None
        except ArtifactError as error:
            logger.warning("the unfinished scan is not gone on with: %s", error)
            return {}
        if draft is None or (draft["config"], draft["parents"]) != (self._config, self._parents):
            return {}
        return dict(draft["files"])

    @property
    def _parents(self) -> dict[str, str | None]:
        return {"corpus_id": self._previous.corpus_id if self._previous else None}

    def known_rows(self) -> Iterator[CatalogRow]:
        """The newest row of every file, also of those that have vanished."""
        yield from _as_rows(self._table.filter(pc.field("status") != "replaced"))

    @property
    def num_known(self) -> int:
        """Ids given so far, in all scans."""
        return self.next_id

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a new picture; its id is the next free one."""
        self._append({**row, "id": self.next_id})
        self.next_id += 1

    def override(self, known: CatalogRow, row: Mapping[str, Any]) -> bool:
        """Say something else of a picture that keeps its id; returns whether it is anything new."""
        new = {**dict.fromkeys(CATALOG_SCHEMA.names), **row, "id": known.id}
        if new == asdict(known):
            return False
        self._append(new)
        return True

    def retire(self, row: CatalogRow, status: str) -> None:
        """Override an older row's status with ``replaced`` or ``vanished``."""
        self._append({**asdict(row), "status": status})

    def _append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= DRAFT_ROWS:
            self._write_part()
            body = {"config": self._config, "parents": self._parents}
            publish(self._folder, "scan", body, self._new_parts)

    @property
    def _new_parts(self) -> dict[str, FileRecord]:
        published = self._previous.door["files"] if self._previous else {}
        return {name: part for name, part in self._parts.items() if name not in published}

    def _write_part(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=CATALOG_SCHEMA)
        part = f"catalog-{len(self._parts):05d}-{uuid.uuid4().hex[:8]}.parquet"
        self._parts[part] = self._folder.write_hashed(
            part, lambda path: pq.write_table(table, path)
        )
        self._rows = []

    def publish(self) -> None:
        """Rename the new door into place, if there is anything new."""
        if self._rows:
            self._write_part()
        if self._new_parts:
            everything = _newest_rows(_read_parts(self._folder, self._parts))
            body = {
                "id": digest([self._uid, [part["sha256"] for part in self._parts.values()]]),
                "uid": self._uid,
                "name": self._name,
                "config": self._config,
                "parents": {},
                "rows": {
                    "total": everything.num_rows,
                    **Catalog({"name": self._name}, everything).counts(),
                },
                "versions": library_versions("pyarrow", "pillow"),
            }
            publish(self._folder, "corpus", body, self._parts)
        self._folder.remove(DRAFT)
