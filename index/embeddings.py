"""An embedding set: shards of vectors and thumbnails, and one door ``embeddings.json``.

The embedding job writes shards (``index/shard.py``) and, last of each, its commit record.
Publishing the door over these records makes the set readable.

Shapes: n rows of a batch, N rows in all, D embedding.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.artifact import (
    CorruptArtifactError,
    Verify,
    check_file,
    digest,
    library_versions,
    open_door,
    publish,
)
from index.folder import Folder
from index.shard import STATUSES, THUMBNAIL_BATCH_ROWS, ShardBatch, ShardRecord, write_shard
from index.vectors import Float16s, Floats, Ids, require_ids

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = [
    "STATUSES",
    "EmbeddingStore",
    "ShardBatch",
    "ShardRecord",
    "publish_embeddings",
    "write_shard",
]

MAX_REMOTE_SHARDS = 8
"""Shards of thumbnails kept in memory when they cannot be memory-mapped."""


def publish_embeddings(
    folder: Folder,
    records: Iterable[ShardRecord | Mapping[str, Any]],
    body: Mapping[str, Any],
    *,
    unless: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Commit an embedding set over the shards of the given commit records.

    Args:
        folder: where the shards lie.
        records: commit records, in any order; extra keys are fine.
        body: at least ``parents`` with ``encoder_id``, and ``config`` with ``layer``.
        unless: called right before the door is written; what it raises keeps the door as it is.

    Returns:
        The door. Its ``id`` follows from encoder, layer and the bytes of all shards; ``mean`` is
        the mean of all ok vectors, which classifiers subtract.

    Raises:
        ValueError: no shard; shards of several dimensions; ids that overlap.
    """
    shards = sorted(records, key=lambda record: int(record["first_id"]))
    dim = _common_dim(folder, shards)
    counts = Counter({"ok": sum(int(shard["ok"]) for shard in shards)})
    for shard in shards:
        counts.update(shard["failed"])
    total = np.sum([shard["vector_sum"] for shard in shards], axis=0)
    files = {name: record for shard in shards for name, record in shard["files"].items()}
    identity = {
        "encoder_id": body["parents"]["encoder_id"],
        "layer": body["config"]["layer"],
        "files": {name: record["sha256"] for name, record in files.items()},
    }
    content = {
        "versions": library_versions("pyarrow", "numpy"),
        **body,
        "id": digest(identity),
        "dim": dim,
        "rows": dict(counts),
        "mean": [float(x) for x in total / max(counts["ok"], 1)],
        "shards": [_shard_summary(shard) for shard in shards],
    }
    return publish(folder, "embeddings", content, files, unless=unless)


def _common_dim(folder: Folder, shards: Sequence[Mapping[str, Any]]) -> int:
    """The shards' dimension, after checking that there is one and that their ids do not overlap."""
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
    return dims.pop()


def _shard_summary(shard: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "rows", "ok", "first_id", "last_id", "vectors", "thumbnails")
    return {key: shard[key] for key in kept}


