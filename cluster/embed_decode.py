"""Decoding for an embedding shard: what is made of a picture, and threads that do it ahead.

Whoever decodes, here, in `cluster.decode_tasks` or beside the encoding, the pictures come in the
same order and in the same batches: so the vectors are the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from cluster.decode_limit import DecodeLimit
from cluster.plan import ShardRow
from cluster.read_ahead import PIECE_ROWS, Read, in_order, in_pieces, read_tables, timed_read
from encoders.picture import (
    LEAST_SHARE,
    SILENCE,
    PictureError,
    load_formats,
    open_picture,
    thumbnail,
    to_square,
)
from encoders.preprocess import DECODE_EDGE, PreprocessConfig

__all__ = [
    "DecodeForm",
    "Decoded",
    "Decoder",
    "ThreadDecoder",
    "decode_rows",
    "in_batches",
]

AHEAD = 2


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of one picture.

    Args:
        status: ``square`` and ``thumbnail`` are there if and only if it is ``ok``.
        content_hash: sha256 of the bytes; None where they were not read.
        square: uint8 ``[S, S, 3]`` for the encoder.
        thumbnail: JPEG bytes.
        read_s: seconds of reading.
        decode_s: seconds of decoding.
    """

    status: str
    content_hash: bytes | None = None
    square: np.ndarray | None = None
    thumbnail: bytes | None = None
    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeForm:
    """What is made of each picture.

    Args:
        preprocess: the encoder's.
        thumbnail_edge: longest edge of thumbnails in pixels.
    """

    preprocess: PreprocessConfig
    thumbnail_edge: int


class Decoder(Protocol):
    """Decodes the rows of a shard, batch after batch, in order."""

    width: int
    """How many pictures it decodes side by side."""

    def batches(self, rows: Sequence[ShardRow], crashed: frozenset[int]) -> Iterator[list[Decoded]]:
        """So many at a time; rows of the ids ``crashed`` are left out, with this status."""


def decode_rows(
    form: DecodeForm,
    limit: DecodeLimit,
    crashed: frozenset[int],
    rows: Sequence[ShardRow],
    ready: Mapping[int, Read] | None = None,
) -> list[Decoded]:
    """Decode some rows, one after the other; never raises for a picture.

    Args:
        form: what is made of each picture.
        limit: watches each picture.
        crashed: ids to leave out.
        rows: the pictures.
        ready: those that were read before, by id; others are read here.
    """
    load_formats()
    given = ready or {}
    with SILENCE:
        return [
            Decoded("crashed")
            if row.id in crashed
            else _decode(form, limit, given.get(row.id) or timed_read(row))
            for row in rows
        ]


def _decode(form: DecodeForm, limit: DecodeLimit, read: Read) -> Decoded:
    status, data, read_s = read
    began_s = time.monotonic()
    if status != "ok":
        return Decoded(status, read_s=read_s)
    content_hash = hashlib.sha256(data).digest()
    try:
        with limit.watch():
            image = open_picture(data, decode_edge=form.preprocess.least_edge)
            square = to_square(image, form.preprocess)
            if _is_too_small(image, form):
                image = open_picture(data)
            small = thumbnail(image, form.thumbnail_edge)
    except PictureError as error:
        return Decoded(error.status, content_hash, read_s=read_s)
    decode_s = time.monotonic() - began_s
    return Decoded("ok", content_hash, square, small, read_s, decode_s)


def _is_too_small(image: Image.Image, form: DecodeForm) -> bool:
    """Whether it may have been decoded smaller than its thumbnail shall be, and need not be."""
    may_be_scaled = DECODE_EDGE > form.preprocess.least_edge <= min(image.size)
    return may_be_scaled and max(image.size) < LEAST_SHARE * form.thumbnail_edge


class ThreadDecoder:
    """Decodes in threads of this process, two batches or more ahead of whoever takes them.

    Args:
        form: what is made of each picture.
        limit: watches each picture.
        width: decoding threads.
        batch_rows: pictures to a batch, a multiple of 32.
    """

    def __init__(self, form: DecodeForm, limit: DecodeLimit, width: int, batch_rows: int) -> None:
        self.width = width
        self._work = partial(decode_rows, form, limit)
        self._pool = ThreadPoolExecutor(width)
        self._batch_rows = batch_rows

    def batches(self, rows: Sequence[ShardRow], crashed: frozenset[int]) -> Iterator[list[Decoded]]:
        """See `Decoder`."""

        def begin(piece: Sequence[ShardRow]) -> Future[list[Decoded]]:
            return self._pool.submit(self._work, crashed, piece, read_tables(piece, crashed))

        ahead = max(AHEAD * self._batch_rows // PIECE_ROWS, 2 * self.width)
        found = in_order(begin, lambda _, future: future.result(), in_pieces(rows), ahead)
        return in_batches(found, self._batch_rows)


def in_batches(pieces: Iterable[list[Decoded]], size: int) -> Iterator[list[Decoded]]:
    """What came of pieces, in batches of ``size``, whatever the size of these pieces."""
    batch: list[Decoded] = []
    for piece in pieces:
        batch += piece
        while len(batch) >= size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch
