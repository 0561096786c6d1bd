"""Work handed out to threads and tasks in order, with what lies in tables read as it is handed out.

A table's rows can be read one after the other, not at any place. Threads, or tasks in processes of
their own, that each read what they decode would have it read again and again, from the beginning of
a row group for every picture. So whoever hands out the work reads such rows, each once; files
are read where they are decoded, many at a time.

Memory: the bytes of a few pieces, of at most 8 MiB or one picture, for each thread or task.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from cluster.picture_uri import lies_in_table
from cluster.plan import ShardRow
from cluster.shards import read_data

__all__ = [
    "PIECE_BYTES",
    "PIECE_ROWS",
    "Read",
    "in_order",
    "in_pieces",
    "read_tables",
    "timed_read",
]

PIECE_ROWS = 32
PIECE_BYTES = 8 << 20
Piece = TypeVar("Piece")
Begun = TypeVar("Begun")
Result = TypeVar("Result")


class Read(NamedTuple):
    """A picture's status and bytes, as `read_data` gives them, and the seconds that it took."""

    status: str
    data: bytes
    seconds: float


def timed_read(row: ShardRow) -> Read:
    """Read one picture; never raises for it."""
    began_s = time.monotonic()
    status, data = read_data(row)
    return Read(status, data, time.monotonic() - began_s)


def read_tables(rows: Iterable[ShardRow], crashed: Collection[int]) -> dict[int, Read]:
    """Those of the pictures that lie in tables, by id, but for the ids ``crashed``."""
    return {
        row.id: timed_read(row) for row in rows if lies_in_table(row.uri) and row.id not in crashed
    }


def in_pieces(rows: Sequence[ShardRow], size: int = PIECE_ROWS) -> Iterator[Sequence[ShardRow]]:
    """The rows, ``size`` at a time; cut further where those in tables have too many bytes."""
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        begin, ready_bytes = 0, 0
        for position, row in enumerate(piece):
            row_bytes = row.bytes if lies_in_table(row.uri) else 0
            if ready_bytes and ready_bytes + row_bytes > PIECE_BYTES:
                yield piece[begin:position]
                begin, ready_bytes = position, 0
            ready_bytes += row_bytes
        yield piece[begin:]


def in_order(
    begin: Callable[[Piece], Begun],
    end: Callable[[Piece, Begun], Result],
    pieces: Iterable[Piece],
    ahead: int,
) -> Iterator[Result]:
    """What comes of each piece, in order, while up to ``ahead`` further ones are under way."""
    begun: deque[tuple[Piece, Begun]] = deque()
    for piece in pieces:
        begun.append((piece, begin(piece)))
        if len(begun) > ahead:
            yield end(*begun.popleft())
    while begun:
        yield end(*begun.popleft())
