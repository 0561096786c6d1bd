"""Writes what one scan finds into a catalog, part by part, and publishes it.

A long scan writes its parts as it goes. Until it publishes them, a second door, ``scan.json``,
names them, so that a scan that was killed goes on from there.

Memory: the rows of one part, in Arrow but for the last few.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.catalog import catalog_schema, column_types
from cluster.known_pictures import Ids, KnownPictures
from index.artifact import (
    ArtifactError,
    MissingArtifactError,
    by_number,
    digest,
    library_versions,
    open_door,
    publish,
    read_door,
)
from index.folder import FileRecord, Folder

__all__ = ["CatalogWriter", "open_for_scan"]

logger = logging.getLogger(__name__)

DRAFT = "scan.json"
DRAFT_ROWS = 50_000
ARROW_ROWS = 1024


def open_for_scan(folder: Folder) -> dict[str, Any] | None:
    """The door of the corpus as it is, all its parts checked; None where there is none."""
    with contextlib.suppress(MissingArtifactError):
        return open_door(folder, "corpus")
    return None


class CatalogWriter:
    """Collects what one scan finds, and publishes it as further parts.

    One writer at a time: hold `index.lock.sole_writer` from before this is made. An object store
    has no locks: of two at once the one that would publish later is refused.

    Args:
        folder: the corpus folder.
        name: the corpus' name.
        config: settings of the scan; a killed scan with the same ones is gone on with.
        previous: the door as it was, or None for a first scan.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        config: dict[str, Any],
        previous: Mapping[str, Any] | None,
    ) -> None:
        self._folder = folder
        self._name = name
        self._config = config
        self._previous = previous
        self._schema = catalog_schema(config)
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._num_unwritten = 0
        self._parts: dict[str, FileRecord] = dict(previous["files"]) if previous else {}
        self._parts |= self._drafted()
        folder.remove_others("catalog-", keep=self._parts)
        self.known = KnownPictures(folder, by_number(self._parts), self._schema)
        self.counts = self.known.counts.copy()
        self.next_id = len(self.known)
        self._uid = previous["uid"] if previous else uuid.uuid4().hex

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
    def goes_on(self) -> bool:
        """Whether there are parts that no door names, such as those of a killed scan."""
        return bool(self._new_parts)

    @property
    def _parents(self) -> dict[str, str | None]:
        return {"corpus_id": self._previous["id"] if self._previous else None}

    def add(self, row: Mapping[str, Any]) -> int:
        """Add a new picture; returns its id, the next free one."""
        self._append({**row, "id": self.next_id}, None)
        self.next_id += 1
        return self.next_id - 1

    def override(self, known: Mapping[str, Any], row: Mapping[str, Any]) -> set[str]:
        """Say something else of a picture that keeps its id; returns the columns that differ."""
        new = {**dict.fromkeys(self._schema.names), **row, "id": known["id"]}
        # Of floats that are no numbers, which equal nothing, the text is the same.
        differing = {
            name
            for name, value in new.items()
            if value != known[name] and repr(value) != repr(known[name])
        }
        if differing:
            self._append(new, known["status"])
        return differing

    def retire(self, ids: Ids, status: str) -> None:
        """Override the status of ids with ``replaced`` or ``vanished``."""
        for row in self.known.rows(ids).values():
            self._append({**row, "status": status}, row["status"])

    def _append(self, row: dict[str, Any], before: str | None) -> None:
        self.counts[row["status"]] += 1
        if before is not None:
            self.counts[before] -= 1
        self._rows.append(row)
        if len(self._rows) >= ARROW_ROWS:
            self._to_arrow()
        self._num_unwritten += 1
        if self._num_unwritten >= DRAFT_ROWS:
            self._write_part()
            body = {"config": self._config, "parents": self._parents}
            publish(self._folder, "scan", body, self._new_parts)

    def _to_arrow(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    @property
    def _new_parts(self) -> dict[str, FileRecord]:
        published = self._previous["files"] if self._previous else {}
        return {name: part for name, part in self._parts.items() if name not in published}

    def _write_part(self) -> None:
        self._to_arrow()
        table = pa.concat_tables(self._tables)
        part = f"catalog-{len(self._parts):05d}-{uuid.uuid4().hex[:8]}.parquet"
        self._parts[part] = self._folder.write_hashed(
            part, lambda path: pq.write_table(table, path)
        )
        self._tables, self._num_unwritten = [], 0

    def publish(self, containers: Mapping[str, list[int | None]]) -> dict[str, Any]:
        """Rename the new door into place, if it states anything new; returns the door.

        Args:
            containers: size and time of the containers that have been read to their end.

        Raises:
            ValueError: in an object store, another scan published meanwhile.
        """
        if self._num_unwritten:
            self._write_part()
        door = self._previous
        if self._new_parts or door is None or self._states_other(door, containers):
            metadata = self._config.get("metadata", {})
            parts = [part["sha256"] for part in self._parts.values()]
            body = {
                "id": digest([self._uid, parts, *sorted(metadata.items())]),
                "uid": self._uid,
                "name": self._name,
                "config": self._config,
                "columns": {
                    **(column_types(self._previous) if self._previous else {}),
                    **metadata,
                },
                "parents": {},
                "rows": {
                    "total": self.next_id,
                    **{status: n for status, n in sorted(self.counts.items()) if n},
                },
                "containers": dict(sorted(containers.items())),
                "versions": library_versions("pyarrow", "pillow"),
            }
            door = publish(self._folder, "corpus", body, self._parts, unless=self._refuse_stale)
            self._folder.remove(DRAFT)
        return dict(door)

    def _states_other(
        self, door: Mapping[str, Any], containers: Mapping[str, list[int | None]]
    ) -> bool:
        """Whether a door differs in what it states of settings or containers."""
        return (door["config"], door.get("containers", {})) != (self._config, containers)

    def _refuse_stale(self) -> None:
        if self._folder.is_local:
            return
        now = None
        with contextlib.suppress(MissingArtifactError):
            now = read_door(self._folder, "corpus")["door_sha256"]
        if now != (self._previous["door_sha256"] if self._previous else None):
            raise ValueError(
                f"{self._folder}: another scan into this corpus ended while this one was under way "
                "(a bucket has no locks). Scan again: what that one found will be known."
            )
