"""What an actor does with one shard of an embedding set, and how long each stage of it takes.

Shapes: N pictures, D embedding.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.decode_limit import DecodeLimit
from cluster.decode_tasks import task_decoder
from cluster.embed_decode import (
    Decoded,
    DecodeForm,
    Decoder,
    ThreadDecoder,
    decode_rows,
)
from cluster.kept_memory import keep_memory
from cluster.picture_uri import lies_in_table
from cluster.plan import Shard, ShardRow
from cluster.read_ahead import in_order, in_pieces
from cluster.where import Profile
from cluster.workspace import Workspace
from index.embeddings import ShardBatch, write_shard

__all__ = ["EmbedWork", "pass_rows", "work_report"]

PASS_PIXELS = 1 << 18
LEAST_ROWS, MOST_ROWS, GPU_ROWS = 8, 128, 128
LEAST_BATCH_ROWS = 32
STAGES = ("read", "decode", "encode", "write")


class EmbedWork:
    """Embeds one shard; one per actor, with its encoder loaded once.

    On CPUs each thread decodes some pictures and encodes them itself, in one thread of torch: that
    is faster than to share each convolution out, and pixels stay in a core's cache. A GPU encodes
    what threads, or tasks on other CPUs, have decoded ahead; CPUs do so where pictures lie in
    tables, which are read in order.

    Args:
        location: the workspace.
        name: the embedding set.
        encoder: the encoder's name; ``form`` has its id.
        profile: how many CPUs decode, and whether a GPU encodes.
        form: ``layer``, which output; ``thumbnail_edge`` in pixels; ``decode_limit_s``.
    """

    def __init__(
        self, *, location: str, name: str, encoder: str, profile: Profile, **form: Any
    ) -> None:
        workspace = Workspace.at(location)
        on_gpu = profile.gpus_per_actor > 0
        if not on_gpu:  # where the network's tensors are in main memory
            keep_memory()
        loaded = workspace.open_very_encoder(encoder, form["encoder_id"])
        loaded.to("cuda" if on_gpu else "cpu")
        self._folder = workspace.folder("embeddings", name)
        self._encoder, self._layer = loaded, form["layer"]
        self.limit = DecodeLimit(form["decode_limit_s"])
        self._form = DecodeForm(
            preprocess=loaded.config.preprocess, thumbnail_edge=form["thumbnail_edge"]
        )
        self._pass_rows = pass_rows(loaded.config.preprocess.size, on_gpu=on_gpu)
        self._batch_rows = max(LEAST_BATCH_ROWS, self._pass_rows)
        self._decoder: Decoder | None = task_decoder(
            profile, self._form, self.limit.seconds, self._batch_rows
        )
        width = max(1, profile.cpus_per_actor)
        threads = ThreadDecoder(self._form, self.limit, width, self._batch_rows)
        if on_gpu and self._decoder is None:
            self._decoder = threads
        self._table_decoder = self._decoder or threads
        self._encoders = 1 if on_gpu else width
        self._threads = ThreadPoolExecutor(self._encoders, initializer=_compute_alone)

    def __call__(self, shard: Shard, crashed: frozenset[int] = frozenset()) -> dict[str, Any]:
        """Write the shard's files; returns its record, with the seconds of each stage."""
        rows = shard.rows
        in_tables = any(lies_in_table(row.uri) for row in rows)
        decoder = self._table_decoder if in_tables else self._decoder
        began_s = time.monotonic()
        parts = list(self._parts(rows, crashed, decoder))
        decoders = decoder.width if decoder else self._encoders
        workers = {"read": 1 if in_tables else decoders, "decode": decoders}
        seconds = self._shared_out(parts, workers, time.monotonic() - began_s)
        began_s = time.monotonic()
        decoded = [item for part in parts for item in part.decoded]
        batch = ShardBatch(
            ids=np.array([row.id for row in rows], np.int64),
            statuses=[item.status for item in decoded],
            content_hashes=[item.content_hash for item in decoded],
            vectors=np.concatenate([part.vectors for part in parts]),
        )
        thumbnails = [item.thumbnail for item in decoded]
        record = write_shard(self._folder, shard.name, batch, thumbnails=thumbnails)
        seconds["write"] = time.monotonic() - began_s
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = {stage: round(seconds[stage], 3) for stage in STAGES}
        return {**record, "stage_s": times, "peak_mib": peak_kib // 1024}

    def _parts(
        self, rows: Sequence[ShardRow], crashed: frozenset[int], decoder: Decoder | None
    ) -> Iterator[_Part]:
        if decoder is not None:
            decoded = decoder.batches(rows, crashed)
            return in_order(
                lambda batch: self._threads.submit(self._encode, batch),
                lambda _, future: future.result(),
                decoded,
                self._encoders - 1,
            )

        def decode_and_encode(piece: Sequence[ShardRow]) -> _Part:
            return self._encode(decode_rows(self._form, self.limit, crashed, piece))

        return self._threads.map(decode_and_encode, in_pieces(rows, self._batch_rows))

    def _encode(self, decoded: Sequence[Decoded]) -> _Part:
        began_s = time.monotonic()
        vectors_ND = np.zeros((len(decoded), self._encoder.dim(self._layer)), np.float32)
        squares = [item.square for item in decoded if item.square is not None]
        if squares:
            good = [i for i, item in enumerate(decoded) if item.square is not None]
            vectors_ND[good] = self._encoder.embed(
                np.stack(squares), layer=self._layer, batch_size=self._pass_rows
            )
        bare = [replace(item, square=None) for item in decoded]
        return _Part(bare, vectors_ND, time.monotonic() - began_s)

    def _shared_out(
        self, parts: Sequence[_Part], workers: Mapping[str, int], passed_s: float
    ) -> dict[str, float]:
        """The time that passed, in proportion to the work of each stage and who did it at once."""
        decoded = [item for part in parts for item in part.decoded]
        spent = {
            "read": sum(item.read_s for item in decoded) / workers["read"],
            "decode": sum(item.decode_s for item in decoded) / workers["decode"],
            "encode": sum(part.encode_s for part in parts) / self._encoders,
        }
        total_s = sum(spent.values())
        scale = passed_s / total_s if total_s else 0.0
        return {stage: seconds * scale for stage, seconds in spent.items()}


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a shard: what came of them, without pixels, and a vector for each."""

    decoded: list[Decoded]
    vectors: np.ndarray
    encode_s: float


def pass_rows(size: int, *, on_gpu: bool) -> int:
    """Pictures to a pass of the network.

    On a CPU as many as stay in its cache, a power of two of 8 to 128: at 96 px, 16 pictures at a
    time take three quarters of the time that 256 take. It also bounds the memory of each thread,
    and that of actors which share a GPU; their number must not change it, nor so the vectors.

    >>> [pass_rows(size, on_gpu=False) for size in (32, 96, 224)]
    [128, 16, 8]
    """
    if on_gpu:
        return GPU_ROWS
    fit = PASS_PIXELS // size**2
    return int(min(MOST_ROWS, max(LEAST_ROWS, 1 << max(0, fit.bit_length() - 1))))


def _compute_alone() -> None:
    import torch

    torch.set_num_threads(1)


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
