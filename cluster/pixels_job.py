"""pixels: the training cache, square uint8 pictures that many workers can memory-map.

Not a verb of its own: ``pretrain`` and ``evaluate`` build it when it is missing. Shards hold Arrow
IPC files (``id`` int64, ``pixels`` fixed binary of S * S * 3 bytes), so a picture is read by
position without copying.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.shards import Shard, ShardJob, ShardRow, plan_shards, read_picture
from cluster.workspace import Workspace
from encoders.picture import PictureError, PreprocessConfig, open_picture, to_square
from index.artifact import Folder, digest, library_versions, open_door, publish

__all__ = ["PixelCache", "PixelWork", "build_pixels"]

SHARD_BYTES = 64 << 20
MAX_SHARD_ROWS = 4096
FORMAT = "arrow-uint8-rgb-1"


class PixelCache:
    """A published pixel cache, memory-mapped; rows are addressed by position, ids go with them.

    Args:
        folder: where it lies.
        ids: int64 ``[N]``, ascending.
        parts: uint8 ``[n, S, S, 3]`` each, together N pictures in the order of ``ids``.
    """

    def __init__(self, folder: Folder, ids: np.ndarray, parts: list[np.ndarray]) -> None:
        self.folder = folder
        self.ids = ids
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    @classmethod
    def open(cls, folder: Folder) -> PixelCache:
        """Open and verify; an object store's parts are copied to this machine first."""
        door = open_door(folder, "pixels", verify="sizes")
        size = int(door["config"]["size"])
        ids, parts = [np.zeros(0, np.int64)], []
        for name in door["files"]:
            with pa.memory_map(str(_on_this_machine(folder, name))) as source:
                table = pa.ipc.open_file(source).read_all()
            for batch in table.to_batches():
                ids.append(batch["id"].to_numpy())
                pixels = np.frombuffer(batch["pixels"].buffers()[1], dtype=np.uint8)
                parts.append(
                    pixels.reshape(-1, size, size, 3)[batch["pixels"].offset :][: len(batch)]
                )
        return cls(folder, np.concatenate(ids), parts)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Pictures at the given positions: uint8 ``[n, S, S, 3]``, a copy."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        pictures = [
            self._parts[part][position - self._starts[part]]
            for part, position in zip(which, positions, strict=True)
        ]
        return np.stack(pictures)

    def batches(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids, pictures) in order, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            positions = np.arange(start, min(start + rows, len(self)))
            yield self.ids[positions], self.read(positions)


def _on_this_machine(folder: Folder, name: str) -> Path:
    if folder.is_local:
        return folder.local_path(name)
    copy = Path(tempfile.gettempdir()) / "lookalike-pixels" / digest([str(folder), name])
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        Folder.at(copy.parent).write_atomic(copy.name, folder.read_bytes(name))
    return copy


class PixelWork:
    """Decodes one shard's pictures and writes them as one Arrow file.

    Args:
        location: the workspace.
        name: the cache's name.
        preprocess: fields of the `PreprocessConfig`.
        num_threads: decoding threads.
    """

    def __init__(
        self, location: str, name: str, preprocess: dict[str, Any], num_threads: int
    ) -> None:
        self._folder = Workspace.at(location).folder("pixels", name)
        self._preprocess = PreprocessConfig(**preprocess)
        self._pool = ThreadPoolExecutor(num_threads)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Write the shard's file; returns its record."""
        failed: Counter[str] = Counter()
        ids, pixels = [], []
        for row, (status, square) in zip(
            shard.rows, self._pool.map(self._decode, shard.rows), strict=True
        ):
            if square is None:
                failed[status] += 1
                continue
            ids.append(row.id)
            pixels.append(square.tobytes())
        width = self._preprocess.size**2 * 3
        table = pa.table(
            {"id": pa.array(ids, pa.int64()), "pixels": pa.array(pixels, pa.binary(width))}
        )
        file = f"shards/{shard.name}.arrow"
        written = self._folder.write_hashed(file, partial(_write_arrow, table))
        return {
            "rows": len(shard.rows),
            "ok": len(ids),
            "failed": dict(failed),
            "files": {file: written},
        }

    def _decode(self, row: ShardRow) -> tuple[str, np.ndarray | None]:
        status, data = read_picture(row)
        if status != "ok":
            return status, None
        try:
            return "ok", to_square(open_picture(data), self._preprocess)
        except PictureError as error:
            return error.status, None


def _write_arrow(table: pa.Table, path: str) -> None:
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def build_pixels(
    catalog: Catalog, preprocess: PreprocessConfig, context: Context, *, error_budget: float
) -> PixelCache:
    """Open the corpus' pixel cache of this size, finishing whatever of it is missing."""
    name = f"{catalog.door['name']}-{preprocess.size}{'' if preprocess.fit == 'crop' else '-pad'}"
    folder = context.workspace.folder("pixels", name)
    shard_rows = max(64, min(MAX_SHARD_ROWS, SHARD_BYTES // (preprocess.size**2 * 3)))
    config = {**asdict(preprocess), "format": FORMAT, "shard_rows": shard_rows}
    shards = plan_shards(catalog, key=digest(config), shard_rows=shard_rows)
    identity = digest([config, [shard.name for shard in shards]])
    if (
        folder.exists("pixels.json")
        and open_door(folder, "pixels", verify="sizes")["id"] == identity
    ):
        return PixelCache.open(folder)
    arguments = {
        "location": context.workspace.location,
        "name": name,
        "preprocess": asdict(preprocess),
        "num_threads": max(1, int(context.where.profile_settings().cpus_per_actor)),
    }
    job = ShardJob(f"pixels {name}", folder, shards, PixelWork, arguments, error_budget)
    records = job.run(context)
    rows: Counter[str] = Counter()
    for record in records:
        rows.update({"ok": record["ok"], **record["failed"]})
    body = {
        "id": identity,
        "config": config,
        "parents": {"corpus_id": catalog.corpus_id},
        "rows": dict(rows),
        "versions": library_versions("pillow", "pyarrow"),
    }
    files = {file: stated for record in records for file, stated in record["files"].items()}
    publish(folder, "pixels", body, files)
    return PixelCache.open(folder)
