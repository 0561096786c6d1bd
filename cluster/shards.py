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

import errno
import logging
from typing import Any, NamedTuple

from PIL import Image

from cluster.catalog import CatalogRow
from cluster.picture_bytes import MAX_BYTES, ChangedError, read_bytes
from cluster.plan import SHARD_FOLDER, Shard, ShardRow
from encoders.picture import PictureError, open_picture
from encoders.preprocess import DECODE_EDGE
from index.artifact import Verify
from index.folder import Folder
from index.sealed import read_sealed, write_sealed

__all__ = [
    "OUT_OF_REACH",
    "ReadPicture",
    "commit",
    "committed",
    "read_data",
    "read_picture",
]

logger = logging.getLogger(__name__)

OUT_OF_REACH = frozenset(["changed", "missing"])
"""Failures that are not the picture's: its shard is done again by the next run."""


def commit(folder: Folder, shard: Shard, record: dict[str, Any]) -> dict[str, Any]:
    """Write a shard's commit record; from here on its work is done.

    Args:
        folder: the artefact's folder.
        shard: what was done.
        record: ``files`` (name to bytes and sha256), ``rows``, ``ok``, ``failed`` by status.
    """
    content = {"name": shard.name, "number": shard.number, **record}
    write_sealed(folder / SHARD_FOLDER, f"{shard.name}.json", content)
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
    try:
        record = read_sealed(folder, name, advice="Run the job again.")
        whole = not OUT_OF_REACH & set(record["failed"]) and all(
            folder.size_bytes(file) == expected["bytes"]
            and (verify == "sizes" or folder.sha256(file) == expected["sha256"])
            for file, expected in record["files"].items()
        )
    except FileNotFoundError:  # or gone just now: another driver of a bucket began anew
        return None
    except OSError as error:
        if error.errno != errno.EIO or not folder.is_local:
            raise
        logger.warning("the disk cannot read a file, its shard is done again: %s", error)
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("unreadable commit record, the shard is done again: %s", error)
        return None
    return dict(record) if whole else None


class ReadPicture(NamedTuple):
    """What came of reading one picture: ``image`` is there if and only if ``status`` is ``ok``."""

    status: str
    data: bytes
    image: Image.Image | None


def read_data(row: ShardRow | CatalogRow) -> tuple[str, bytes]:
    """The bytes of a picture if they are those that were scanned; never raises for it.

    Returns:
        Status and bytes: ``ok``, or without bytes ``missing``, ``changed``, ``too_large`` or
        ``unreadable``.
    """
    if (row.bytes or 0) > MAX_BYTES:  # of a corpus that was scanned when there was no limit
        logger.info("%s: %d bytes are too large for a picture", row.uri, row.bytes)
        return "too_large", b""
    try:
        return "ok", read_bytes(row.uri, row.bytes, row.mtime_ns)
    except ChangedError as error:
        logger.info("%s", error)
        return "changed", b""
    except OSError as error:
        logger.info("%s: %s", row.uri, error)
        return "missing", b""
    except MemoryError:
        logger.warning("%s: not enough memory to read its %s bytes", row.uri, row.bytes)
        return "too_large", b""
    except ValueError as error:  # a container that is damaged
        logger.warning("%s: %s", row.uri, error)
        return "unreadable", b""


def read_picture(row: ShardRow | CatalogRow, *, decode_edge: int = DECODE_EDGE) -> ReadPicture:
    """Read and decode a picture if it is the one that was scanned; never raises for it.

    JPEGs may be decoded smaller, as far as ``decode_edge``. The status is that of `read_data`, or
    of a `PictureError`.
    """
    status, data = read_data(row)
    if status != "ok":
        return ReadPicture(status, data, None)
    try:
        return ReadPicture("ok", data, open_picture(data, decode_edge=decode_edge))
    except PictureError as error:
        return ReadPicture(error.status, data, None)
