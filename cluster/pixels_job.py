"""pixels: the training cache, square uint8 pictures that many workers can memory-map.

Not a verb of its own: ``pretrain`` and ``evaluate`` build it when it is missing. Shards hold Arrow
IPC files (``id`` int64, ``pixels`` fixed binary of S * S * 3 bytes), so a picture is read by
position without copying.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.decode_limit import DecodeLimit
from cluster.picture_uri import lies_in_table
from cluster.plan import Shard, ShardRow, plan_shards
from cluster.read_ahead import Read, in_order, read_tables, timed_read
from cluster.shard_job import ShardJob
from cluster.shards import OUT_OF_REACH
from cluster.where import Profile
from cluster.workspace import Workspace
from encoders.picture import PictureError, load_formats, open_picture, to_square
from encoders.preprocess import PreprocessConfig
from index.artifact import (
    CorruptArtifactError,
    MissingArtifactError,
    Verify,
    digest,
    library_versions,
    open_door,
    publish,
)
from index.folder import FileRecord, Folder
from index.lock import sole_writer

__all__ = ["PixelCache", "PixelWork", "build_pixels"]

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20
MAX_SHARD_ROWS = 4096
AHEAD = 4
FORMAT = "arrow-uint8-rgb-1"

_Square = tuple[str, np.ndarray | None]


class PixelCache:
    """A published pixel cache, memory-mapped; rows are addressed by position, ids go with them.

    Args:
        folder: where it lies.
        door: content of ``pixels.json``.
        ids: int64 ``[N]``, ascending.
        parts: uint8 ``[n, S, S, 3]`` each, together N pictures in the order of ``ids``.
    """

    def __init__(
        self, folder: Folder, door: Mapping[str, Any], ids: np.ndarray, parts: list[np.ndarray]
    ) -> None:
        self.folder = folder
        self.id = str(door["id"])
        self.plan = str(door.get("plan"))
        self.failed = {name: n for name, n in door["rows"].items() if name != "ok"}
        self.ids = ids
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    @classmethod
    def open(cls, folder: Folder, *, verify: Verify = "sizes") -> PixelCache:
        """Open; ``verify`` as for `open_door`. An object store's parts are copied here first."""
        door = open_door(folder, "pixels", verify=verify)
        size = int(door["config"]["size"])
        ids, parts = [np.zeros(0, np.int64)], []
        for name, stated in door["files"].items():
            with pa.memory_map(str(_on_this_machine(folder, name, stated))) as source:
                table = pa.ipc.open_file(source).read_all()
            for batch in table.to_batches():
                ids.append(batch["id"].to_numpy())
                pixels = np.frombuffer(batch["pixels"].buffers()[1], dtype=np.uint8)
                parts.append(
                    pixels.reshape(-1, size, size, 3)[batch["pixels"].offset :][: len(batch)]
                )
        return cls(folder, door, np.concatenate(ids), parts)

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


def _on_this_machine(folder: Folder, name: str, stated: FileRecord) -> Path:
    """A local path of the file; of an object store's, a checked copy that only we may touch."""
    if folder.is_local:
        return folder.local_path(name)
    copies = Folder.at(Path(tempfile.gettempdir()) / f"lookalike-pixels-{os.getuid()}")
    owned = copies.local_path()
    owned.mkdir(mode=0o700, exist_ok=True)
    found = owned.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(
            f"{owned}: belongs to another user, so pixels cannot be copied to this machine "
            "safely. Remove it, or set TMPDIR to a folder of your own."
        )
    owned.chmod(0o700)
    copy = stated["sha256"]
    if copies.size_bytes(copy) != stated["bytes"] or copies.sha256(copy) != copy:
        copies.write_atomic(copy, folder.read_bytes(name))
    if copies.sha256(copy) != copy:
        raise CorruptArtifactError(
            f"{folder}/{name}: its content changed since it was published (sha256 differs). "
            "Remove the pixels folder; it is only a cache, and is built again."
        )
    return owned / copy


