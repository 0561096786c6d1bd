"""What an actor does with one shard of an embedding set, and how long each stage of it takes."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.plan import Shard, ShardRow
from cluster.shards import read_data
from cluster.workspace import Workspace
from encoders.encoder import Encoder
from encoders.picture import PictureError, open_picture, thumbnail, to_square
from index.embeddings import ShardBatch, write_shard

__all__ = ["EmbedWork", "work_report"]

BATCH_ROWS = 256
STAGES = ("read", "decode", "encode", "write")


class EmbedWork:
    """Embeds one shard; one per actor, with its encoder loaded once.

    Args:
        location: the workspace.
        name: the embedding set.
        encoder: the encoder's name.
        layer: which output.
        thumbnail_edge: longest edge of thumbnails in pixels.
        device: where the encoder runs, ``cpu`` or ``cuda``.
        num_threads: decoding threads.
    """

    def __init__(
        self, *, location: str, name: str, encoder: str, num_threads: int, **form: Any
    ) -> None:
        workspace = Workspace.at(location)
        self._folder = workspace.folder("embeddings", name)
        self._encoder: Encoder = workspace.open_encoder(encoder).to(form["device"])
        self._layer = form["layer"]
        self._edge = form["thumbnail_edge"]
        self._pool = ThreadPoolExecutor(num_threads)

    def __call__(self, shard: Shard, crashed: frozenset[int] = frozenset()) -> dict[str, Any]:
        """Write the shard's files; returns its record, with the seconds of each stage."""
        rows = shard.rows
        seconds = dict.fromkeys(STAGES, 0.0)
        decoded: list[_Decoded] = []
        vectors = np.zeros((len(rows), self._encoder.dim(self._layer)), np.float32)
        for start in range(0, len(rows), BATCH_ROWS):
            batch = self._decode_batch(rows[start : start + BATCH_ROWS], crashed, seconds)
            squares = [item.square for item in batch if item.square is not None]
            good = [i for i, item in enumerate(batch) if item.square is not None]
            if good:
                began_s = time.monotonic()
                vectors[[start + i for i in good]] = self._encoder.embed(
                    np.stack(squares), layer=self._layer
                )
                seconds["encode"] += time.monotonic() - began_s
            decoded += [replace(item, square=None) for item in batch]
        began_s = time.monotonic()
        batch_of_all = ShardBatch(
            ids=np.array([row.id for row in rows], np.int64),
            statuses=[item.status for item in decoded],
            content_hashes=[item.content_hash for item in decoded],
            vectors=vectors,
        )
        thumbnails = [item.thumbnail for item in decoded]
        record = write_shard(self._folder, shard.name, batch_of_all, thumbnails=thumbnails)
        seconds["write"] = time.monotonic() - began_s
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = {stage: round(seconds[stage], 3) for stage in STAGES}
        return {**record, "stage_s": times, "peak_mib": peak_kib // 1024}

    def _decode_batch(
        self, rows: tuple[ShardRow, ...], crashed: frozenset[int], seconds: dict[str, float]
    ) -> list[_Decoded]:
        """Decode side by side; the time passed is shared out by what the threads did with it."""
        began_s = time.monotonic()
        batch = list(self._pool.map(partial(self._decode, crashed), rows))
        passed_s = time.monotonic() - began_s
        reading_s = sum(item.read_s for item in batch)
        working_s = reading_s + sum(item.decode_s for item in batch)
        share = reading_s / working_s if working_s else 0.0
        seconds["read"] += passed_s * share
        seconds["decode"] += passed_s * (1 - share)
        return batch

    def _decode(self, crashed: frozenset[int], row: ShardRow) -> _Decoded:
        began_s = time.monotonic()
        status, data = ("crashed", b"") if row.id in crashed else read_data(row)
        read_s = time.monotonic() - began_s
        if status != "ok":
            return _Decoded(status, None, read_s=read_s)
        content_hash = hashlib.sha256(data).digest()
        try:
            image = open_picture(data)
            square = to_square(image, self._encoder.config.preprocess)
            small = thumbnail(image, self._edge)
        except PictureError as error:
            return _Decoded(error.status, content_hash, read_s=read_s)
        decode_s = time.monotonic() - began_s - read_s
        return _Decoded("ok", content_hash, square, small, read_s, decode_s)


@dataclass(frozen=True, slots=True)
class _Decoded:
    status: str
    content_hash: bytes | None
    square: np.ndarray | None = None
    thumbnail: bytes | None = None
    read_s: float = 0.0
    decode_s: float = 0.0


def work_report(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How the work went, from the commit records: so it is the same however often it is asked.

    Returns:
        ``pictures_per_s`` of one actor; ``time``, the share of its time that each stage took;
        ``peak_mib``, the most memory that an actor held. Shards of older versions, which did not
        say, are left out.
    """
    told = [record for record in records if "stage_s" in record]
    total_s = sum(record["seconds"] for record in told)
    if not total_s:
        return {"pictures_per_s": None, "time": {}, "peak_mib": None}
    shares = {
        stage: round(sum(record["stage_s"][stage] for record in told) / total_s, 3)
        for stage in STAGES
    }
    return {
        "pictures_per_s": round(sum(record["rows"] for record in told) / total_s, 1),
        "time": {**shares, "other": round(max(0.0, 1 - sum(shares.values())), 3)},
        "peak_mib": max(record["peak_mib"] for record in told),
    }
