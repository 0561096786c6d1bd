"""What is made from an index version lies in its folder: who makes it, and who opens it.

A version may be replaced and deleted while something is made from it, which can take hours. So
whoever makes it holds the version, and `index.versions` passes over one that is held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    MissingArtifactError,
    Verify,
    open_door,
)
from index.folder import Folder
from index.lock import in_use, sole_writer
from index.search import Searcher

__all__ = ["hold", "made_before", "open_beside", "parents_of", "writing_beside"]


def parents_of(searcher: Searcher) -> dict[str, str]:
    """What the door of something made from an index version says that it was made from."""
    return {"index_id": searcher.id, "index_door": searcher.door["door_sha256"]}


@contextlib.contextmanager
def hold(searcher: Searcher) -> Iterator[None]:
    """Keep a version from being deleted, also when others are put in service meanwhile.

    Raises:
        MissingArtifactError: it was deleted before.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(in_use(searcher.folder))
        except (FileNotFoundError, BlockingIOError) as error:
            raise _replaced(searcher) from error
        if not searcher.folder.exists("index.json"):
            raise _replaced(searcher)
        yield


def _replaced(searcher: Searcher) -> MissingArtifactError:
    return MissingArtifactError(
        f"{searcher.folder}: index version {searcher.version} was replaced meanwhile, and deleted "
        "with all that lay beside it. Run the same command again, or open the index again: that "
        "takes the version in service."
    )


@contextlib.contextmanager
def writing_beside(searcher: Searcher, kind: str, task: str) -> Iterator[Folder]:
    """Hold a version, and as its sole writer the folder for something made from it.

    Args:
        searcher: the version.
        kind: what is made, such as ``graph``; also the name of its folder.
        task: see `index.lock.sole_writer`.

    Raises:
        MissingArtifactError: the version was deleted.
        ValueError: another process is at it.
    """
    folder = searcher.folder / kind
    with hold(searcher), sole_writer(folder, task):
        yield folder


def made_before(folder: Folder, kind: str, wanted_id: str) -> dict[str, Any] | None:
    """The door of what is to be made, if it is there and whole; what is damaged is made again."""
    with contextlib.suppress(ArtifactError):
        door = open_door(folder, kind)
        if door["id"] == wanted_id:
            return door
    return None


def open_beside(
    searcher: Searcher, kind: str, make: str, *, verify: Verify = "full"
) -> tuple[Folder, dict[str, Any]]:
    """Folder and door of what was made from an index version and lies beside it.

    Args:
        searcher: the version.
        kind: what it is, such as ``graph``; also the name of its folder.
        make: the command that makes it, for the message.
        verify: see `index.artifact.open_door`.

    Raises:
        MissingArtifactError: it was never made for this version; or the version was deleted.
        CorruptArtifactError: it is damaged, or was made from another version.
    """
    folder = searcher.folder / kind
    if not folder.exists(f"{kind}.json"):
        if not searcher.folder.exists("index.json"):
            raise _replaced(searcher)
        raise MissingArtifactError(
            f"{folder}: index version {searcher.version} has no {kind} yet. Make it: {make}"
        )
    door = open_door(folder, kind, verify=verify)
    if door["parents"] != parents_of(searcher):
        raise CorruptArtifactError(
            f"{folder}: was made from another index version than {searcher.version}. Make it "
            f"again: {make}"
        )
    return folder, door
