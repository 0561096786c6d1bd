"""An embedding set: shards of vectors and thumbnails, and one door ``embeddings.json``.

A shard is two immutable files, ``shards/NAME.parquet`` (id, status, content_hash, vector) and
``shards/NAME.thumbs.arrow`` (id, thumbnail; uncompressed, so it can be memory-mapped), whose commit
record the embedding job writes last. Publishing the door makes the set readable.

Shapes: N pictures of a shard or batch, D embedding.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.artifact import (
    CorruptArtifactError,
    FileRecord,
    Folder,
    Verify,
    digest,
    library_versions,
    open_door,
    publish,
)
from index.vectors import Float16s, Floats, Ids, require_ids, unit

__all__ = [
    "STATUSES",
    "EmbeddingStore",
    "ShardBatch",
    "ShardRecord",
    "VectorSource",
    "publish_embeddings",
    "write_shard",
]

STATUSES = ("ok", "unreadable", "empty", "too_large", "changed", "missing", "non_finite")
MAX_DRIFT = 1e-3
THUMBNAIL_BATCH_ROWS = 256
MAX_REMOTE_SHARDS = 8
"""Shards of thumbnails kept in memory when they cannot be memory-mapped."""


class VectorSource(Protocol):
    """What streams a corpus's vectors: an embedding set or an open index."""

    @property
    def encoder_id(self) -> str:
        """The encoder that made the vectors."""

    @property
    def layer(self) -> str:
        """The layer of that encoder."""

    def iter_batches(self, batch_rows: int = ...) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and unit vectors float32 [n, D]."""


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

    Vectors are normalised in float32, then stored as float16. A row whose vector is not finite, or
    is zero, gets the status ``non_finite``. Writing the same rows again gives the same bytes.

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
    parquet, thumbs = f"shards/{name}.parquet", f"shards/{name}.thumbs.arrow"
    files = {
        parquet: folder.write_hashed(
            parquet,
            lambda path: pq.write_table(
                table, path, compression="zstd", use_dictionary=["status"], row_group_size=4096
            ),
        ),
        thumbs: folder.write_hashed(
            thumbs, lambda path: _write_thumbnails(path, batch.ids, thumbnails)
        ),
    }
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
        files=files,
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
    stored = exact.astype(np.float16)
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


def publish_embeddings(
    folder: Folder, records: Iterable[ShardRecord | Mapping[str, Any]], body: Mapping[str, Any]
) -> dict[str, Any]:
    """Commit an embedding set over the shards of the given commit records.

    Args:
        folder: where the shards lie.
        records: commit records, in any order; extra keys are fine.
        body: at least ``parents`` with ``encoder_id``, and ``config`` with ``layer``.

    Returns:
        The door. Its ``id`` follows from encoder, layer and the bytes of all shards; ``mean`` is
        the mean of all ok vectors, which classifiers subtract.

    Raises:
        ValueError: no shard; shards of several dimensions; ids that overlap.
    """
    shards = sorted(records, key=lambda record: int(record["first_id"]))
    dims = {int(shard["dim"]) for shard in shards}
    if len(dims) != 1:
        raise ValueError(
            f"{folder}: shards of {sorted(dims)} dimensions; an embedding set needs exactly one. "
            "Embed the corpus again with one encoder."
        )
    last_id = -1
    for shard in shards:
        require_ids(np.array([shard["first_id"]], np.int64), after=last_id)
        last_id = int(shard["last_id"])
    failed: Counter[str] = Counter()
    for shard in shards:
        failed.update(shard["failed"])
    num_ok = sum(int(shard["ok"]) for shard in shards)
    total = np.sum([shard["vector_sum"] for shard in shards], axis=0)
    files = {name: record for shard in shards for name, record in shard["files"].items()}
    identity = {
        "encoder_id": body["parents"]["encoder_id"],
        "layer": body["config"]["layer"],
        "files": {name: record["sha256"] for name, record in files.items()},
    }
    content = {
        "id": digest(identity),
        "versions": library_versions("pyarrow", "numpy"),
        **body,
        "dim": dims.pop(),
        "rows": {"ok": num_ok, **dict(sorted(failed.items()))},
        "mean": [float(x) for x in total / max(num_ok, 1)],
        "shards": [_shard_summary(shard) for shard in shards],
    }
    return publish(folder, "embeddings", content, files)


def _shard_summary(shard: Mapping[str, Any]) -> dict[str, Any]:
    return {key: shard[key] for key in ("name", "rows", "ok", "first_id", "last_id")}


class EmbeddingStore:
    """A published embedding set, opened for reading. Safe to use from many threads."""

    def __init__(self, folder: Folder, door: Mapping[str, Any]) -> None:
        self.folder = folder
        self.door = door
        self.id = str(door["id"])
        self.parents: dict[str, str] = dict(door["parents"])
        self.encoder_id: str = self.parents["encoder_id"]
        self.layer: str = door["config"]["layer"]
        self.dim: int = door["dim"]
        self.num_rows: int = door["rows"]["ok"]
        self.mean: Floats = np.array(door["mean"], np.float32)
        self._firsts = np.array([shard["first_id"] for shard in door["shards"]], np.int64)
        self._thumbnails: dict[str, tuple[Ids, list[pa.RecordBatch]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Folder, *, verify: Verify = "full") -> EmbeddingStore:
        """Open an embedding set; see ``artifact.open_door`` for what is verified and raised."""
        return cls(folder, open_door(folder, "embeddings", verify=verify))

    def iter_batches(self, batch_rows: int = 4096) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and unit vectors float32 [n, D] of ok rows, n <= batch_rows, by id."""
        for ids, stored in self.iter_stored(batch_rows):
            yield ids, stored.astype(np.float32)

    def iter_stored(self, batch_rows: int = 4096) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids and vectors as stored, float16 [n, D]."""
        for batch in self._iter(["id", "status", "vector"], batch_rows):
            ok = batch.filter(pc.equal(batch.column("status"), "ok"))
            if not ok.num_rows:
                continue
            flat = ok.column("vector").flatten()
            if len(flat) != ok.num_rows * self.dim:
                raise CorruptArtifactError(
                    f"{self.folder}: an ok row near id {ok.column('id')[0]} has no vector. "
                    "Embed the corpus again."
                )
            yield ok.column("id").to_numpy(), flat.to_numpy().reshape(-1, self.dim)

    def ids_and_vectors(self) -> tuple[Ids, Floats]:
        """All ids [N] and vectors float32 [N, D] at once; memory grows with the corpus."""
        batches = list(self.iter_batches())
        if not batches:
            return np.empty(0, np.int64), np.empty((0, self.dim), np.float32)
        return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])

    def statuses(self) -> Iterator[tuple[int, str]]:
        """Stream (id, status) of every row, also of those without a vector."""
        for batch in self._iter(["id", "status"], 65_536):
            yield from zip(
                batch.column("id").to_pylist(), batch.column("status").to_pylist(), strict=True
            )

    def thumbnail(self, picture_id: int) -> bytes | None:
        """The thumbnail of a picture; None when it has none or is not in the set.

        Cost: two binary searches; on a local disk through a memory map.
        """
        position = int(np.searchsorted(self._firsts, picture_id, side="right")) - 1
        if position < 0:
            return None
        ids, batches = self._shard_thumbnails(self.door["shards"][position]["name"])
        row = int(np.searchsorted(ids, picture_id))
        if row == len(ids) or ids[row] != picture_id:
            return None
        batch = batches[row // THUMBNAIL_BATCH_ROWS]
        value = batch.column("thumbnail")[row % THUMBNAIL_BATCH_ROWS].as_py()
        return None if value is None else bytes(value)

    def _shard_thumbnails(self, name: str) -> tuple[Ids, list[pa.RecordBatch]]:
        with self._lock:
            if name not in self._thumbnails:
                if not self.folder.is_local and len(self._thumbnails) >= MAX_REMOTE_SHARDS:
                    del self._thumbnails[next(iter(self._thumbnails))]
                self._thumbnails[name] = self._read_thumbnails(f"shards/{name}.thumbs.arrow")
            return self._thumbnails[name]

    def _read_thumbnails(self, file_name: str) -> tuple[Ids, list[pa.RecordBatch]]:
        if self.folder.is_local:
            source = pa.memory_map(str(self.folder.local_path(file_name)))
        else:
            source = pa.BufferReader(self.folder.read_bytes(file_name))
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return np.concatenate([batch.column("id").to_numpy() for batch in batches]), batches

    def _iter(self, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        for shard in self.door["shards"]:
            path = f"{self.folder.path}/shards/{shard['name']}.parquet"
            with self.folder.fs.open_input_file(path) as source:
                yield from pq.ParquetFile(source).iter_batches(batch_rows, columns=columns)
