"""What a source lists, against what the corpus knows: who is new, changed, returned or gone.

Listed pictures come in batches. Those that are as they were cost a look at columns of numbers; the
header of the others is read by a pool of threads, and their rows are written.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from cluster.catalog_writer import CatalogWriter
from cluster.known_pictures import UNKNOWN_CONTAINER, content_of, facts_of, uri_keys
from cluster.picture_bytes import MAX_BYTES
from cluster.picture_uri import Place, place_of
from cluster.sources import Container, Listed
from encoders.picture import PictureError, probe

__all__ = ["Comparison", "probe_row"]

NUM_THREADS = 8
PIECE = 16
BLOCK_ROWS = 8192
READING = 3
"""Raised with every change of what is listed of a container: those read before are read again."""
HEAD_BYTES = 64 << 10

Row = dict[str, Any]


class _Task(NamedTuple):
    """A picture whose header has to be read, and the id that it keeps, if any."""

    listed: Listed
    row: Row
    known_id: int | None


class Comparison:
    """Takes what a source lists, and tells the writer what differs.

    Args:
        writer: knows the corpus and receives what differs.
        max_pixels: pictures of this many pixels and more are ``too_large``.
        trusted: containers that the last scan with these settings has read to their end.
        look: reads a picture's header into its row; `probe_row` but in simulations.
    """

    def __init__(
        self,
        writer: CatalogWriter,
        max_pixels: float,
        trusted: Mapping[str, list[int | None]],
        look: Callable[[Listed, Row, float], Row] | None = None,
    ) -> None:
        self.tally = dict.fromkeys(("new", "changed", "returned", "unchanged", "vanished"), 0)
        self.num_twice = 0
        self.containers: dict[str, list[int | None]] = {}
        self._writer, self._known = writer, writer.known
        self._max_pixels, self._trusted = max_pixels, trusted
        self._look = look or probe_row
        self._seen = np.zeros(len(self._known), bool)
        self._unchanged: list[int] = []
        self._pool = ThreadPoolExecutor(NUM_THREADS)

    def is_unchanged(self, container: Container) -> bool:
        """Whether it is as the last scan read it; its pictures then count as seen."""
        stated = _stated(container)
        if self._trusted.get(container.uri) != stated:
            return False
        self.containers[container.uri] = stated
        if (code := self._known.containers.get(container.uri)) is not None:
            self._unchanged.append(code)
        return True

    def has_read(self, container: Container) -> None:
        """Note that all of it has been listed, and that it names no files beside itself."""
        self.containers[container.uri] = _stated(container)

    def take(self, batch: list[Listed]) -> None:
        """Compare a batch, and write what is not as the corpus knows it."""
        keys = uri_keys(listed.uri for listed in batch)
        ids = self._known.index.find(keys)
        replaced: list[int] = []
        tasks: list[_Task] = []
        fresh: list[int] = []
        in_batch: set[bytes] = set()
        for position, listed in enumerate(batch):
            known_id = int(ids[position])
            key = keys[position].tobytes()
            if key in in_batch or known_id >= len(self._seen) or self._was_seen(known_id):
                self.num_twice += 1
                continue
            in_batch.add(key)
            if listed.is_missing and known_id >= 0 and self._known.has_bytes[known_id]:
                continue  # as if it were not listed: it vanishes
            row = self._row(listed)
            if known_id >= 0:
                self._seen[known_id] = True
                if self._is_as_known(listed, row, known_id):
                    self.tally["unchanged"] += 1
                    continue
                if self._known.content[known_id] == content_of(row):
                    tasks.append(_Task(listed, row, known_id))
                    continue
                replaced.append(known_id)
            self.tally["changed" if known_id >= 0 else "new"] += 1
            fresh.append(position)
            tasks.append(_Task(listed, row, None))
        if replaced:
            self._writer.retire(np.array(replaced, np.int64), "replaced")
        added = self._write(tasks)
        # A changed picture's key still leads to its old id: seen, so listed twice all the same.
        new = [number for number, position in enumerate(fresh) if ids[position] < 0]
        if new:
            self._known.index.add(keys[[fresh[i] for i in new]], np.array(added)[new])

    def _was_seen(self, known_id: int) -> bool:
        return known_id >= 0 and bool(self._seen[known_id])

    def _row(self, listed: Listed) -> Row:
        values = dict(zip(self._known.metadata, listed.values, strict=True))
        row: Row = {
            "uri": listed.uri,
            "bytes": listed.num_bytes,
            "mtime_ns": listed.mtime_ns,
            "label": listed.label,
            **values,
        }
        if listed.data is not None:
            row["content_hash"] = hashlib.sha256(listed.data).digest()
        return row

    def _is_as_known(self, listed: Listed, row: Row, known_id: int) -> bool:
        known = self._known
        if listed.num_bytes is None and known.has_bytes[known_id]:
            # Out of reach for now, as on a disk with errors: what is known stays.
            return True
        return bool(
            known.is_ok[known_id]
            and (listed.num_bytes or 0) <= MAX_BYTES
            and known.pixels[known_id] < self._max_pixels
            and known.content[known_id] == content_of(row)
            and known.facts[known_id] == facts_of(row, known.metadata)
        )

    def _write(self, tasks: list[_Task]) -> list[int]:
        """Probe and write; returns the ids of those that are new."""
        pieces = [tasks[start : start + PIECE] for start in range(0, len(tasks), PIECE)]
        looked_at = chain.from_iterable(self._pool.map(self._look_at, pieces))
        kept = [task.known_id for task in tasks if task.known_id is not None]
        before = self._known.rows(np.array(kept, np.int64)) if kept else {}
        added: list[int] = []
        for task, row in zip(tasks, looked_at, strict=True):
            if task.known_id is None:
                added.append(self._writer.add(row))
            else:
                self._override(before[task.known_id], row)
        return added

    def _look_at(self, tasks: list[_Task]) -> list[Row]:
        return [self._look(task.listed, task.row, self._max_pixels) for task in tasks]

    def _override(self, known: Row, row: Row) -> None:
        differing = self._writer.override(known, row)
        if known["status"] == "vanished":
            self.tally["returned"] += 1
        elif differing <= {"uri", "mtime_ns"}:
            # As it was, or elsewhere in a container that was written anew.
            self.tally["unchanged"] += 1
        else:
            self.tally["changed"] += 1

    def retire_vanished(
        self, out_of_reach: tuple[str, ...], *, keep_files: bool, allow_most: bool, name: str
    ) -> None:
        """Mark what was not listed, but for what lies out of reach.

        Args:
            out_of_reach: starts of URIs below what could not be read.
            keep_files: whether that may have named any picture that is a file of its own.
            allow_most: whether more than half of the pictures may be gone.
            name: of the source, for the message.

        Raises:
            ValueError: more than half are gone.
        """
        known = self._known
        if self._unchanged:
            codes = np.array(self._unchanged, np.int32)
            whole = np.isin(known.container, codes) & known.is_there & ~self._seen
            whole &= known.container != UNKNOWN_CONTAINER
            self.tally["unchanged"] += int(whole.sum())
            self._seen |= whole
        is_gone = known.is_there & ~self._seen
        if keep_files:
            is_gone &= known.container != UNKNOWN_CONTAINER
        gone = np.flatnonzero(is_gone)
        if out_of_reach:
            gone = np.concatenate([np.zeros(0, np.int64), *self._in_reach(gone, out_of_reach)])
        num_present = int(known.is_there.sum())
        if len(gone) * 2 > num_present and not allow_most:
            (first,) = known.rows(gone[:1]).values()
            raise ValueError(
                f"{name}: {len(gone):,} of {num_present:,} pictures are gone, such as "
                f"{first['uri']}. Is a disk away? If they are meant to be gone, scan with "
                "--allow-vanished."
            )
        for block in _blocks(gone):
            self._writer.retire(block, "vanished")
        self.tally["vanished"] = len(gone)

    def _in_reach(self, ids: np.ndarray, out_of_reach: tuple[str, ...]) -> Iterator[np.ndarray]:
        for block in _blocks(ids):
            rows = self._known.rows(block)
            yield np.array([i for i in block if not rows[i]["uri"].startswith(out_of_reach)], int)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _stated(container: Container) -> list[int | None]:
    return [container.bytes, container.mtime_ns, READING]


def _blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), BLOCK_ROWS):
        yield ids[start : start + BLOCK_ROWS]


def probe_row(listed: Listed, row: Row, max_pixels: float) -> Row:
    """The row of a listed picture with what its header says; never raises for the picture."""
    if listed.problem is not None:
        return {**row, "status": "unreadable", "error": listed.problem}
    if (listed.num_bytes or 0) > MAX_BYTES:
        error = f"{listed.num_bytes:,} bytes; up to {MAX_BYTES:,} are allowed. Scale it down."
        return {**row, "status": "too_large", "error": error}
    try:
        picture_format, width, height = _header(listed)
    except PictureError as error:
        return {**row, "status": error.status, "error": str(error)}
    except OSError as error:
        return {**row, "status": "unreadable", "error": str(error)}
    row = {**row, "status": "ok", "format": picture_format, "width": width, "height": height}
    if width * height >= max_pixels:
        allowed = f"{max_pixels / 1e6:g} megapixels or more (--max-megapixels)"
        row |= {
            "status": "too_large",
            "error": f"{width} x {height} pixels are {allowed}. Scale the picture down.",
        }
    return row


def _header(listed: Listed) -> tuple[str, int, int]:
    if listed.data is not None:
        return probe(listed.data)
    if listed.uri.startswith("/"):
        with open(listed.uri, "rb") as file:  # noqa: PTH123 - ten million of them
            return probe(file)
    return _remote_header(place_of(listed.uri))


def _remote_header(place: Place) -> tuple[str, int, int]:
    """From the first bytes of an object, else from where it lies: each read is a request."""
    with place.fs.open_input_stream(place.path) as stream:
        head = stream.read(HEAD_BYTES)
    try:
        return probe(head)
    except PictureError:
        if len(head) < HEAD_BYTES:
            raise
    with (
        place.fs.open_input_file(place.path) as raw,
        io.BufferedReader(raw, HEAD_BYTES) as file,
    ):
        return probe(file)
