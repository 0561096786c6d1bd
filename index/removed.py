"""Pictures that were removed by hand stay out, whatever becomes of the version that says so.

Every version keeps the list. Where the one in service is damaged, another is built in its place,
and has to leave out the same pictures: they may have been removed for a reason that is no joke.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from index.artifact import CorruptArtifactError, check_file
from index.folder import Folder
from index.id_file import NO_IDS, read_ids
from index.vectors import Ids
from index.versions import CURRENT, Standing, last_known

__all__ = ["REMOVED", "removed_despite_damage", "removed_ids"]

REMOVED = "removed.arrow"


def removed_ids(before: Standing) -> Ids:
    """What was left out of a version by hand, and stays so whatever is embedded."""
    stated = before.door.get("removed")
    return read_ids(before.folder.local_path(stated["file"])) if stated else NO_IDS


def removed_despite_damage(folder: Folder) -> Ids:
    """The same of an index whose version in service cannot be used, or is not there.

    A list whose door is damaged, which alone could vouch for it, is taken as it is.

    Args:
        folder: the index's folder.

    Raises:
        CorruptArtifactError: the list is damaged, or gone with the version: without it, what was
            removed would be back.
    """
    known = last_known(folder)
    if known is None:
        return NO_IDS
    version, door = known
    inside = folder / version
    if not inside.exists():
        raise _lost(folder, f"{inside}: not there, though {CURRENT} names it")
    if not (inside.exists(REMOVED) if door is None else door.get("removed")):
        return NO_IDS
    try:
        if door is not None:
            check_file(inside, REMOVED, door["files"][REMOVED])
        found = read_ids(inside.local_path(REMOVED))
        if not (np.diff(found) > 0).all():
            raise ValueError("its ids do not rise")
    except (ValueError, OSError, KeyError, pa.ArrowException) as error:
        raise _lost(folder, f"{inside}/{REMOVED}: damaged") from error
    return found


def _lost(folder: Folder, what: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{what}, and with it the list of pictures that were removed by hand; an index built "
        "without it would show them again. Put an older version in service, with the list that it "
        "has: lookalike versions --index NAME --rollback VERSION. Or, to have every picture back, "
        f"delete the folder {folder}."
    )
