"""The bytes of a picture, wherever they lie: the only way that pictures are read.

What was scanned is compared with what is there now, so that a file that changed under a catalog is
noticed. Files and members of tars are read in one piece. Rows of tables are read in the order in
which a shard asks for them, a few at a time: a `_Rows` goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.file_walk import mtime_ns_of
from cluster.picture_uri import PictureUri, Place, place_of

__all__ = [
    "BATCH_BYTES",
    "BATCH_ROWS",
    "MAX_BYTES",
    "ChangedError",
    "column_of",
    "open_arrow",
    "open_parquet",
    "read_bytes",
]

MAX_BYTES = 1 << 30
"""Larger files are ``too_large`` and not read: 100 million pixels of 64 bits are 0.8 GB."""
BATCH_ROWS = 32
BATCH_BYTES = 8 << 20
BUFFER_BYTES = 4 << 20
MAX_OPEN = 8
RECHECK_S = 10.0
SECOND_NS = 1_000_000_000


class ChangedError(ValueError):
    """What lies there is not what was scanned."""


def read_bytes(uri: str, num_bytes: int | None, mtime_ns: int | None) -> bytes:
    """A picture's bytes, if they are those that were scanned.

    Args:
        uri: as in a catalog.
        num_bytes: the picture's size when it was scanned.
        mtime_ns: when its file was last modified, as of the scan.

    Raises:
        ChangedError: size or time differ.
        OSError: it is not there, or cannot be read now.
        ValueError: no such URI, or a container that is damaged.
    """
    if uri.startswith("/"):
        return _read_file(uri, num_bytes, mtime_ns)
    wanted = PictureUri.parse(uri)
    place = place_of(wanted.file)
    if wanted.kind in ("parquet", "arrow"):
        data = _TABLES.rows(wanted).get(wanted.start, mtime_ns)
    else:
        with place.fs.open_input_file(place.path) as file:
            _require_same_time(_mtime_ns(place, file), mtime_ns, place)
            whole = wanted.kind == "file"
            if whole and file.size() != num_bytes:
                raise ChangedError(f"{uri}: {file.size()} bytes, scanned with {num_bytes}")
            data = file.read() if whole else file.read_at(wanted.size, wanted.start)
            if place.is_local:  # where others may have written into it meanwhile
                _require_same_time(_modified_ns(place), mtime_ns, place)
    if len(data) != num_bytes:
        raise ChangedError(f"{uri}: {len(data)} bytes, scanned with {num_bytes}")
    return bytes(data)


def _read_file(path: str, num_bytes: int | None, mtime_ns: int | None) -> bytes:
    # Without waiting, since a pipe may lie there by now; and not by way of a file object, which
    # takes twice as long for a small picture.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = _require_as_scanned(descriptor, path, (num_bytes, mtime_ns))
        pieces = []
        while piece := os.read(descriptor, max(1, size)):
            pieces.append(piece)
        # Others may have written into it meanwhile.
        _require_as_scanned(descriptor, path, (num_bytes, mtime_ns))
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _require_as_scanned(descriptor: int, path: str, scanned: tuple[int | None, int | None]) -> int:
    """The size of an open file, if it and the time are those of the scan."""
    found = os.fstat(descriptor)
    if (found.st_size, mtime_ns_of(found)) != scanned:
        raise ChangedError(f"{path}: changed since it was scanned")
    return found.st_size


def _mtime_ns(place: Place, file: pa.NativeFile) -> int | None:
    """When a file was last modified; an object store says so as it opens it."""
    stated = file.metadata().get(b"Last-Modified")
    if stated is not None:
        with contextlib.suppress(ValueError):
            return int(datetime.fromisoformat(stated.decode()).timestamp()) * SECOND_NS
    return _modified_ns(place)


def _modified_ns(place: Place) -> int | None:
    """When a file was last modified, as a scan sees it; ``FileNotFoundError`` for none."""
    if place.is_local:
        return mtime_ns_of(os.stat(place.path))  # noqa: PTH116 - for each row of a table
    info = place.fs.get_file_info(place.path)
    if not info.is_file:
        raise FileNotFoundError(f"{place.path}: not there")
    modified: int | None = info.mtime_ns
    return modified


def _require_same_time(found_ns: int | None, scanned_ns: int | None, place: Place) -> None:
    if found_ns is None or scanned_ns is None:
        return
    # Object stores state whole seconds in one answer, and finer parts in another.
    unit = 1 if place.is_local else SECOND_NS
    if found_ns // unit != scanned_ns // unit:
        raise ChangedError(f"{place.path}: changed since it was scanned")


def open_parquet(
    place: Place, columns: list[str] | None, *, first_row: int = 0, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Row number and batch, from the row group that holds ``first_row`` on.

    Memory: some megabytes for each column, and a batch of about 8 MiB or a row; never a row group.
    """
    with (
        place.fs.open_input_file(place.path) as source,
        pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False) as file,
    ):
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        first = max(0, int(np.searchsorted(starts, first_row, side="right")) - 1)
        row = int(starts[min(first, len(groups))])
        row_bytes = max(
            (group.total_byte_size // max(1, group.num_rows) for group in groups[first:]), default=0
        )
        fit = BATCH_BYTES // max(1, row_bytes)
        for batch in file.iter_batches(
            max(1, min(batch_rows, fit)),
            row_groups=range(first, len(groups)),
            columns=columns,
            use_threads=False,
        ):
            yield row, batch
            row += len(batch)


def _row_groups(place: Place) -> list[int]:
    """The first row of each row group of a Parquet file."""
    with place.fs.open_input_file(place.path) as source:
        metadata = pq.read_metadata(source)
    counts = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    return list(accumulate(counts, initial=0))[:-1]


def open_arrow(place: Place) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Row number and batch of an Arrow file or stream; a local one is memory-mapped."""
    local = place.is_local
    with pa.memory_map(place.path) if local else place.fs.open_input_file(place.path) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        batches: Any = pa.ipc.open_stream(source)
        if is_file:
            reader = pa.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        row = 0
        for batch in batches:
            yield row, batch
            row += len(batch)


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of a batch by name, or a struct's field by ``COLUMN.FIELD``, at any depth.

    Raises:
        ValueError: there is none, or more than one.
    """
    if (count := batch.schema.names.count(name)) > 1:
        raise ValueError(
            f"column {name!r}: {count} columns have this name, so it is not known which is meant. "
            "Write the table with another name for each."
        )
    if name in batch.schema.names:
        return batch.column(name)
    column, _, field = name.rpartition(".")
    if column:
        with contextlib.suppress(ValueError, pa.ArrowException):
            return pc.struct_field(column_of(batch, column), field)
    raise ValueError(
        f"column {name!r}: not there. Columns are {', '.join(batch.schema.names)}. Give one."
    )


class _Rows:
    """One column of one file, read on from row to row; thread-safe.

    Rows that are asked for in about their order are read once: the batch before the newest is kept
    too. A row further back starts the reading anew, so threads that share out many rows have them
    read in order for them (`cluster.read_ahead`). Whole row groups on the way are passed over.
    """

    def __init__(self, wanted: PictureUri) -> None:
        self._wanted = wanted
        self._place = place_of(wanted.file)
        self._lock = threading.Lock()
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._window: list[tuple[int, pa.Array]] = []
        self._groups: list[int] = []
        self._mtime_ns: int | None = None
        self._checked_s = -RECHECK_S

    def get(self, row: int, mtime_ns: int | None) -> bytes:
        """The value of a row; no bytes for null."""
        with self._lock:
            self._check(mtime_ns)
            value = self._find(row)
            self._check(mtime_ns)  # others may have written into it meanwhile
            return b"" if value is None else bytes(value)

    def _check(self, mtime_ns: int | None) -> None:
        now_s = time.monotonic()
        if self._place.is_local or now_s - self._checked_s >= RECHECK_S:
            modified_ns = _modified_ns(self._place)
            if modified_ns != self._mtime_ns:
                self._window, self._groups = [], []
            self._mtime_ns, self._checked_s = modified_ns, now_s
        _require_same_time(self._mtime_ns, mtime_ns, self._place)

    def _find(self, row: int) -> bytes | None:
        if not self._window or row < self._window[0][0] or self._is_far_ahead(row):
            self._start_at(row)
        while True:
            for first, values in self._window:
                if first <= row < first + len(values):
                    value: bytes | None = values[row - first].as_py()
                    return value
            newest = self._window[-1:]
            self._window = []  # so that whatever goes wrong, the next row is looked for anew
            try:
                first, batch = next(self._batches)
            except StopIteration:
                raise ChangedError(f"{self._wanted.file}: has no row {row}") from None
            self._window = [*newest, (first, column_of(batch, self._wanted.name))]

    def _is_far_ahead(self, row: int) -> bool:
        first, values = self._window[-1]
        return bisect(self._groups, row) - bisect(self._groups, first + len(values)) > 1

    def _start_at(self, row: int) -> None:
        self._window = []
        if self._wanted.kind == "arrow":
            self._batches = open_arrow(self._place)
        else:
            self._groups = self._groups or _row_groups(self._place)
            self._batches = open_parquet(self._place, [self._wanted.name], first_row=row)


class _Tables:
    """The tables that this process reads from, the last few of them kept open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], _Rows] = OrderedDict()

    def rows(self, wanted: PictureUri) -> _Rows:
        """The column that a picture lies in."""
        key = (wanted.file, wanted.name)
        with self._lock:
            if key not in self._open:
                self._open[key] = _Rows(wanted)
                if len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]


_TABLES = _Tables()
