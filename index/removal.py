"""Take pictures out of the results of an index, from the next search on.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np

from index.build import Leave
from index.change import Change, change_version
from index.compact import build_of_living, living
from index.fill import FillParts, fill_here
from index.folder import Folder
from index.id_file import NO_IDS
from index.lock import sole_writer
from index.removed import removed_ids
from index.room import no_room_to
from index.service import put_in_service
from index.update import Action, Say, Updated, require_changeable
from index.vectors import VECTORS, Ids, rising
from index.versions import CHANGING, Standing, open_current

__all__ = ["remove_pictures"]

logger = logging.getLogger(__name__)


def remove_pictures(
    folder: Folder, ids: Ids, *, fill: FillParts = fill_here, say: Say = logger.info
) -> Updated:
    """Have pictures be no results any more, from the next search on.

    They stay out of later versions too, whatever the embedding set holds, until they are restored
    (``restored`` of `update_index`). What does not find room in the index's memory is built anew.

    Args:
        folder: the index's folder.
        ids: ids int64; those that the index does not have are passed over.
        fill: does the jobs of parts, should it be built.
        say: is told what is done before it takes long.

    Raises:
        ValueError: no picture would be left; the index's memory is too little for a build; another
            process is building or changing the index.
        MissingArtifactError: no version is in service.
        CorruptArtifactError: the one in service is damaged.
    """
    with sole_writer(folder, CHANGING), _damage_told(folder):
        before = Standing.in_service(folder)
        require_changeable(before)
        vectors = living(before.folder, before.door)
        wanted = rising(ids)
        is_here = vectors.contains(wanted)
        here, unknown = wanted[is_here], wanted[~is_here]
        if not len(here):
            return Updated(
                version=before.name,
                door=dict(before.door),
                action="reused",
                why="none of them is in it" if len(wanted) else "no picture is meant",
                unknown=unknown,
            )
        if len(here) == len(vectors):
            raise ValueError(
                f"{folder}: all {len(vectors):,} pictures are to be removed, and an index needs "
                "one. To be rid of the index, delete its folder."
            )
        removed, why = rising(removed_ids(before), here), f"{len(here):,} removed"
        no_room = no_room_to("change", before.door, len(wanted))
        if not no_room:
            empty = np.empty((0, vectors.dim), np.float16)
            change = Change(gone=here, ids=NO_IDS, vectors=empty, removed=removed)
            name, made = change_version(before, change)
            put_in_service(folder, name, made)
        else:
            del vectors, wanted, is_here, here
            why = f"{why}, and {no_room}"
            say(f"Building the index anew: {no_room}")
            before.require_whole(VECTORS)  # what is built of them vouches for them
            made = build_of_living(before, Leave(removed=removed, gone=NO_IDS), fill)
            name = made["version"]
    action: Action = "built" if no_room else "changed"
    return Updated(version=name, door=made, action=action, why=why, unknown=unknown)


@contextlib.contextmanager
def _damage_told(folder: Folder) -> Iterator[None]:
    """Say of what fails over the version in service that it is damaged, if it is.

    A removal does not read in full what it leaves as it is.
    """
    try:
        yield
    except Exception:
        open_current(folder)
        raise
