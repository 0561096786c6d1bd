"""One shard of an embedding set: its rows, its two immutable files and its commit record.

``shards/NAME-SHA12.parquet`` holds id, status, content_hash and vector;
``shards/NAME-SHA12.thumbs.arrow`` id and thumbnail, uncompressed, so that it can be memory-mapped.
The names carry the start of the content's sha256: a shard done again, with pictures that were out
of reach before, leaves the files alone that a published door names.

Shapes: N pictures of a shard, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.folder import FileRecord, Folder
from index.rounding import unit_float16
from index.vectors import Float16s, Floats, Ids, require_ids, unit

__all__ = ["STATUSES", "THUMBNAIL_BATCH_ROWS", "ShardBatch", "ShardRecord", "write_shard"]

STATUSES = (
    "ok",
    "unreadable",
    "empty",
    "too_large",
    "changed",
    "missing",
    "crashed",
    "non_finite",
)
MAX_DRIFT = 1e-3
THUMBNAIL_BATCH_ROWS = 256


class ShardRecord(TypedDict):
    """The commit record of one shard, as JSON."""

    name: str
    rows: int
    ok: int
    failed: dict[str, int]
    dim: int
    first_id: int
    last_id: int
    vector_sum: list[float]
    vectors: str
    thumbnails: str
    files: dict[str, FileRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardBatch:
    """The rows of one shard, in id order.

    Args:
        ids: int64 [N], rising.
        statuses: N of ``STATUSES``.
        content_hashes: N sha256 digests (32 bytes) of the pictures' bytes; None where not read.
        vectors: float32 [N, D], of any norm; rows that are not ``ok`` are not looked at.
    """

    ids: Ids
    statuses: Sequence[str]
    content_hashes: Sequence[bytes | None]
    vectors: Floats

    def __post_init__(self) -> None:
        require_ids(self.ids)
        lengths = {len(self.ids), len(self.statuses), len(self.content_hashes), len(self.vectors)}
        if len(lengths) != 1 or not len(self.ids) or self.vectors.ndim != 2:
            raise ValueError(f"a shard needs as many rows in every column, at least 1: {lengths}")
        if unknown := set(self.statuses) - set(STATUSES):
            raise ValueError(f"row status {sorted(unknown)} is unknown, use one of {STATUSES}")


def write_shard(
    folder: Folder, name: str, batch: ShardBatch, *, thumbnails: Sequence[bytes | None]
) -> ShardRecord:
    """Write a shard's two files atomically and return its commit record, which is not written.

    Vectors are normalised in float32, then stored as float16 that is of unit norm again. A row
    whose vector is not finite, or is zero, gets the status ``non_finite``. Writing the same rows
    again gives the same bytes.

    Args:
        folder: the embedding set's folder.
        name: the shard's name without suffix, such as ``00000-0123456789ab``.
        batch: its rows.
        thumbnails: an encoded picture per row, or None.
    """
    if len(thumbnails) != len(batch.ids):
        raise ValueError(f"{len(thumbnails)} thumbnails for {len(batch.ids)} rows of shard {name}")
    statuses, vectors = _checked_vectors(batch)
    table = _shard_table(batch, statuses, vectors)
    parquet, parquet_record = folder.write_by_content(
        f"shards/{name}-{{sha256}}.parquet",
        lambda path: pq.write_table(
            table, path, compression="zstd", use_dictionary=["status"], row_group_size=4096
        ),
    )
    thumbs, thumbs_record = folder.write_by_content(
        f"shards/{name}-{{sha256}}.thumbs.arrow",
        lambda path: _write_thumbnails(path, batch.ids, thumbnails),
    )
    counts = Counter(statuses)
    return ShardRecord(
        name=name,
        rows=len(batch.ids),
        ok=counts.pop("ok", 0),
        failed=dict(sorted(counts.items())),
        dim=vectors.shape[1],
        first_id=int(batch.ids[0]),
        last_id=int(batch.ids[-1]),
        vector_sum=[float(x) for x in vectors.sum(axis=0, dtype=np.float64)],
        vectors=parquet,
        thumbnails=thumbs,
        files={parquet: parquet_record, thumbs: thumbs_record},
    )


def _checked_vectors(batch: ShardBatch) -> tuple[list[str], Float16s]:
    """Final statuses, and the float16 unit vectors of the rows that are ok."""
    vectors = np.asarray(batch.vectors, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms > np.finfo(np.float32).tiny)
    statuses = [
        "non_finite" if status == "ok" and not good else status
        for status, good in zip(batch.statuses, usable, strict=True)
    ]
    ok = np.array([status == "ok" for status in statuses])
    exact = (vectors[ok] / norms[ok, None]).astype(np.float32)
    stored = unit_float16(exact)
    if len(stored):
        drift = 1 - np.einsum("nd,nd->n", unit(stored), exact)
        assert float(np.abs(drift).max()) < MAX_DRIFT, "float16 moved a vector"
    return statuses, stored


def _shard_table(batch: ShardBatch, statuses: list[str], vectors: Float16s) -> pa.Table:
    dim = vectors.shape[1]
    failed = np.array([status != "ok" for status in statuses])
    filled = np.zeros((len(statuses), dim), np.float16)
    filled[~failed] = vectors
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(filled.reshape(-1)), dim, mask=pa.array(failed)
    )
    return pa.table(
        {
            "id": pa.array(batch.ids),
            "status": pa.array(statuses, pa.string()),
            "content_hash": pa.array(batch.content_hashes, pa.binary(32)),
            "vector": column,
        }
    )


def _write_thumbnails(path: str, ids: Ids, thumbnails: Sequence[bytes | None]) -> None:
    schema = pa.schema([("id", pa.int64()), ("thumbnail", pa.binary())])
    with pa.ipc.new_file(path, schema) as writer:
        for start in range(0, len(ids), THUMBNAIL_BATCH_ROWS):
            stop = start + THUMBNAIL_BATCH_ROWS
            columns = [pa.array(ids[start:stop]), pa.array(thumbnails[start:stop], pa.binary())]
            writer.write_batch(pa.record_batch(columns, schema=schema))
