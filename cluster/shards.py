"""Work cut into shards, each finished exactly once: what pixels and embeddings are written by.

1. A *plan* cuts the corpus into shards by id, so that a grown corpus changes only its last shards.
2. A shard's name carries a digest of what goes in: the job's key and the rows' id, place, size and
time. 3. A worker writes the shard's files, whose names carry a digest of what came out, then its
*commit record*, one small JSON; the record's rename is the commit point. 4. What has a valid record
is never done again; what has none is done from the start, by whichever run comes next.

So no file that a published door names is ever overwritten with other content, and two runs at once
(where no lock keeps them apart) waste work but do no harm.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from PIL import Image

from cluster.catalog import CatalogRow
from cluster.picture_bytes import ChangedError, read_bytes
from cluster.plan import SHARD_FOLDER, Plan, Shard, ShardRow
from encoders.picture import PictureError, open_picture
from index.artifact import Folder, Verify, write_json

__all__ = [
    "OUT_OF_REACH",
    "ReadPicture",
    "ShardActor",
    "ShardError",
    "ShardWork",
    "attempts_file",
    "commit",
    "committed",
    "read_picture",
]

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
OUT_OF_REACH = frozenset(["changed", "missing"])
"""Failures that are not the picture's: its shard is done again by the next run."""


class ShardError(ValueError):
    """A worker could not do a shard; ``errno`` is that of the operating system's error, if any."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.errno = number


def commit(folder: Folder, shard: Shard, record: dict[str, Any]) -> dict[str, Any]:
    """Write a shard's commit record; from here on its work is done.

    Args:
        folder: the artefact's folder.
        shard: what was done.
        record: ``files`` (name to bytes and sha256), ``rows``, ``ok``, ``failed`` by status.
    """
    content = {"name": shard.name, "number": shard.number, **record}
    write_json(folder / SHARD_FOLDER, f"{shard.name}.json", content)
    return content


def committed(folder: Folder, shard: Shard, verify: Verify = "sizes") -> dict[str, Any] | None:
    """The shard's commit record if it is whole and its files are there, else None.

    Nor does it count while pictures were out of reach: a disk that was not mounted comes back.

    Args:
        folder: the artefact's folder.
        shard: what should be done.
        verify: ``full`` compares the files' sha256, ``sizes`` only their sizes.
    """
    name = f"{SHARD_FOLDER}/{shard.name}.json"
    if not folder.exists(name):
        return None
    try:
        record = json.loads(folder.read_bytes(name))
        whole = not OUT_OF_REACH & set(record["failed"]) and all(
            folder.size_bytes(file) == expected["bytes"]
            and (verify == "sizes" or folder.sha256(file) == expected["sha256"])
            for file, expected in record["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s/%s: unreadable commit record, the shard is done again", folder, name)
        return None
    return dict(record) if whole else None


class ReadPicture(NamedTuple):
    """What came of reading one picture: ``image`` is there if and only if ``status`` is ``ok``."""

    status: str
    data: bytes
    image: Image.Image | None


def read_picture(row: ShardRow | CatalogRow) -> ReadPicture:
    """Read and decode a picture if its file is the one that was scanned; never raises for it.

    The status is ``ok``, ``missing``, ``changed``, or that of a `PictureError`.
    """
    try:
        data = read_bytes(row.uri, row.bytes, row.mtime_ns)
    except ChangedError as error:
        logger.info("%s", error)
        return ReadPicture("changed", b"", None)
    except OSError as error:
        logger.info("%s: %s", row.uri, error)
        return ReadPicture("missing", b"", None)
    except ValueError as error:  # a container that is damaged
        logger.warning("%s: %s", row.uri, error)
        return ReadPicture("unreadable", b"", None)
    try:
        return ReadPicture("ok", data, open_picture(data))
    except PictureError as error:
        return ReadPicture(error.status, data, None)


class ShardWork(Protocol):
    """What an actor does with one shard: write its files, return its record (not yet committed)."""

    def __call__(self, shard: Shard) -> Mapping[str, Any]:
        """Do the work; the record's ``files`` are named from the artefact's folder on."""


class ShardActor:
    """A Ray Data actor: shards in, commit records out. Pixels never enter the object store.

    Args:
        location: the workspace.
        folder_path: the artefact's folder inside the workspace's filesystem.
        make_work: class of the `ShardWork`; made once per actor.
        arguments: its keyword arguments, small and plain.
    """

    def __init__(
        self,
        location: str,
        folder_path: str,
        make_work: Callable[..., ShardWork],
        arguments: dict[str, Any],
    ) -> None:
        self._folder = Folder(Folder.at(location).fs, folder_path)
        self._work = make_work(**arguments)
        self._plans: dict[str, Plan] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do and commit each shard of the batch: ``plan``, ``position`` and ``number``."""
        records = []
        for row in batch.to_pylist():
            try:
                record = self._do(self._planned(**row))
            except (ValueError, OSError) as error:
                # As data, since Ray keeps only the text of an exception's cause.
                record = {"error": str(error), "errno": getattr(error, "errno", None)}
            records.append(json.dumps(record))
        return pa.table({"record": records})

    def _planned(self, plan: str, position: int, number: int) -> Shard:
        if plan not in self._plans:
            self._plans[plan] = Plan(self._folder, plan)
        return self._plans[plan].shard(position, number)

    def _do(self, shard: Shard) -> dict[str, Any]:
        started_s = time.monotonic()
        _count_attempt(self._folder, shard)
        record = self._work(shard)
        seconds = round(time.monotonic() - started_s, 3)
        done = commit(self._folder, shard, {**record, "seconds": seconds})
        self._folder.remove(attempts_file(shard))
        return done


def attempts_file(shard: Shard) -> str:
    """Where an actor counts how often it began this shard; gone once the shard is committed."""
    return f"{SHARD_FOLDER}/{shard.name}.attempts"


def _count_attempt(folder: Folder, shard: Shard) -> None:
    """Refuse a shard that has taken several workers down with it; Ray would try it for ever."""
    name = attempts_file(shard)
    attempts = int(folder.read_bytes(name)) if folder.exists(name) else 0
    if attempts >= MAX_ATTEMPTS:
        raise ValueError(
            f"shard {shard.name} in {folder}: its worker died {attempts} times. One of the "
            f"pictures {shard.first_id} to {shard.last_id} kills its decoder, or memory is short. "
            "See their files in the catalog; move the culprit away and scan again, or "
            "lower --shard-rows."
        )
    folder.write_atomic(name, str(attempts + 1).encode())