class EmbeddingStore:
    """A published embedding set, opened for reading. Safe to use from many threads.

    Args:
        folder: where it lies.
        door: its door.
        verified: files whose sha256 was compared; the others' is before their first use.
    """

    def __init__(
        self, folder: Folder, door: Mapping[str, Any], verified: Iterable[str] = ()
    ) -> None:
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
        self._verified = set(verified)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Folder, *, verify: Verify = "full") -> EmbeddingStore:
        """Open an embedding set; see ``artifact.open_door`` for what is verified and raised.

        Opened by ``sizes``, a file is compared with its sha256 before it is first read from, and
        whatever reads may raise ``CorruptArtifactError``.
        """
        door = open_door(folder, "embeddings", verify=verify)
        return cls(folder, door, door["files"] if verify == "full" else ())

    @property
    def content(self) -> str:
        """Identity of its vectors; see `index.vector_sets.VectorSet`."""
        return self.id

    def _require_whole(self, name: str) -> None:
        if name not in self._verified:
            check_file(self.folder, name, self.door["files"][name])
            self._verified.add(name)

    def iter_batches(self, batch_rows: int = 4096) -> Iterator[tuple[Ids, Floats]]:
        """Stream ids [n] and unit vectors float32 [n, D] of ok rows, n <= batch_rows, by id."""
        for ids, stored in self.iter_stored(batch_rows):
            yield ids, stored.astype(np.float32)

    def iter_stored(self, batch_rows: int = 4096) -> Iterator[tuple[Ids, Float16s]]:
        """Stream ids and vectors as stored, float16 [n, D]."""
        columns = ["id", "status", "vector"]
        for batch in self._iter(columns, batch_rows, self.door["shards"]):
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

    def iter_ids(self, batch_rows: int = 65_536) -> Iterator[Ids]:
        """Stream ids int64 of ok rows, rising."""
        for batch in self._iter(["id", "status"], batch_rows, self.door["shards"]):
            ok = batch.filter(pc.equal(batch.column("status"), "ok"))
            if ok.num_rows:
                yield ok.column("id").to_numpy()

    def iter_content_hashes(
        self, batch_rows: int = 65_536
    ) -> Iterator[tuple[Ids, NDArray[np.uint8]]]:
        """Stream ids [n] and sha256 digests of the files, uint8 [n, 32], of ok rows, by id."""
        for batch in self._iter(["id", "status", "content_hash"], batch_rows, self.door["shards"]):
            known = pc.and_(
                pc.equal(batch.column("status"), "ok"), pc.is_valid(batch.column("content_hash"))
            )
            ok = batch.filter(known)
            digests = np.frombuffer(b"".join(ok.column("content_hash").to_pylist()), np.uint8)
            yield ok.column("id").to_numpy(), digests.reshape(-1, 32)

    def dataset(self) -> ds.Dataset:
        """The set as a ``pyarrow.dataset``, read lazily: columns id, status, content_hash, vector.

        DuckDB, Polars and pandas scan it as it is; a filter on ``status`` or ``id`` is pushed down.
        """
        import pyarrow.dataset as ds  # imports pandas, which takes half a second

        paths = [f"{self.folder.path}/{shard['vectors']}" for shard in self.door["shards"]]
        return ds.dataset(paths, filesystem=self.folder.fs, format="parquet")

    def bad_rows(self, limit: int) -> list[tuple[int, str]]:
        """(id, status) of the first rows without a vector, at most ``limit``."""
        failed = [shard for shard in self.door["shards"] if shard["ok"] < shard["rows"]]
        found: list[tuple[int, str]] = []
        for batch in self._iter(["id", "status"], 65_536, failed):
            bad = batch.filter(pc.not_equal(batch.column("status"), "ok")).slice(0, limit)
            found += zip(
                bad.column("id").to_pylist(), bad.column("status").to_pylist(), strict=True
            )
            if len(found) >= limit:
                break
        return found[:limit]

    def thumbnail(self, picture_id: int) -> bytes | None:
        """The thumbnail of a picture; None when it has none or is not in the set.

        Cost: two binary searches; on a local disk through a memory map.
        """
        position = int(np.searchsorted(self._firsts, picture_id, side="right")) - 1
        if position < 0:
            return None
        ids, batches = self._shard_thumbnails(self.door["shards"][position]["thumbnails"])
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
                self._thumbnails[name] = self._read_thumbnails(name)
            return self._thumbnails[name]

    def _read_thumbnails(self, file_name: str) -> tuple[Ids, list[pa.RecordBatch]]:
        self._require_whole(file_name)
        if self.folder.is_local:
            source = pa.memory_map(str(self.folder.local_path(file_name)))
        else:
            source = pa.BufferReader(self.folder.read_bytes(file_name))
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return np.concatenate([batch.column("id").to_numpy() for batch in batches]), batches

    def _iter(
        self, columns: list[str], batch_rows: int, shards: Iterable[Mapping[str, Any]]
    ) -> Iterator[pa.RecordBatch]:
        for shard in shards:
            self._require_whole(shard["vectors"])
            path = f"{self.folder.path}/{shard['vectors']}"
            with self.folder.fs.open_input_file(path) as source:
                yield from pq.ParquetFile(source).iter_batches(batch_rows, columns=columns)
