"""Put a version in service once it has shown that it answers: the last step of builds and changes.

It is opened as a reader opens it, and asked some of the queries that it was judged by. Its files
are verified, but for those that the version in service has too; these as well where a version would
be deleted that could still answer without them. Until it has answered as its card says, the version
before stays in service.

Shapes: Q queries, K results.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from index.artifact import ArtifactError, Proven, open_door, proven_files, read_door
from index.folder import Folder
from index.layers import open_ranker
from index.measure import recall_at_k
from index.queries import QuerySet
from index.versions import open_current, remove_others, set_current, version_names

__all__ = ["ProbeError", "put_in_service", "require_answers"]

logger = logging.getLogger(__name__)

NUM_PROBES = 100
SLACK = 0.1
ERRORS = 3.0
"""So far below the recall on all queries may it be on a hundred, and so many standard errors of
these more: chance alone does not go there, and what is broken finds next to nothing."""


class ProbeError(ValueError):
    """A finished version does not answer its own queries; what was in service stays."""


def put_in_service(
    folder: Folder,
    version: str,
    door: Mapping[str, Any],
    *,
    proven: frozenset[Proven] = frozenset(),
) -> None:
    """Have a finished version answer from now on, and delete all but it and the one before.

    Nothing is done if it is in service already. Call as `sole_writer`.

    Args:
        folder: the index's folder.
        version: a finished version.
        door: its door.
        proven: files of it that were just verified.

    Raises:
        ProbeError: it does not answer as its card says.
        CorruptArtifactError: a file of it is damaged.
    """
    before, shared = _in_service(folder)
    if before == version:
        return
    keep = {version} if before is None else {version, before}
    if any(not shared & files for files in _files_of_others(folder, keep)):
        shared = frozenset()
    require_answers(folder, version, proven=proven | shared)
    set_current(folder, version, door)
    if before is not None:
        remove_others(folder, keep=keep)


def _in_service(folder: Folder) -> tuple[str | None, frozenset[Proven]]:
    """The version in service, and its files: shared ones are as good or bad in a version after."""
    try:
        name, door = open_current(folder, verify="sizes")
    except ValueError as error:  # absent or damaged: either way to be replaced
        logger.info("no usable index in service: %s", error)
        return None, frozenset()
    return name, proven_files(folder / name, door)


def _files_of_others(folder: Folder, keep: Collection[str]) -> Iterator[frozenset[Proven]]:
    """The files of each version but for some."""
    for name in version_names(folder):
        if name not in keep:
            with contextlib.suppress(ArtifactError):
                yield proven_files(folder / name, read_door(folder / name, "index"))


def require_answers(
    folder: Folder, version: str, *, proven: frozenset[Proven] = frozenset()
) -> None:
    """Open a version as a reader does, and ask it some of its queries.

    Args:
        folder: the index's folder.
        version: a finished version.
        proven: files that need not be read.

    Raises:
        ProbeError: recall on them is far below the card's, or an answer is short or no cosine.
        CorruptArtifactError: a file is damaged.

    Cost: one pass over files that are not proven, and a hundred searches.
    """
    inside = folder / version
    door = open_door(inside, "index", proven=proven)
    stated = door.get("queries")
    if not stated:  # versions from before have none
        return
    sparing = door["config"]["memory"] is not None
    ranker = open_ranker(inside, door, sparing=sparing)
    queries = QuerySet.read(inside.local_path(stated["file"])).half(judging=True)
    queries = queries.some(NUM_PROBES)
    if not queries.k or not len(queries.ids):
        return
    ids, scores = ranker.top(queries.vectors, queries.k + 1, nprobe=door["parameters"]["nprobe"])
    scores = np.where(ids == queries.ids[:, None], -np.inf, scores)
    scores = -np.sort(-scores, axis=1)[:, : queries.k]
    lacking = queries.k - scores.shape[1]
    if lacking > 0 or not np.isfinite(scores).all():
        raise ProbeError(
            f"{inside}: gives fewer results than there are pictures. The version before stays in "
            "service. Build the index again: lookalike index --rebuild"
        )
    recalls = recall_at_k(scores, queries.true_scores)
    found = float(recalls.mean())
    slack = SLACK + ERRORS * float(recalls.std()) / np.sqrt(len(recalls))
    if found < door["recall"]["value"] - slack:
        raise ProbeError(
            f"{inside}: finds {found:.3f} of what it should on {len(queries.ids)} of its own "
            f"queries, its card says {door['recall']['value']:.3f}. The version before stays in "
            "service. Build the index again: lookalike index --rebuild"
        )