class PixelWork:
    """Decodes one shard's pictures and writes them as one Arrow file.

    Args:
        location: the workspace.
        name: the cache's name.
        preprocess: the fields of `PreprocessConfig` that make the square.
        profile: how many CPUs decode.
    """

    def __init__(
        self, location: str, name: str, preprocess: dict[str, Any], profile: Profile
    ) -> None:
        self._folder = Workspace.at(location).folder("pixels", name)
        self._preprocess = PreprocessConfig(**preprocess)
        self._width = max(1, profile.cpus_per_actor)
        self._pool = ThreadPoolExecutor(self._width)
        self.limit = DecodeLimit()
        load_formats()

    def __call__(self, shard: Shard, crashed: frozenset[int] = frozenset()) -> dict[str, Any]:
        """Write the shard's file; returns its record."""
        failed: Counter[str] = Counter()
        ids, pixels = [], []
        rows = shard.rows
        for row, (status, square) in zip(rows, self._decoded(rows, crashed), strict=True):
            if square is None:
                failed[status] += 1
                continue
            ids.append(row.id)
            pixels.append(square.tobytes())
        width = self._preprocess.size**2 * 3
        table = pa.table(
            {"id": pa.array(ids, pa.int64()), "pixels": pa.array(pixels, pa.binary(width))}
        )
        file, written = self._folder.write_by_content(
            f"shards/{shard.name}-{{sha256}}.arrow", partial(_write_arrow, table)
        )
        return {
            "rows": len(rows),
            "ok": len(ids),
            "failed": dict(failed),
            "files": {file: written},
        }

    def _decoded(self, rows: Sequence[ShardRow], crashed: frozenset[int]) -> Iterator[_Square]:
        def begin(row: ShardRow) -> Future[_Square]:
            ready = read_tables([row], crashed).get(row.id)
            return self._pool.submit(self._decode, crashed, row, ready)

        in_tables = any(lies_in_table(row.uri) for row in rows)
        ahead = AHEAD * self._width if in_tables else len(rows)
        return in_order(begin, lambda _, future: future.result(), rows, ahead)

    def _decode(self, crashed: frozenset[int], row: ShardRow, ready: Read | None) -> _Square:
        if row.id in crashed:
            return "crashed", None
        status, data, _ = ready or timed_read(row)
        if status != "ok":
            return status, None
        try:
            with self.limit.watch():
                return "ok", _square(data, self._preprocess)
        except PictureError as error:
            return error.status, None


def _square(data: bytes, preprocess: PreprocessConfig) -> np.ndarray:
    return to_square(open_picture(data, decode_edge=preprocess.least_edge), preprocess)


def _write_arrow(table: pa.Table, path: str) -> None:
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def build_pixels(
    catalog: Catalog, preprocess: PreprocessConfig, context: Context, *, error_budget: float
) -> PixelCache:
    """Open the corpus' pixel cache of this size, finishing or mending whatever of it is missing.

    Raises:
        ErrorBudgetError: too many pictures failed.
        ValueError: none of the pictures can be read; another process builds this cache.
    """
    # Mean and std come after the pixels: encoders that differ in them share a cache.
    square = preprocess.square()
    name = f"{catalog.door['name']}-{preprocess.size}{'' if preprocess.fit == 'crop' else '-pad'}"
    if "decode_edge" in square:
        name += f"-from{preprocess.least_edge}"
    folder = context.workspace.folder("pixels", name)
    shard_rows = max(64, min(MAX_SHARD_ROWS, SHARD_BYTES // (preprocess.size**2 * 3)))
    config = {**square, "format": FORMAT, "shard_rows": shard_rows}
    shards = plan_shards(catalog, key=digest(config), shard_rows=shard_rows)
    if not shards:
        raise ValueError(
            f"corpus {catalog.door['name']!r}: none of its pictures can be read "
            f"({catalog.counts()}). Mend the files and scan again."
        )
    plan = digest([config, [shard.name for shard in shards]])
    arguments = {
        "location": context.workspace.location,
        "name": name,
        "preprocess": square,
    }
    job = ShardJob(f"pixels {name}", folder, shards, PixelWork, arguments, error_budget)
    if (ready := _ready(folder, plan)) is not None:
        _clear_late(job, plan)
        return ready
    with sole_writer(folder, "building these pixels"):
        door = _publish(folder, job.run(context), plan, config, catalog)
        # Workers of a run that is under way have the files of the door before mapped already.
        job.clear(door)
    cache = PixelCache.open(folder)
    if cache.plan != plan:
        raise ValueError(
            f"{folder}: another job published other pixels here just now. Run this one again."
        )
    return cache


def _ready(folder: Folder, plan: str) -> PixelCache | None:
    """The published cache if it is this one, undamaged, and of pictures that were all in reach."""
    try:
        cache = PixelCache.open(folder, verify="full")
    except MissingArtifactError:
        return None
    except CorruptArtifactError as error:
        logger.warning("the pixel cache is damaged and will be mended: %s", error)
        return None
    return cache if cache.plan == plan and not OUT_OF_REACH & set(cache.failed) else None


def _clear_late(job: ShardJob, plan: str) -> None:
    """Clear for a build that was killed between its door and its clearing, unless one is at it."""
    door = open_door(job.folder, "pixels", verify="sizes")
    if not job.folder.is_local or not job.others(door):
        return
    with contextlib.suppress(ValueError), sole_writer(job.folder, "clearing these pixels"):
        door = open_door(job.folder, "pixels", verify="sizes")
        if door["plan"] == plan:
            job.clear(door)


def _publish(
    folder: Folder,
    records: list[dict[str, Any]],
    plan: str,
    config: dict[str, Any],
    catalog: Catalog,
) -> dict[str, Any]:
    rows: Counter[str] = Counter()
    for record in records:
        rows.update({"ok": record["ok"], **record["failed"]})
    files = {file: stated for record in records for file, stated in record["files"].items()}
    body = {
        "id": digest([config, {name: stated["sha256"] for name, stated in files.items()}]),
        "plan": plan,
        "config": config,
        "parents": {"corpus_id": catalog.corpus_id},
        "rows": dict(rows),
        "versions": library_versions("pillow", "pyarrow"),
    }
    return publish(folder, "pixels", body, files)
