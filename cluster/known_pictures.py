"""What a corpus knows of its pictures while it is scanned again, in columns of numbers.

A URI is known by 128 bits of its hash, its content and its metadata by 64: two that differ are
taken for one another once in some 10^24 scans of ten million pictures, or for unchanged once in
10^12. Rows themselves stay in the catalog's parts, and are read again when they are overridden.

Memory: some 100 bytes at the peak for each picture known before the scan, 45 for each new one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.catalog import CATALOG_SCHEMA, GONE, newest_positions
from cluster.picture_uri import identity
from index.folder import Folder

__all__ = ["KnownPictures", "UriIndex", "content_of", "facts_of", "uri_keys"]

READ_ROWS = 4096
MAX_RUN = 1 << 21
MAX_PARTS = 2
UNKNOWN_CONTAINER = -1

Keys = NDArray[np.uint64]
Ids = NDArray[np.int64]


def uri_keys(uris: Iterable[str]) -> Keys:
    """128 bits of the hash of each picture's identity: uint64 ``[N, 2]``."""
    hashes = [hashlib.blake2b(identity(uri).encode(), digest_size=16).digest() for uri in uris]
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)


def content_of(row: Mapping[str, Any]) -> int:
    """64 bits that differ when a picture's content does: of its hash, else of size and time."""
    stated = row.get("content_hash")
    return _hash64(stated or (row["bytes"], row["mtime_ns"]))


def facts_of(row: Mapping[str, Any], fields: Iterable[str]) -> int:
    """64 bits that differ when anything else does that the source says of a picture."""
    place = (row["uri"], row["mtime_ns"]) if row.get("content_hash") else ()
    return _hash64((*place, row["label"], *(_plain(row.get(name)) for name in fields)))


def _plain(value: object) -> object:
    """The value with one form for each moment: UTC has several classes, each with its own text."""
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _hash64(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little")


class UriIndex:
    """Keys of URIs to ids, in sorted runs that are merged as they grow.

    Memory: 24 bytes a key. Cost: a binary search in each run, of which there are few.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64], Ids]] = []

    def add(self, keys: Keys, ids: Ids) -> None:
        """Take more keys uint64 ``[N, 2]``, none of them known, with their ids."""
        run = _sorted_run(keys[:, 0], keys[:, 1], ids)
        while self._runs and len(self._runs[-1][2]) <= len(run[2]) < MAX_RUN:
            before = self._runs.pop()
            run = _sorted_run(*(np.concatenate(pair) for pair in zip(before, run, strict=True)))
        self._runs.append(run)

    def find(self, keys: Keys) -> Ids:
        """Ids of the keys, -1 where unknown."""
        found = np.full(len(keys), -1, np.int64)
        for high, low, ids in self._runs:
            positions = np.searchsorted(high, keys[:, 0])
            open_ = np.arange(len(keys))
            # Almost always one step: keys of equal first halves are rarer than one in 10^5 scans.
            while len(open_):
                open_ = open_[positions[open_] < len(high)]
                open_ = open_[high[positions[open_]] == keys[open_, 0]]
                same = low[positions[open_]] == keys[open_, 1]
                found[open_[same]] = ids[positions[open_[same]]]
                open_ = open_[~same]
                positions[open_] += 1
        return found


def _sorted_run(
    high: NDArray[np.uint64], low: NDArray[np.uint64], ids: Ids
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], Ids]:
    order = np.argsort(high, kind="stable")
    return high[order], low[order], ids[order]


class KnownPictures:
    """The newest row of every id of a catalog, as numbers; and the rows themselves on demand.

    Args:
        folder: the corpus.
        parts: names of the catalog's parts, in order.
        schema: of the catalog.
    """

    def __init__(self, folder: Folder, parts: list[str], schema: pa.Schema) -> None:
        self._folder, self._parts, self._schema = folder, parts, schema
        self.metadata = schema.names[len(CATALOG_SCHEMA) :]
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self.index = UriIndex()
        self.containers: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        lengths: list[int] = []

        def ids_of_parts() -> Iterator[NDArray[np.int64]]:
            for name in parts:
                ids = self._read(name, pa.schema([schema.field("id")]))["id"].to_numpy()
                lengths.append(len(ids))
                yield ids

        self._newest = newest_positions(ids_of_parts())
        self._starts = np.cumsum([0, *lengths])
        num = len(self._newest)
        self.content = np.zeros(num, np.uint64)
        self.facts = np.zeros(num, np.uint64)
        self.pixels = np.zeros(num, np.int64)
        self.is_ok = np.zeros(num, bool)
        self.is_there = np.zeros(num, bool)
        self.has_bytes = np.zeros(num, bool)
        self.container = np.full(num, UNKNOWN_CONTAINER, np.int32)
        for number in range(len(parts)):
            self._load(number)

    def __len__(self) -> int:
        return len(self._newest)

    def rows(self, ids: Ids) -> dict[int, dict[str, Any]]:
        """The newest rows of ids, by id. Cost: reads each part that holds one of them."""
        positions = self._newest[ids]
        which = np.searchsorted(self._starts, positions, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for part in np.unique(which):
            table = self._part(int(part))
            taken = table.take(positions[which == part] - self._starts[part])
            found |= {row["id"]: row for row in taken.to_pylist()}
        return found

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        return pq.read_table(
            f"{self._folder.path}/{name}", filesystem=self._folder.fs, schema=schema
        ).combine_chunks()

    def _part(self, number: int) -> pa.Table:
        if number not in self._cache:
            self._cache[number] = self._read(self._parts[number], self._schema)
            if len(self._cache) > MAX_PARTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def _load(self, number: int) -> None:
        """Take the numbers of a part's rows that no later row overrides."""
        table = self._part(number)
        for first in range(0, len(table), READ_ROWS):
            batch = table.slice(first, READ_ROWS)
            ids = batch["id"].to_numpy()
            start = self._starts[number] + first
            current = self._newest[ids] == np.arange(start, start + len(ids))
            rows = batch.filter(pa.array(current)).to_pylist()
            self._take(rows)

    def _take(self, rows: list[dict[str, Any]]) -> None:
        self.counts.update(row["status"] for row in rows)
        ids = np.array([row["id"] for row in rows], np.int64)
        self.content[ids] = [content_of(row) for row in rows]
        self.facts[ids] = [facts_of(row, self.metadata) for row in rows]
        self.pixels[ids] = [(row["width"] or 0) * (row["height"] or 0) for row in rows]
        self.is_ok[ids] = [row["status"] == "ok" for row in rows]
        self.is_there[ids] = [row["status"] not in GONE for row in rows]
        self.has_bytes[ids] = [row["bytes"] is not None for row in rows]
        self.container[ids] = [self._container(row["uri"]) for row in rows]
        living = [row for row in rows if row["status"] != "replaced"]
        if living:
            self.index.add(
                uri_keys(row["uri"] for row in living),
                np.array([row["id"] for row in living], np.int64),
            )

    def _container(self, uri: str) -> int:
        if uri.startswith("/") or "#" not in uri:
            return UNKNOWN_CONTAINER
        file = uri.partition("#")[0]
        return self.containers.setdefault(file, len(self.containers))
