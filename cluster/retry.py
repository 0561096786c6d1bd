"""A retry of the shards that have failed pictures: its identity, which lasts until it is published.

Each shard that is done again says in its commit record for which retry; until then its old record
stands. So a retry that was killed goes on where it was, and is nothing that another run has to
clear up.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from cluster.plan import SHARD_FOLDER
from index.artifact import CorruptArtifactError, digest, library_versions
from index.folder import Folder
from index.sealed import read_sealed, write_sealed

__all__ = ["RETRY", "begin_retry", "end_retry", "is_outdated"]

logger = logging.getLogger(__name__)

RETRY = "retry.json"


def begin_retry(folder: Folder, arguments: Mapping[str, Any]) -> str:
    """The identity of the retry that is under way, or of a new one.

    Args:
        folder: the artefact's.
        arguments: what pictures are read with; with others, or other libraries, it begins anew.
    """
    home = folder / SHARD_FOLDER
    settings = digest([dict(arguments), library_versions("torch", "torchvision", "pillow")])
    try:
        begun = read_sealed(home, RETRY, advice="All failed pictures are tried again.")
        if begun.get("settings") == settings:
            return str(begun["id"])
    except FileNotFoundError:
        logger.debug("%s: no retry is under way", home)
    except CorruptArtifactError as error:
        logger.warning("%s", error)
    identity = uuid.uuid4().hex[:12]
    write_sealed(home, RETRY, {"id": identity, "settings": settings})
    return identity


def end_retry(folder: Folder) -> None:
    """Have the next retry be another one."""
    (folder / SHARD_FOLDER).remove(RETRY)


def is_outdated(record: Mapping[str, Any], retry: str | None) -> bool:
    """Whether this retry does a shard again that has this commit record."""
    return bool(retry and record["failed"] and record.get("retry") != retry)
